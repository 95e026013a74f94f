"""Write pieces of large files with several processes; finished pieces are not made again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
import multiprocessing
import os
from pathlib import Path
import threading
import time
from typing import Any, NamedTuple, TypeVar

import numpy as np
from threadpoolctl import threadpool_limits

from braingen.data.large_files import ArrayOnDisk
from braingen.runtime.console import Progress

Shared = TypeVar("Shared")
Piece = TypeVar("Piece")


def reserve_raw(path: Path, shape: tuple[int, ...], dtype: str) -> ArrayOnDisk:
    """Create a raw scratch file of numbers to be mapped and filled, unless it exists."""
    array = ArrayOnDisk(path, np.dtype(dtype), 0, shape)
    size = array.dtype.itemsize * int(np.prod(shape))
    if not path.exists() or path.stat().st_size != size:
        with open(path, "wb") as handle:
            handle.truncate(size)
    return array


class Workshop(NamedTuple):
    """Folder and processes of the pieces."""

    scratch: Path
    """Folder of unfinished files and of the marks of finished pieces."""
    workers: int
    progress: Progress

    def make(
        self,
        title: str,
        name: str,
        pieces: Sequence[Piece],
        worker: Callable[[Shared, Piece], None],
        shared: Shared,
    ) -> None:
        """Call ``worker(shared, piece)`` for every unfinished piece.

        The worker must flush its output before it returns; the output must not depend on the
        process or the order of pieces.

        Parameters
        ----------
        title : str
            For the progress bar.
        name : str
            Of the folder of marks.
        pieces : Sequence[Piece]
            All pieces, always in the same order.
        worker : Callable[[Shared, Piece], None]
            A module-level function.
        shared : Shared
            Data that all pieces need; sent to each process once.
        """
        marks = self.scratch / name
        marks.mkdir(exist_ok=True)
        missing = [number for number in range(len(pieces)) if not (marks / str(number)).exists()]
        task = self.progress.add_task(
            title, total=len(pieces), completed=len(pieces) - len(missing)
        )
        if self.workers <= 1 or len(missing) <= 1:
            for number in missing:
                worker(shared, pieces[number])
                (marks / str(number)).touch()
                self.progress.advance(task)
            return
        # only numpy runs there, so forking is safe, fast, and needs no guard in the caller's script
        fork = "fork" in multiprocessing.get_all_start_methods()
        context = multiprocessing.get_context("fork" if fork else None)
        pool = ProcessPoolExecutor(
            self.workers, context, initializer=_prepare, initargs=(os.getpid(), worker, shared)
        )
        try:
            for number, result in [
                (number, pool.submit(_work, pieces[number])) for number in missing
            ]:
                result.result()
                (marks / str(number)).touch()
                self.progress.advance(task)
        finally:
            pool.shutdown(cancel_futures=True)


_job: tuple[Callable[[Any, Any], None], Any]


def _prepare(parent: int, worker: Callable[[Any, Any], None], shared: Any) -> None:
    """Prepare a process: one thread, and exit when the parent process was killed."""
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
