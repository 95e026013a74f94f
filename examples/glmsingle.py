"""From GLMsingle's output to a trained encoder, with no line of code of your own: a made-up lab
folder stands in for yours.

    python examples/glmsingle.py FOLDER

Writes FOLDER/scans as a lab leaves it (events per run, pictures, brain masks per run, and one
TYPED_*.hdf5 of all runs of both sessions with DESIGNINFO.npy), then types what you would type:
`braingen prepare`, `braingen doctor`, `braingen train image`. The responses are planted: those to
the same picture are alike.
"""

from __future__ import annotations

import json
from pathlib import Path
import sys

import h5py
import nibabel
import numpy as np
import pandas as pd
from PIL import Image

from braingen.cli import main

PICTURES, SESSIONS, RUNS, TRIALS = 40, 2, 3, 24
AFFINE = np.diag([2.0, 2.0, 2.0, 1.0])


def write_scans(root: Path) -> None:
    """What fMRIPrep and GLMsingle leave; the betas are NaN outside the brain."""
    rng = np.random.default_rng(0)
    mask = np.zeros((10, 12, 11), dtype=bool)
    mask[2:8, 2:9, 2:9] = True
    (root / "stimuli").mkdir(parents=True)
    names = [f"img_{number:03d}.png" for number in range(PICTURES)]
    for name in names:
        Image.fromarray(np.broadcast_to(rng.integers(0, 256, 3, dtype=np.uint8), (48, 48, 3))).save(
            root / "stimuli" / name
        )
    planted = rng.normal(size=(PICTURES, int(mask.sum())))
    shown = rng.permutation(np.resize(np.arange(PICTURES), SESSIONS * RUNS * TRIALS))
    for number, part in enumerate(np.split(shown, SESSIONS * RUNS)):
        session, run = number // RUNS + 1, number % RUNS + 1
        stem = f"sub-01_ses-{session:02d}_task-images_run-{run}"
        events = pd.DataFrame(
            {
                "onset": 4.8 * (1 + np.arange(TRIALS)),
                "duration": 3.0,
                "stim_file": [names[k] for k in part],
            }
        )
        folder = root / "sub-01" / f"ses-{session:02d}" / "func"
        folder.mkdir(parents=True, exist_ok=True)
        events.to_csv(folder / f"{stem}_events.tsv", sep="\t", index=False)
        masks = root / "derivatives" / "fmriprep" / "sub-01" / f"ses-{session:02d}" / "func"
        masks.mkdir(parents=True, exist_ok=True)
        nibabel.save(
            nibabel.Nifti1Image(mask.astype(np.uint8), AFFINE),
            masks / f"{stem}_space-T1w_desc-brain_mask.nii.gz",
        )
    betas = np.full((*mask.shape, len(shown)), np.nan, np.float32)
    betas[mask] = (planted[shown] + 0.5 * rng.normal(size=(len(shown), int(mask.sum())))).T
    folder = root / "derivatives" / "glmsingle"
    folder.mkdir(parents=True)
    with h5py.File(folder / "TYPED_FITHRF_GLMDENOISE_RR.hdf5", "w") as file:
        file["betasmd"], file["R2"] = betas, np.where(mask, 10.0, np.nan)
    design = {"stimorder": [np.int64(k) for k in shown], "numtrialrun": [TRIALS] * SESSIONS * RUNS}
    np.save(folder / "DESIGNINFO.npy", np.array(design, dtype=object), allow_pickle=True)


def run(folder: Path) -> None:
    """All steps; what was done before is not done again."""
    scans, where = folder / "scans", ["--data_path", str(folder / "data")]
    if not scans.exists():
        write_scans(scans)
    assert main(["prepare", "--scans", str(scans), *where]) == 0
    assert main(["doctor", *where, "--model_name", str(folder / "run"), "--device", "cpu"]) == 0
    found = json.loads((folder / "data" / "prepared.json").read_text(encoding="utf-8"))["subjects"][
        "1"
    ]["reliability"]
    print(
        f"responses to the same picture correlate by {found['same_picture']:.2f}, to others by"
        f" {found['other_picture']:.2f}"
    )
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
