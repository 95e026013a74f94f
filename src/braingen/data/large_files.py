"""Large files made in pieces: their bytes are reserved at once, filled through memory maps, and
given their name when all is there.
"""

from __future__ import annotations

import mmap
import os
from pathlib import Path
import tempfile
from typing import Any, NamedTuple

import h5py
import numpy as np

from braingen.runtime.files import disk_errors_as_sentences, sync_file


class ArrayOnDisk(NamedTuple):
    """Where an array lies in a file; what travels to another process instead of the array."""

    path: Path
    dtype: np.dtype
    offset: int
    """Bytes before the first element."""
    shape: tuple[int, ...]

    def map(self, writable: bool = False) -> np.memmap:
        """Memory-map it."""
        return np.memmap(
            self.path,
            dtype=self.dtype,
            mode="r+" if writable else "r",
            offset=self.offset,
            shape=self.shape,
        )


def in_hdf5(path: Path, dataset: str) -> ArrayOnDisk:
    """A contiguous dataset of an HDF5 file."""
    with h5py.File(path, "r") as file:
        found = file[dataset]
        return ArrayOnDisk(path, found.dtype, found.id.get_offset(), found.shape)


def reserve_hdf5(
    path: Path, dataset: str, shape: tuple[int, ...], dtype: str, attributes: dict[str, Any]
) -> ArrayOnDisk:
    """Make an HDF5 file with one contiguous dataset that can be mapped and filled in pieces, unless
    it is there already.
    """
    if not path.exists():
        unfinished = path.with_suffix(".new")
        with h5py.File(unfinished, "w") as file:
            properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
            properties.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)  # its bytes get their place now
            properties.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
            properties.set_obj_track_times(False)  # equal content, equal file
            made = h5py.h5d.create(
                file.id,
                dataset.encode(),
                h5py.h5t.py_create(np.dtype(dtype)),
                h5py.h5s.create_simple(shape),
                properties,
            )
            for name, value in attributes.items():
                h5py.Dataset(made).attrs[name] = value
        os.replace(unfinished, path)
    return in_hdf5(path, dataset)


def publish(part: Path, path: Path) -> None:
    """Give a file whose pieces are all there its name."""
    sync_file(part)
    os.replace(part, path)


def scratch_array(folder: Path, shape: tuple[int, ...]) -> np.ndarray:
    """A float32 array for the time that it is used, in a file without a name, so that memory does
    not grow with it.

    Pages of a mapped file are the system's to drop, unlike a process's own. Zeros are written
    first: a disk that is full says so now, and does not kill the process when the array is filled.
    """
    size = 4 * int(np.prod(shape))
    with disk_errors_as_sentences(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            for first, last in blocks(size, 1 << 20):
                file.write(bytes(last - first))
            file.flush()
            return np.asarray(np.memmap(file, dtype=np.float32, mode="r+", shape=shape))


def release(array: np.ndarray) -> None:
    """Give back the pages of a mapped array that this process holds; they are read again when they
    are needed, and nothing is lost.

    The system drops them itself when memory is short, but until then they count as this process's.
    """
    mapped = getattr(array, "_mmap", None)
    if mapped is not None and hasattr(mmap, "MADV_DONTNEED"):
        mapped.madvise(mmap.MADV_DONTNEED)


def blocks(total: int, size: int) -> list[tuple[int, int]]:
    """Cut 0..total into pieces: (first, last + 1)."""
    return [(first, min(first + size, total)) for first in range(0, total, size)]
