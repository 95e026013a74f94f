"""A tiny raw release of random numbers, made from a fake data folder with volumes: quick, for tests of what goes wrong."""

from __future__ import annotations

from pathlib import Path

import numpy as np
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
