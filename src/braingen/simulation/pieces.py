"""Large files made in pieces by several processes: what was finished before a process was killed is not made again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
import multiprocessing
import os
from pathlib import Path
import threading
import time
from typing import Any, NamedTuple, TypeVar

import h5py
import numpy as np
from rich.progress import Progress
from threadpoolctl import threadpool_limits

from braingen.files import sync_file

Shared = TypeVar("Shared")
Piece = TypeVar("Piece")


class ArrayOnDisk(NamedTuple):
    """Where an array lies in a file; what travels to another process instead of the array."""

    path: Path
    dtype: np.dtype
    offset: int
    """Bytes before the first element."""
    shape: tuple[int, ...]

    def map(self, writable: bool = False) -> np.memmap:
        """Memory-map it."""
        return np.memmap(self.path, dtype=self.dtype, mode="r+" if writable else "r", offset=self.offset, shape=self.shape)


def in_hdf5(path: Path, dataset: str) -> ArrayOnDisk:
    """A contiguous dataset of an HDF5 file."""
    with h5py.File(path, "r") as file:
        found = file[dataset]
        return ArrayOnDisk(path, found.dtype, found.id.get_offset(), found.shape)


def reserve_hdf5(path: Path, dataset: str, shape: tuple[int, ...], dtype: str, attributes: dict[str, Any]) -> ArrayOnDisk:
    """Make an HDF5 file with one contiguous dataset that can be mapped and filled in pieces, unless it is there already."""
    if not path.exists():
        unfinished = path.with_suffix(".new")
        with h5py.File(unfinished, "w") as file:
            properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
            properties.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)  # its bytes get their place now
            properties.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
            properties.set_obj_track_times(False)  # equal content, equal file
            made = h5py.h5d.create(
                file.id, dataset.encode(), h5py.h5t.py_create(np.dtype(dtype)), h5py.h5s.create_simple(shape), properties
            )
            for name, value in attributes.items():
                h5py.Dataset(made).attrs[name] = value
        os.replace(unfinished, path)
    return in_hdf5(path, dataset)


def reserve_raw(path: Path, shape: tuple[int, ...], dtype: str) -> ArrayOnDisk:
    """The same for a scratch file of nothing but numbers."""
    array = ArrayOnDisk(path, np.dtype(dtype), 0, shape)
    size = array.dtype.itemsize * int(np.prod(shape))
    if not path.exists() or path.stat().st_size != size:
        with open(path, "wb") as handle:
            handle.truncate(size)
    return array


def publish(part: Path, path: Path) -> None:
    """Give a file whose pieces are all there its name."""
    sync_file(part)
    os.replace(part, path)


def blocks(total: int, size: int) -> list[tuple[int, int]]:
    """Cut 0..total into pieces: (first, last + 1)."""
    return [(first, min(first + size, total)) for first in range(0, total, size)]


class Workshop(NamedTuple):
    """Where pieces are made, and by how many processes."""

    scratch: Path
    """Folder of unfinished files and of the marks of finished pieces."""
    workers: int
    progress: Progress

    def make(self, title: str, name: str, pieces: Sequence[Piece], worker: Callable[[Shared, Piece], None], shared: Shared) -> None:
        """Call ``worker(shared, piece)`` for every piece that was not finished before.

        What it writes must be on its way to the disk when it returns, and must not depend on the process or the order of pieces.

        Parameters
        ----------
        title : for the progress bar
        name : of the folder of marks
        pieces : all pieces, in the same order every time
        worker : a function of a module
        shared : what all pieces need; sent to each process once
        """
        marks = self.scratch / name
        marks.mkdir(exist_ok=True)
        missing = [number for number in range(len(pieces)) if not (marks / str(number)).exists()]
        task = self.progress.add_task(title, total=len(pieces), completed=len(pieces) - len(missing))
        if self.workers <= 1 or len(missing) <= 1:
            for number in missing:
                worker(shared, pieces[number])
                (marks / str(number)).touch()
                self.progress.advance(task)
            return
        # numpy alone works in there, so forking is safe, quick, and needs no guard in a script that calls us
        fork = "fork" in multiprocessing.get_all_start_methods()
        context = multiprocessing.get_context("fork" if fork else None)
        pool = ProcessPoolExecutor(self.workers, context, initializer=_prepare, initargs=(os.getpid(), worker, shared))
        try:
            for number, result in [(number, pool.submit(_work, pieces[number])) for number in missing]:
                result.result()
                (marks / str(number)).touch()
                self.progress.advance(task)
        finally:
            pool.shutdown(cancel_futures=True)


_job: tuple[Callable[[Any, Any], None], Any]


def _prepare(parent: int, worker: Callable[[Any, Any], None], shared: Any) -> None:
    """Begin a process: one thread, and an end of its own when the process that started it was killed."""
    global _job
    _job = worker, shared
    threadpool_limits(1)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _work(piece: Any) -> None:
    worker, shared = _job
    worker(shared, piece)
