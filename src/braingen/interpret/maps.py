"""Maps on disk: one row per image, written as computed, never in memory as a whole.

N images, V voxels, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from braingen.interpret.attribution import Explainer, Query
from braingen.runtime.arrays import new_npy
from braingen.runtime.errors import UserError
from braingen.runtime.files import disk_errors_as_sentences, sync_file, write_json
from braingen.runtime.text_files import read_json

_BLOCK = 64  # rows read at once


class MapFile(NamedTuple):
    """Files of the maps of some images: ``<name>.npy`` (N x V float32) and ``<name>.json``."""

    path: Path
    """Path of the .npy file."""

    @property
    def _notes(self) -> Path:
        return self.path.with_suffix(".json")

    @property
    def finished(self) -> bool:
        """Whether all rows are written."""
        return self.path.exists() and self._notes.exists()

    def maps(self) -> np.ndarray:
        """N x V, memory-mapped, read-only.

        Raises
        ------
        UserError
            When they are not finished.
        """
        if not self.finished:
            raise UserError(
                f"{self.path} is not finished: run `braingen interpret` again, it continues where"
                " it stopped."
            )
        return np.load(self.path, mmap_mode="r")

    def notes(self) -> dict:
        """``images`` and, per image, ``value`` and ``error`` (see `attribution.Attribution`)."""
        return read_json(self._notes)

    def fill(
        self,
        explainer: Explainer,
        image_N: np.ndarray,
        voxels: int,
        query: Callable[[np.ndarray], Query],
        batch_size: int,
        tick: Callable[[int], object] = lambda _: None,
    ) -> None:
        """Explain the missing images in batches, directly into the file.

        A process that is killed loses the batch it was at; the next one continues with the same
        batches.

        Parameters
        ----------
        image_N : np.ndarray
            Ids, one per row.
        voxels : int
            V.
        query : Callable[[np.ndarray], Query]
            What to ask about some rows.
        batch_size : int
            Images at once.
        tick : Callable[[int], object], optional
            Told how many rows are done.
        """
        if self.finished:
            tick(len(image_N))
            return
        part, notes_path = self.path.with_suffix(".part.npy"), self.path.with_suffix(".part.json")
        notes: dict[str, list] = {"images": image_N.tolist(), "value": [], "error": []}
        if part.exists() and notes_path.exists():
            begun = read_json(notes_path)
            if begun["images"] == notes["images"] and np.load(part, mmap_mode="r").shape == (
                len(image_N),
                voxels,
            ):
                notes = begun
        with disk_errors_as_sentences(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            begun_rows = len(notes["value"])
            rows = (
                np.load(part, mmap_mode="r+")
                if begun_rows
                else new_npy(part, np.float32, (len(image_N), voxels))
            )
            tick(begun_rows)
            for first in range(begun_rows, len(image_N), batch_size):
                some = np.arange(first, min(first + batch_size, len(image_N)))
                found = explainer(query(some))
                rows[some] = found.map_BV.cpu().numpy()
                rows.flush()
                notes["value"] += found.value_B.tolist()
                notes["error"] += found.error_B.tolist()
                write_json(notes_path, notes)  # after the rows, so what is counted is there
                tick(int(some[-1]) + 1)
            del rows
            sync_file(part)
            part.replace(self.path)
            notes_path.replace(self._notes)


def mean_maps(maps_NV: np.ndarray, weight_NC: np.ndarray) -> np.ndarray:
    """Weighted means over images, C x V float32, reading a few rows at a time.

    Parameters
    ----------
    maps_NV : np.ndarray
        An array or a memory map.
    weight_NC : np.ndarray
        Weight of an image in every mean, such as membership of a class; a class without images
        gives zeros.
    """
    weight_NC = np.asarray(weight_NC, dtype=np.float64)
    total_C = weight_NC.sum(axis=0)
    sum_CV = np.zeros((weight_NC.shape[1], maps_NV.shape[1]))
    for first in range(0, len(maps_NV), _BLOCK):
        sum_CV += weight_NC[first : first + _BLOCK].T @ np.asarray(
            maps_NV[first : first + _BLOCK], dtype=np.float64
        )
    return (sum_CV / np.where(total_C == 0, 1, total_C)[:, None]).astype(np.float32)


def root_mean_square(maps_NV: np.ndarray) -> np.ndarray:
    """Root mean square contribution of voxels over images, V float32, reading in blocks."""
    total_V = np.zeros(maps_NV.shape[1])
    for first in range(0, len(maps_NV), _BLOCK):
        total_V += np.square(np.asarray(maps_NV[first : first + _BLOCK], dtype=np.float64)).sum(
            axis=0
        )
    return np.sqrt(total_V / len(maps_NV)).astype(np.float32)


def membership(labels_N: Sequence[Iterable[str]], names: Sequence[str]) -> np.ndarray:
    """bool N x C: which image has which label."""
    return np.array(
        [[name in labels for name in names] for labels in map(set, labels_N)], dtype=bool
    ).reshape(len(labels_N), len(names))
