"""The responses of one subject: rows of the betas file, memory-mapped, and what is wrong with its
voxels.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from braingen.data import nsd
from braingen.data.hdf5 import HDF5Rows
from braingen.runtime.data_layout import Layout
from braingen.runtime.errors import UserError
from braingen.runtime.files import UNREADABLE_ARRAY, identity, replaced_file


class Betas:
    """z-scored responses (trials, voxels) of one subject.

    Nothing is loaded until rows are asked for; `in_memory` reads the file once, front to back, for
    disks on which random reads are slow.

    Parameters
    ----------
    path : Path | str
        HDF5 file with dataset `betas`.
    in_memory : bool, optional
        Whether to read the whole of it now.

    Raises
    ------
    UserError
        When the file is missing, damaged, or holds something else than z-scored floating-point
        responses.
    """

    def __init__(self, path: Path | str, in_memory: bool = False) -> None:
        self.rows_on_disk = HDF5Rows(path, nsd.BETAS_DATASET, nsd.GET_IT)
        self.path = self.rows_on_disk.path
        shape, dtype = self.rows_on_disk.shape, self.rows_on_disk.dtype
        if len(shape) != 2 or 0 in shape:
            raise UserError(
                f"{self.path}: `betas` has shape {shape}, (trials, voxels) was expected;"
                f" {nsd.GET_IT}."
            )
        if dtype.kind != "f":
            raise UserError(
                f"{self.path}: `betas` is {dtype}, z-scored floating point was expected (raw NSD"
                " betas are integers, 300 to the percent); run `braingen prepare` on the raw"
                " release."
            )
        self._loaded: np.ndarray | None = None
        if in_memory:
            self._loaded = np.empty(shape, dtype=np.float32)
            for first, block in self.rows_on_disk.blocks():
                self._loaded[first : first + len(block)] = block

    @classmethod
    def of(cls, layout: Layout, subject: int, in_memory: bool = False) -> Betas:
        """The betas of a subject of a data folder."""
        return cls(layout.betas(subject), in_memory)

    @property
    def trials(self) -> int:
        """Rows of the file."""
        return self.rows_on_disk.shape[0]

    @property
    def voxels(self) -> int:
        """Columns of the file, the width of the subject's layer."""
        return self.rows_on_disk.shape[1]

    def rows(self, rows: np.ndarray) -> np.ndarray:
        """Responses of the given trials (B, V), float32, in the given order; duplicates are
        allowed.

        Raises
        ------
        UserError
            When a trial lies outside the file.
        """
        if self._loaded is not None:
            return np.take(self._loaded, self.rows_on_disk.check(rows), axis=0)
        return self.rows_on_disk.take(rows).astype(np.float32, copy=False)

    def check(self, rows: np.ndarray) -> None:
        """Refuse trials that lie outside the file.

        Raises
        ------
        UserError
            For the first of them.
        """
        self.rows_on_disk.check(rows)

    def tensor(self, device: torch.device | str = "cpu") -> Tensor:
        """All responses (trials, voxels), float32, on a device: where they fit on the GPU, no step
        waits for the disk.
        """
        whole = torch.empty((self.trials, self.voxels), dtype=torch.float32, device=device)
        for first, block in self.rows_on_disk.blocks():
            whole[first : first + len(block)] = torch.from_numpy(
                block.astype(np.float32, copy=False)
            )
        return whole


class VoxelReport(NamedTuple):
    """What one pass over a betas file found. N trials, V voxels."""

    not_finite_V: np.ndarray
    """Voxels with a NaN or infinite response in some trial, bool."""
    constant_V: np.ndarray
    """Voxels with the same response in all trials, bool."""
    not_finite_N: np.ndarray
    """Trials with a NaN or infinite response in some voxel, bool."""
    zero_N: np.ndarray
    """Trials in which every voxel is exactly 0: rows reserved but never written, bool."""


def report_voxels(betas: Betas, layout: Layout | None = None) -> VoxelReport:
    """Look through all responses once, in blocks; kept beside the data (by file size and time)
    where that can be written.

    Parameters
    ----------
    betas : Betas
        The file to look through.
    layout : Layout | None, optional
        Data folder that keeps the result; None looks again every time.
    """
    key = identity(betas.path)
    cache = None if layout is None else layout.cache() / "voxels" / f"{betas.path.stem}.npz"
    if cache is not None:
        try:
            with np.load(cache, allow_pickle=False) as stored:
                if str(stored["key"]) == key:
                    return VoxelReport(**{name: stored[name] for name in VoxelReport._fields})
        except UNREADABLE_ARRAY:
            pass  # not looked at yet, or another file since
    V, N = betas.voxels, betas.trials
    least_V, most_V = np.full(V, np.inf, dtype=np.float32), np.full(V, -np.inf, dtype=np.float32)
    bad_V, bad_N, zero_N = np.zeros(V, dtype=bool), np.zeros(N, dtype=bool), np.zeros(N, dtype=bool)
    for first, block in betas.rows_on_disk.blocks():
        low_V, high_V = block.min(axis=0), block.max(axis=0)  # NaN and infinities pass through both
        rows = slice(first, first + len(block))
        if not (np.isfinite(low_V) & np.isfinite(high_V)).all():
            finite = np.isfinite(block)
            bad_V |= ~finite.all(axis=0)
            bad_N[rows] = ~finite.all(axis=1)
        zero_N[rows] = ~block.any(axis=1)
        least_V, most_V = np.fmin(least_V, low_V), np.fmax(most_V, high_V)
    report = VoxelReport(bad_V, (least_V == most_V) & ~bad_V, bad_N, zero_N)
    if cache is not None:
        try:
            with replaced_file(cache) as handle:
                np.savez(handle, key=np.array(key), **report._asdict())
        except (UserError, OSError):
            pass  # a read-only data folder: looked through again next time
    return report
