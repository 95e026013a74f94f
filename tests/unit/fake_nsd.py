"""A tiny data folder in NSD's layout, made of random numbers, for any test that needs one; and ways
to break it.
"""

from __future__ import annotations

from collections.abc import Sequence
import io
import json
from pathlib import Path
import tarfile
from typing import NamedTuple

import h5py
import numpy as np

from braingen.data import nsd
from braingen.runtime.data_layout import Layout, subject_name

SIZE = 8
"""Height and width of the fake images."""


class FakeSubject(NamedTuple):
    """What was written for a subject."""

    betas: np.ndarray
    """(trials, voxels), float32."""
    train: np.ndarray
    """(trials, 3): session, global trial, image."""
    test: np.ndarray
    """(trials, 3): session, global trial, image."""


def write_tar(path: Path, subject: int, trials: np.ndarray, end: bool = True) -> None:
    """A tar of samples for trials (session, global trial, image); sessions are written from 1, as
    in the real files.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for number, (session, row, image) in enumerate(trials):
            behav = np.full((1, 17), -1.0)
            behav[0, [0, 1, 2, 3, 4, 5]] = image, subject, session + 1, 1, number + 1, row
            behav[0, 16] = 0
            arrays = {
                "behav": behav,
                "past_behav": np.full((15, 17), -1.0),
                "future_behav": np.full((15, 17), -1.0),
            }
            arrays["olds_behav"] = np.full((3, 17), -1.0)
            for name, array in arrays.items():
                buffer = io.BytesIO()
                np.save(buffer, array)
                member = tarfile.TarInfo(f"sample{number:09d}.{name}.npy")
                member.size = buffer.tell()
                buffer.seek(0)
                tar.addfile(member, buffer)


def write_betas(
    path: Path,
    betas: np.ndarray,
    chunks: tuple[int, int] | None = None,
    compression: str | None = None,
) -> None:
    with h5py.File(path, "w") as file:
        file.create_dataset("betas", data=betas, chunks=chunks, compression=compression)


def write_images(
    path: Path, images: np.ndarray, chunks: bool = False, simulated: bool = True
) -> None:
    with h5py.File(path, "w") as file:
        dataset = file.create_dataset(
            "images", data=images, chunks=(1, *images.shape[1:]) if chunks else None
        )
        if simulated:
            dataset.attrs[nsd.SIMULATED_ATTRIBUTE] = True


def write_fake_nsd(
    root: Path,
    subjects: Sequence[int] = (1, 2),
    sessions: int = 2,
    images: int = 10,
    test_images: int = 4,
    voxels: int = 40,
    seed: int = 0,
    chunks: tuple[int, int] | None = None,
) -> tuple[Layout, dict[int, FakeSubject]]:
    """Write a data folder; subject s has `voxels + s` voxels.

    Images 0..test_images-1 are shared by all subjects and used for testing; every subject sees
    `images` further images of its own. Every image is shown three times, in shuffled order over the
    sessions; trials are shared out evenly among sessions.
    """
    layout = Layout.of(root)
    root.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    written = {}
    with h5py.File(layout.masks(), "w") as masks:
        for number, subject in enumerate(subjects):
            width = voxels + subject
            own = test_images + number * images + np.arange(images)
            shown = rng.permutation(np.repeat(np.concatenate([np.arange(test_images), own]), 3))
            row = np.arange(len(shown))
            session = row * sessions // len(shown)
            trials = np.stack([session, row, shown], axis=1)
            train, test = trials[shown >= test_images], trials[shown < test_images]
            for s in range(sessions):
                write_tar(layout.wds_train(subject, s), subject, train[train[:, 0] == s])
            write_tar(layout.wds_test(subject), subject, test)
            betas = rng.standard_normal((len(shown), width)).astype(np.float32)
            write_betas(layout.betas(subject), betas, chunks)
            areas = rng.integers(0, 5, width)  # V1, V2, V3, V4, higher
            group = masks.create_group(subject_name(subject))
            for index, region in enumerate(("V1", "V2", "V3", "V4", "higher_vis")):
                group[region] = areas == index
            group["early_vis"] = areas < 4
            group["nsd_general"] = np.ones(width, dtype=bool)
            written[subject] = FakeSubject(betas, train, test)
    total = test_images + len(subjects) * images
    write_images(layout.images(), rng.random((total, 3, SIZE, SIZE)).astype(np.float16))
    captions = {str(i): [f"picture {i}, caption {k}" for k in range(5)] for i in range(total)}
    layout.captions().write_text(json.dumps(captions))
    return layout, written
