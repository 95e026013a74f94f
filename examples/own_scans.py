"""Your own scans, from BIDS-style files to a trained encoder: made-up responses of two people stand
in for yours.

    python examples/own_scans.py FOLDER

Writes FOLDER/scans as a lab might have them, prepares them (`braingen prepare`), looks at the
result (`braingen doctor`), puts a map of every voxel back into the head and takes it out again, and
trains a very small image encoder. Nothing is learnt here: the responses are noise.
"""

from __future__ import annotations

import json
from pathlib import Path
import sys

import nibabel
import numpy as np
import pandas as pd
from PIL import Image

from braingen.cli import main
from braingen.data.betas import Betas
from braingen.data.volumes import load_places
from braingen.data.zscore import load_statistics, percent_signal
from braingen.runtime.data_layout import Layout

PICTURES, SESSIONS, REPEATS = 20, 2, 2
AFFINE = np.diag([2.0, 2.0, 2.0, 1.0])


def write_scans(root: Path) -> None:
    """What a lab has: a mask, a table of events and a volume of responses per session, and the
    pictures.
    """
    rng = np.random.default_rng(0)
    names = [f"picture{number:02d}.png" for number in range(PICTURES)]
    (root / "stimuli").mkdir(parents=True, exist_ok=True)
    for name in names:
        Image.fromarray(rng.integers(0, 256, (64, 80, 3), dtype=np.uint8)).save(
            root / "stimuli" / name
        )
    (root / "captions.json").write_text(
        json.dumps({name: ["a picture of noise"] for name in names}), encoding="utf-8"
    )
    for subject in ("01", "02"):
        mask = rng.random((8, 9, 7)) < 0.3
        folder = root / f"sub-{subject}"
        folder.mkdir(parents=True, exist_ok=True)
        nibabel.save(
            nibabel.Nifti1Image(mask.astype(np.uint8), AFFINE),
            folder / f"sub-{subject}_mask.nii.gz",
        )
        for session in range(1, SESSIONS + 1):
            shown = rng.permutation(names * REPEATS)
            events = pd.DataFrame(
                {"onset": 4.0 * np.arange(len(shown)), "duration": 3.0, "stim_file": shown}
            )
            events["split"] = np.where(events["stim_file"] < "picture04", "test", "train")
            stem = (
                folder
                / f"ses-{session:02d}"
                / "func"
                / f"sub-{subject}_ses-{session:02d}_task-look"
            )
            stem.parent.mkdir(parents=True, exist_ok=True)
            events.to_csv(f"{stem}_events.tsv", sep="\t", index=False)
            volume = np.zeros((*mask.shape, len(shown)), dtype=np.float32)
            volume[mask] = rng.normal(1, 2, (int(mask.sum()), len(shown)))
            nibabel.save(nibabel.Nifti1Image(volume, AFFINE), f"{stem}_betas.nii.gz")


def run(folder: Path) -> None:
    """All steps; what was done before is not done again."""
    scans, data = folder / "scans", folder / "NSD"
    if not scans.exists():
        write_scans(scans)
    where = ["--data_path", str(data), "--subj", "1,2"]
    assert main(["prepare", "--scans", str(scans), *where]) == 0
    assert main(["doctor", *where, "--model_name", str(folder / "run"), "--device", "cpu"]) == 0

    layout = Layout.of(data)
    betas, places = Betas.of(layout, 1), load_places(layout, 1)
    rows = np.arange(5)
    response = percent_signal(
        betas.rows(rows), rows, load_statistics(layout, 1)
    )  # in the unit of your scans
    given = np.asanyarray(
        nibabel.load(next((scans / "sub-01" / "ses-01").rglob("*_betas.nii.gz"))).dataobj
    )
    np.testing.assert_allclose(places.to_volume(response.T), given[..., :5], atol=1e-5)
    values = betas.rows(rows[:1])[0]
    places.write(folder / "map.nii.gz", values)
    assert (places.read(folder / "map.nii.gz") == values).all()

    small = [
        "encoder.hidden_dim=16",
        "encoder.n_blocks=1",
        "prior.depth=1",
        "training.num_epochs=1",
        "training.batch_size=16",
    ]
    small += ["data.holdout_share=0.2", "--device", "cpu", "--tracker", "none"]
    assert main(["train", "image", *where, "--model_name", str(folder / "run"), *small]) == 0


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    run(Path(sys.argv[1]))
