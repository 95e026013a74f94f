"""Independent work of the demo side by side: a few processes of one thread each, one per core.

Small networks keep one core busy and a second one hardly more, so two encoders trained in two processes take the time of one.
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
from braingen.console import Progress
from braingen.errors import UserError
from braingen.stages.machine import device_of
from braingen.stopping import SIGNALS, Stopped, patience, stoppable

MOST = 2
"""Processes at most, of about half a gigabyte each."""
_POLL_SECONDS = 0.5


class Task(NamedTuple):
    """A piece of work that needs no other one of its group."""

    name: str
    work: Callable[..., object]
    """A function of a module, called with the arguments; what it makes is on the disk, or returned where it is small."""
    arguments: tuple[Any, ...]
    done: Callable[[], int] = int
    """How much of it is done, looked up on the disk by the process that started it; 0 until its end by default."""
    total: int = 1


class _Outcome(NamedTuple):
    """How a task ended that did not fail by a fault of the program."""

    refused: str = ""
    stopped: bool = False
    made: Any = None
    """What it returned."""


def process_count(config: Config) -> int:
    """How many processes ``run.processes`` means on this machine; 1 on a GPU, which they would share."""
    if config.run.processes:
        return config.run.processes
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return 1 if device_of(config).type == "cuda" else min(MOST, cores)


class Group:
    """Processes that do tasks; without any, the tasks are done here, one after another.

    Parameters
    ----------
    pool : the processes, or None
    """

    def __init__(self, pool: ProcessPoolExecutor | None) -> None:
        self._pool = pool

    def run(self, tasks: Sequence[Task]) -> list[Any]:
        """Do some tasks; returns what they returned, in their order, when all are done.

        Raises
        ------
        UserError
            What a task was refused with; the others are stopped as by SIGTERM, what they did is saved.
        Stopped
            When this process was told to stop; the tasks have stopped in good order then.
        """
        if self._pool is None:
            return [task.work(*task.arguments) for task in tasks]
        with patience() as request, _bars() as progress:
            futures = {self._pool.submit(_do, task.work, task.arguments): task for task in tasks}
            bars = {task.name: progress.add_task(task.name, total=task.total, completed=task.done()) for task in tasks}
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
                request.heed()
            return [future.result().made for future in futures]


ALONE = Group(None)
"""No other process."""


@contextmanager
def group_of(config: Config) -> Iterator[Group]:
    """The processes of a configuration, for as long as the context lasts; left by an exception, they are stopped in good order."""
    count = process_count(config)
    if count == 1:
        yield Group(None)
        return
    pool = ProcessPoolExecutor(count, _context(), initializer=_begin)
    try:
        yield Group(pool)
    except BaseException:
        for process in list((pool._processes or {}).values()):
            process.terminate()
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _context() -> multiprocessing.context.BaseContext:
    """How processes are started.

    Forked from this one, they would inherit the locks of libraries' threads. They are forked from a process
    that has done nothing but import what all of them need, where there is such a thing.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    from multiprocessing import forkserver  # not everywhere

    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, "braingen.stages.evaluate", "braingen.stages.train"])
    forkserver.ensure_running()  # it imports while this process does what comes before the first task
    return context


def _begin() -> None:
    """Prepare a process: one thread, no output of its own, and an end as soon as the process that started it ends, however that ends."""
    torch.set_num_threads(1)
    threadpool_limits(1)
    sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 (for the life of the process)
    for number in (*SIGNALS, signal.SIGINT):  # between tasks there is nothing to save; the process that started this one ends it
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
    return Progress(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
