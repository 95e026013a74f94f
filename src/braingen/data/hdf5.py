"""Reading rows of one HDF5 dataset in any order, without loading it and without a copy per
worker.
"""

from __future__ import annotations

from collections.abc import Iterator
import os
from pathlib import Path

import h5py
import numpy as np

from braingen.runtime.errors import UserError
from braingen.runtime.files import refuse_stand_in


class HDF5Rows:
    """The rows of an HDF5 dataset, memory-mapped where the file allows it.

    A contiguous, uncompressed dataset is mapped straight from the file, so that all processes of a
    machine share one copy in the page cache. A chunked or compressed one is read by h5py, in
    ascending order (h5py refuses any other), reopened by every process for itself.

    Parameters
    ----------
    path : Path | str
        The HDF5 file.
    dataset : str
        Name of the dataset in it.
    get_it : str
        What a user does when the file is missing or damaged; ends every sentence.

    Raises
    ------
    UserError
        When the file is missing, a stand-in, cut short, or has no such dataset.
    """

    def __init__(self, path: Path | str, dataset: str, get_it: str) -> None:
        self.path = refuse_stand_in(path, get_it)
        self.dataset = dataset
        self._get_it = get_it
        self._file: h5py.File | None = None
        self._process = -1
        self._mapped: np.ndarray | None = None
        with self._open() as file:
            found = file.get(dataset)
            if not isinstance(found, h5py.Dataset):
                names = ", ".join(f"`{name}`" for name in file) or "nothing"
                raise UserError(
                    f"{self.path} has no dataset `{dataset}` (it has {names}); {get_it}."
                )
            self.shape: tuple[int, ...] = found.shape
            self.dtype: np.dtype = found.dtype
            self.attributes = {name: found.attrs[name] for name in found.attrs}
            offset = found.id.get_offset()
            if (
                found.chunks is None
                and found.compression is None
                and offset is not None
                and found.size
            ):
                needed = offset + found.dtype.itemsize * found.size
                # a map reaching past the end of the file would kill the process with SIGBUS instead
                # of raising
                if os.path.getsize(self.path) < needed:
                    raise UserError(
                        f"{self.path} is cut short: {os.path.getsize(self.path)} bytes of {needed};"
                        f" {get_it}."
                    )
                self._mapped = np.asarray(
                    np.memmap(
                        self.path, dtype=found.dtype, mode="r", offset=offset, shape=found.shape
                    )
                )

    def _open(self) -> h5py.File:
        try:
            return h5py.File(self.path, "r")
        except OSError as error:
            reason = str(error).partition("(")[2].rstrip(")") or str(error)
            raise UserError(
                f"{self.path} cannot be opened as HDF5 ({reason}): it is not HDF5, cut short, or"
                f" still being downloaded or written; {self._get_it}."
            ) from error

    def __len__(self) -> int:
        return self.shape[0]

    def __getstate__(self) -> dict:
        """Only the address travels to another process; it maps or opens the file itself."""
        return {"path": self.path, "dataset": self.dataset, "get_it": self._get_it}

    def __setstate__(self, state: dict) -> None:
        self.__init__(**state)  # type: ignore[misc]

    @property
    def mapped(self) -> bool:
        """Whether rows come from a memory map (else through h5py)."""
        return self._mapped is not None

    def _reader(self) -> h5py.Dataset:
        if (
            self._file is None or self._process != os.getpid()
        ):  # a handle inherited through fork must not be used
            self._file, self._process = self._open(), os.getpid()
        return self._file[self.dataset]

    def check(self, rows: np.ndarray) -> np.ndarray:
        """Row numbers as int64, refused by name where they are outside the dataset."""
        rows = np.asarray(rows, dtype=np.int64).ravel()
        outside = (rows < 0) | (rows >= len(self))
        if outside.any():
            raise UserError(
                f"{self.path}: row {int(rows[outside][0])} was asked for, `{self.dataset}` has rows"
                f" 0-{len(self) - 1}; {self._get_it}."
            )
        return rows

    def take(self, rows: np.ndarray) -> np.ndarray:
        """The given rows, in the given order, repeated where asked for twice; a copy in the dtype
        of the file.
        """
        rows = self.check(rows)
        if self._mapped is not None:
            return np.take(self._mapped, rows, axis=0)
        if not len(rows):
            return np.empty((0, *self.shape[1:]), dtype=self.dtype)
        unique, back = np.unique(rows, return_inverse=True)
        try:
            if unique[-1] - unique[0] + 1 == len(unique):  # a run of rows is one contiguous read
                read = self._reader()[int(unique[0]) : int(unique[-1]) + 1]
            else:
                read = self._reader()[unique]
        except OSError as error:
            raise UserError(
                f"{self.path} is damaged: rows {unique[0]}-{unique[-1]} cannot be read ({error});"
                f" {self._get_it}."
            ) from error
        return read if len(unique) == len(rows) and np.array_equal(unique, rows) else read[back]

    def blocks(self, size: int = 64 * 2**20) -> Iterator[tuple[int, np.ndarray]]:
        """All rows in file order, in blocks of about `size` bytes: (first row, rows)."""
        step = max(1, size // max(1, self.dtype.itemsize * int(np.prod(self.shape[1:]))))
        if self._mapped is None and (chunks := self._reader().chunks):
            step = max(
                chunks[0], step // chunks[0] * chunks[0]
            )  # whole chunks, each decompressed once
        for first in range(0, len(self), step):
            yield first, self.take(np.arange(first, min(first + step, len(self))))
