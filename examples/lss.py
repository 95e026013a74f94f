"""Single-trial responses of fMRIPrep's output, by nilearn: a model per trial (LSS).

    python examples/lss.py SCANS [SPACE]

Reads every preprocessed run below SCANS (`_desc-preproc_bold.nii.gz`, of one space: T1w where
nothing else is said), its brain mask, its table of events and, where they are there, the motion
parameters of `_desc-confounds_timeseries.tsv`. Writes SCANS/derivatives/lss, a map per trial
(`..._desc-trial001_betas.nii.gz`), which `braingen prepare` takes. One trial against all others of
its run is one regressor, as Mumford et al. (2012) propose; GLMsingle is usually better where
pictures repeat.
"""

from __future__ import annotations

from pathlib import Path
import sys

import nibabel
from nilearn.glm.first_level import FirstLevelModel
import numpy as np
import pandas as pd

MOTION = ["trans_x", "trans_y", "trans_z", "rot_x", "rot_y", "rot_z"]


def events_of(scans: Path, stem: str) -> pd.DataFrame:
    """Trials of a run that show a picture, in the order of onsets."""
    found = sorted(path for path in scans.rglob(f"{stem}_events.tsv"))
    if len(found) != 1:
        sys.exit(f"{stem}: {len(found)} tables of events, one was expected")
    table = pd.read_csv(found[0], sep="\t", na_values="n/a")
    shown = table[table["stim_file"].notna()].sort_values("onset", kind="stable")
    return shown[["onset", "duration"]].reset_index(drop=True)


def confounds_of(bold: Path, stem: str) -> pd.DataFrame | None:
    """Motion parameters of a run, where fMRIPrep left them."""
    path = bold.with_name(f"{stem}_desc-confounds_timeseries.tsv")
    return pd.read_csv(path, sep="\t")[MOTION].fillna(0) if path.exists() else None


def run(scans: Path, space: str = "T1w") -> int:
    """Estimate all runs; returns the number of maps."""
    written = 0
    for bold in sorted(scans.rglob(f"*_space-{space}_*desc-preproc_bold.nii.gz")):
        stem = bold.name.partition(f"_space-{space}")[0]
        mask = bold.with_name(bold.name.replace("desc-preproc_bold", "desc-brain_mask"))
        events = events_of(scans, stem)
        out = scans / "derivatives" / "lss" / bold.parent.relative_to(bold.parents[2])
        out.mkdir(parents=True, exist_ok=True)
        model = FirstLevelModel(
            t_r=float(nibabel.load(bold).header["pixdim"][4]),
            mask_img=nibabel.load(mask),
            hrf_model="spm",
            noise_model="ols",
            minimize_memory=True,
        )
        for trial in range(len(events)):
            kind = np.where(np.arange(len(events)) == trial, "trial", "others")
            model.fit(bold, events.assign(trial_type=kind), confounds_of(bold, stem))
            effect = model.compute_contrast("trial", output_type="effect_size")
            name = f"{stem}_space-{space}_desc-trial{trial + 1:03d}_betas.nii.gz"
            effect.to_filename(out / name)
            written += 1
        print(f"{stem}: {len(events)} trials")
    return written


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    if not run(Path(sys.argv[1]), *sys.argv[2:]):
        sys.exit("no preprocessed runs of that space were found")
