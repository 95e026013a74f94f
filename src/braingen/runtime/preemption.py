"""Told to stop (SIGTERM, or Slurm's warning SIGUSR1): save, then leave with a code by which a job
is put in the queue again.

Most stages are stopped where they are, since what is on the disk is always whole. Training, which
keeps its state in memory, defers signals: the signal is then noted, and the step in hand is
finished and saved first.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
import signal
import threading
from types import FrameType

REQUEUE = 75
"""Exit code of a run that was told to stop and continues with the same command (EX_TEMPFAIL of
sysexits.h: try again later).
"""
SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
"""SIGTERM comes from `scancel`, `kill`, schedulers and shutdowns; SIGUSR1 from `sbatch
--signal=USR1@120` before the time limit.
"""


class Stopped(SystemExit):
    """The process was told to stop; where nobody catches it, it ends the process with
    :data:`REQUEUE`.
    """

    def __init__(self) -> None:
        super().__init__(REQUEUE)


class Request:
    """Whether the process was told to stop."""

    def __init__(self) -> None:
        self.made = False

    def raise_if_set(self) -> None:
        """Stop, if told to."""
        if self.made:
            raise Stopped


_patient: list[Request] = []
"""Who has asked to be told instead of being interrupted; the last one counts."""


def _told(number: int, frame: FrameType | None) -> None:
    if not _patient:
        raise Stopped
    _patient[-1].made = True


@contextmanager
def stoppable() -> Iterator[None]:
    """Take the signals as a request to stop in good order, instead of a sudden end; other threads
    than the first cannot.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, _told) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def defer_signals() -> Iterator[Request]:
    """Note a request to stop instead of being interrupted by it; whoever defers signals looks at
    it often and heeds it.
    """
    request = Request()
    _patient.append(request)
    try:
        yield request
    finally:
        _patient.remove(request)
