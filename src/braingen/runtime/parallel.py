"""Run independent tasks of the demo in parallel: a few single-threaded processes, one per core.

Small networks hardly use a second core, so two encoders trained in two processes take the time of
one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
import multiprocessing
from multiprocessing import connection
import os
import signal
import sys
import threading
from typing import Any, NamedTuple

from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from threadpoolctl import threadpool_limits
import torch

from braingen.config import Config
from braingen.runtime.console import Progress
from braingen.runtime.device import device_of
from braingen.runtime.errors import UserError
from braingen.runtime.preemption import SIGNALS, Stopped, defer_signals, stoppable

MOST = 2
"""Largest number of processes, of about half a gigabyte each."""
NEEDED = (__name__, "braingen.evaluation.evaluate", "braingen.training.encoder")
"""Modules that all tasks of the demo need."""
LAST = "braingen.runtime.share_imports"
_POLL_SECONDS = 0.5


class Task(NamedTuple):
    """A task that is independent of the others of its group."""

    name: str
    work: Callable[..., object]
    """A module's function, called with the arguments; writes files, or returns a small result."""
    arguments: tuple[Any, ...]
    done: Callable[[], int] = int
    """Fraction done, read from disk by the parent process; by default 0 until the end."""
    total: int = 1


class _Outcome(NamedTuple):
    """Outcome of a task that was refused, stopped or finished."""

    refused: str = ""
    stopped: bool = False
    made: Any = None
    """Return value."""


def process_count(config: Config) -> int:
    """Resolve ``run.processes`` on this machine; 1 on a GPU, which processes would share."""
    if config.run.processes:
        return config.run.processes
    cores = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    return 1 if device_of(config).type == "cuda" else min(MOST, cores)


class Group:
    """Processes that run tasks; without any, tasks run here in sequence.

    Parameters
    ----------
    pool : ProcessPoolExecutor | None
        The processes, or None.
    """

    def __init__(self, pool: ProcessPoolExecutor | None) -> None:
        self._pool = pool

    def run(self, tasks: Sequence[Task]) -> list[Any]:
        """Run tasks; returns their results in order when all are done.

        Raises
        ------
        UserError
            When a task was refused; the others are stopped as by SIGTERM, and save their work.
        Stopped
            When this process received a signal; the tasks were stopped and saved.
        """
        if self._pool is None:
            return [task.work(*task.arguments) for task in tasks]
        with defer_signals() as request, _bars() as progress:
            futures = {self._pool.submit(_do, task.work, task.arguments): task for task in tasks}
            bars = {
                task.name: progress.add_task(task.name, total=task.total, completed=task.done())
                for task in tasks
            }
            running: set[Future[_Outcome]] = set(futures)
            while running:
                ended, running = wait(running, timeout=_POLL_SECONDS, return_when=FIRST_COMPLETED)
                for task in tasks:
                    progress.update(bars[task.name], completed=task.done())
                for future in ended:
                    outcome = future.result()
                    progress.update(bars[futures[future].name], completed=futures[future].total)
                    if outcome.refused:
                        raise UserError(outcome.refused)
                    if outcome.stopped:
                        raise Stopped
                request.raise_if_set()
            return [future.result().made for future in futures]


ALONE = Group(None)
"""No further process."""


@contextmanager
def group_of(config: Config) -> Iterator[Group]:
    """Open the processes of a configuration; an exception stops and saves their tasks."""
    count = process_count(config)
    if count == 1:
        yield Group(None)
        return
    pool = ProcessPoolExecutor(count, context_of(NEEDED), initializer=_begin)
    try:
        yield Group(pool)
    except BaseException:
        for process in list((pool._processes or {}).values()):
            process.terminate()
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def context_of(imported: Sequence[str]) -> multiprocessing.context.BaseContext:
    """Choose how processes are started.

    Forked from this process they would inherit locks of library threads. Where available they are
    forked from a server process that has only imported what all of them need.

    Parameters
    ----------
    imported : Sequence[str]
        Modules that all of them need.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    from multiprocessing import forkserver  # not on all platforms

    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([*imported, LAST])
    # it imports while this process prepares the first task
    forkserver.ensure_running()
    return context


def _begin() -> None:
    """Prepare a process: one thread, no output, and exit when the parent process ends."""
    torch.set_num_threads(1)
    threadpool_limits(1)
    sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 (for the life of the process)
    for number in (
        *SIGNALS,
        signal.SIGINT,
    ):  # between tasks there is nothing to save; the process that started this one ends it
        signal.signal(number, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None
    sentinel = parent.sentinel

    def watch() -> None:
        connection.wait([sentinel])
        os._exit(1)  # files are whole at any moment

    threading.Thread(target=watch, daemon=True).start()


def _do(work: Callable[..., object], arguments: tuple[Any, ...]) -> _Outcome:
    try:
        with stoppable():
            return _Outcome(made=work(*arguments))
    except UserError as error:
        return _Outcome(refused=str(error))
    except Stopped:
        return _Outcome(stopped=True)


def _bars() -> Progress:
    return Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    )
