"""Scans of somebody's own, made of random numbers, under BIDS-style names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

import h5py
import nibabel
import numpy as np
import pandas as pd
from PIL import Image

AFFINE = np.diag([2.0, 2.0, 2.0, 1.0])
NAMES = [f"set{i % 2}/picture{i:02d}.png" for i in range(12)]


class FakeScans(NamedTuple):
    """What was written."""

    root: Path
    mask: np.ndarray
    responses: dict[str, list[np.ndarray]]
    """Subject's label -> per session, trials x voxels in C order of the mask, as stored."""
    shown: dict[str, list[list[str]]]
    """Subject's label -> per session, the picture of every trial."""


def save(path: Path, response_TV: np.ndarray, mask: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".npy":
        np.save(path, response_TV)
    elif path.suffix == ".hdf5":
        with h5py.File(path, "w") as file:
            file["betas"] = response_TV
    else:
        volume = np.full((*mask.shape, len(response_TV)), 7, dtype=response_TV.dtype)
        volume[mask] = response_TV.T
        nibabel.save(nibabel.Nifti1Image(volume, AFFINE), path)


def write_events(path: Path, names: list[str], split: bool = True) -> None:
    """A table with a line of fixation before every other trial, which names no picture."""
    rows = []
    for number, name in enumerate(names):
        if number % 2:
            rows.append(
                {
                    "onset": 4 * number - 1.0,
                    "duration": 1,
                    "trial_type": "fixation",
                    "stim_file": None,
                }
            )
        row = {
            "onset": 4.0 * number,
            "duration": 3,
            "trial_type": "picture",
            "stim_file": name,
            "response_time": 0.5 + number / 100,
        }
        rows.append(row | ({"split": "test" if name in NAMES[:3] else "train"} if split else {}))
    path.parent.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(rows).to_csv(path, sep="\t", index=False, na_rep="n/a")


def write_fake_scans(
    root: Path,
    subjects: tuple[str, ...] = ("01", "02"),
    form: str = "nii.gz",
    sessions: int = 2,
    seed: int = 0,
) -> FakeScans:
    """Every picture once per session, in two runs; the second subject's responses are one file per
    run.
    """
    rng = np.random.default_rng(0)
    mask = rng.random((5, 6, 4)) < 0.4
    responses: dict[str, list[np.ndarray]] = {}
    shown: dict[str, list[list[str]]] = {}
    for number, subject in enumerate(subjects):
        folder = root / f"sub-{subject}"
        for name, where in (
            ("", mask),
            ("_label-V1", mask & (rng.random(mask.shape) < 0.3)),
            ("_label-V2", np.zeros_like(mask)),
        ):
            path = folder / f"sub-{subject}{name}_mask.nii.gz"
            path.parent.mkdir(parents=True, exist_ok=True)
            nibabel.save(nibabel.Nifti1Image(where.astype(np.uint8), AFFINE), path)
        responses[subject], shown[subject] = [], []
        for session in range(1, sessions + 1):
            order = [NAMES[i] for i in rng.permutation(len(NAMES))]
            response = rng.normal(2, 3, (len(order), int(mask.sum()))).astype(np.float32)
            stem = folder / f"ses-{session}" / "func" / f"sub-{subject}_ses-{session}_task-look"
            half = len(order) // 2
            for run, part in ((1, slice(None, half)), (2, slice(half, None))):
                write_events(stem.with_name(f"{stem.name}_run-{run}_events.tsv"), order[part])
                if number:
                    save(
                        stem.with_name(f"{stem.name}_run-{run}_betas.{form}"), response[part], mask
                    )
            if not number:
                save(stem.with_name(f"{stem.name}_betas.{form}"), response, mask)
            responses[subject].append(response)
            shown[subject].append(order)
    for name in NAMES:
        path = root / "stimuli" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (20, 30, 3), dtype=np.uint8)).save(path)
    (root / "captions.json").write_text(
        json.dumps({name: [f"this is {name}", "a picture"] for name in NAMES})
    )
    return FakeScans(root, mask, responses, shown)
