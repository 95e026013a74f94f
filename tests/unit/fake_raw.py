"""A tiny raw release of random numbers, made from a fake data folder with volumes: quick, for tests of what goes wrong."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import h5py
import nibabel
import numpy as np
import pandas as pd
from PIL import Image
from scipy.io import savemat
from unit.fake_nsd import write_fake_nsd

from braingen.data import nsd
from braingen.data.nsd import Layout
from braingen.data.raw_nsd.release import RawNSD
from braingen.data.volumes import VoxelPlaces, read_regions, save_places
from braingen.simulation.raw_release import write_raw_release


def add_volumes(layout: Layout, subject: int) -> None:
    """A mask of as many voxels as the subject has, and the labels of its visual areas."""
    regions = read_regions(layout, subject)
    mask = np.zeros((5, 4, 6), dtype=bool)
    mask.ravel()[np.random.default_rng(subject).permutation(mask.size)[: len(regions["V1"])]] = True
    places = VoxelPlaces(mask, "C", np.diag([1.8, 1.8, 1.8, 1]), "fake")
    save_places(layout, subject, places)
    labels = np.zeros(places.voxels, dtype=np.int16)
    for name, numbers in nsd.VISUAL_ROI_LABELS.items():
        labels[regions[name]] = numbers[0]
    places.write(layout.volumes(subject) / "prf-visualrois.nii.gz", labels, fill=-1)


def write_fake_raw(base: Path) -> RawNSD:
    """Subject 1; 2 sessions of 21 trials, 14 pictures of 24."""
    layout, _ = write_fake_nsd(base / "layout", images=10)
    add_volumes(layout, 1)
    return write_raw_release(layout, base / "raw", {1: "hdf5"}, side=16)


RUNS = ("visA", "attA", "imgA_1", "visB", "attB", "imgB_1", "visC", "attC", "imgC_1", "imgA_2", "imgB_2", "imgC_2")
CUES = {"A": "HRVLPE", "B": "WKBCDT", "C": "SZMYNF"}
IMAGERY_PICTURES = {
    **{f"bar_{angle}deg_450L_43W.png": "setA" for angle in ("000.0", "045.0", "090.0", "135.0")},
    **{f"crs_{angle}deg_450L_43W.png": "setA" for angle in ("000.0", "045.0")},
    "shared0385_nsd28752.png": "setB", "shared0413_nsd30857.png": "setB", "shared0741_nsd53882.png": "setB",
    "shared0842_nsd61178.png": "setB", "shared0907_nsd65873.png": "setB", "shared0000_nsd00000.png": "setB",
}  # fmt: skip
"""Picture of every cue of sets A and B, in the order of CUES -> its folder."""


class SealedTruth(NamedTuple):
    """What was written of the sets of a subject. T trials of a file, N pictures."""

    synthetic_xyzT: np.ndarray
    """int16."""
    synthetic_T: np.ndarray
    """Picture of every trial, from 0; the last 64 are the subject's own."""
    pictures: list[np.ndarray]
    """Shared pictures of NSD-synthetic, then the coloured ones of subjects 1 to 8: N x H x W x 3."""
    imagery_xyzT: np.ndarray
    cues: dict[str, list[str]]
    """Run -> letters of its 48 trials."""
    imagery_pictures: dict[str, np.ndarray]
    """Letter of the cue -> H x W x 3."""


def add_sealed_sets(raw: RawNSD, subject: int, form: str = "hdf5", seed: int = 0) -> SealedTruth:
    """Write NSD-synthetic and NSD-imagery beside a raw release, of random numbers."""
    rng = np.random.default_rng([seed, subject])
    shape = raw.places(subject).mask.shape
    order = rng.permutation(np.concatenate([np.arange(284), rng.integers(0, 284, 744 - 284)]))
    path = raw.root / "nsddata" / "experiments" / "nsdsynthetic" / "nsdsynthetic_expdesign.mat"
    path.parent.mkdir(parents=True, exist_ok=True)
    savemat(path, {"masterordering": order[None].astype(float) + 1})
    pictures = [rng.integers(0, 256, (count, 12, 20, 3), dtype=np.uint8) for count in (220, *[64] * 8)]
    folder = raw.root / "nsddata_stimuli" / "stimuli" / "nsdsynthetic"
    folder.mkdir(parents=True, exist_ok=True)
    names = ["nsdsynthetic_stimuli", *(f"nsdsynthetic_colorstimuli_subj0{number}" for number in range(1, 9))]
    for name, some in zip(names, pictures):
        with h5py.File(folder / f"{name}.hdf5", "w") as file:
            file["imgBrick"] = some
    volumes = {}
    for name, trials in (("nsdsynthetic", 744), ("nsdimagery", 720)):
        volumes[name] = rng.integers(-3000, 3000, (*shape, trials), dtype=np.int16)
        beside = raw.betas_folder(subject)
        beside = beside.with_name(f"{name}{beside.name}")
        beside.mkdir(parents=True, exist_ok=True)
        if form == "hdf5":
            with h5py.File(beside / f"betas_{name}.hdf5", "w") as file:
                file["betas"] = volumes[name].T
        else:
            nibabel.save(nibabel.Nifti1Image(volumes[name], raw.places(subject).affine), beside / f"betas_{name}.nii.gz")
    cues = {run: rng.permutation(list(CUES[run[3]] * 8)).tolist() for run in RUNS}
    behaviour = raw.root / "nsddata" / "bdata" / "nsdimagery"
    behaviour.mkdir(parents=True, exist_ok=True)
    for run, letters in cues.items():
        table = pd.DataFrame({"TRIAL": np.arange(48) + 1, "CONDITION": letters, "RT": 0.5})
        table.to_csv(behaviour / f"nsdimagery_{nsd.subject_name(subject)}_{run}.tsv", sep="\t", index=False)
    shown = {}
    for cue, (name, of_set) in zip(CUES["A"] + CUES["B"], IMAGERY_PICTURES.items()):
        shown[cue] = rng.integers(0, 256, (14, 14, 3), dtype=np.uint8)
        path = raw.root / "nsddata" / "experiments" / "nsdimagery" / "rawtargetimages" / of_set / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(shown[cue]).save(path)
    return SealedTruth(volumes["nsdsynthetic"], order, pictures, volumes["nsdimagery"], cues, shown)
