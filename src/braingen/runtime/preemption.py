"""Handle signals to stop (SIGTERM, or Slurm's warning SIGUSR1): save, and exit with a requeue code.

Most stages stop at once, since their files on disk are always complete. Training keeps its state in
memory and defers signals: it finishes the current step and saves first.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
import signal
import threading
from types import FrameType

REQUEUE = 75
"""Exit code of a stopped run that the same command continues (EX_TEMPFAIL of sysexits.h)."""
SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
"""`scancel`, `kill`, schedulers and shutdowns send SIGTERM; `sbatch --signal=USR1@120` sends
SIGUSR1 before the time limit.
"""


class Stopped(SystemExit):
    """The process received a signal; uncaught, it exits with :data:`REQUEUE`."""

    def __init__(self) -> None:
        super().__init__(REQUEUE)


class Request:
    """Whether a signal was received."""

    def __init__(self) -> None:
        self.made = False

    def raise_if_set(self) -> None:
        """Raise `Stopped` after a signal."""
        if self.made:
            raise Stopped


_patient: list[Request] = []
"""Deferred signals, innermost last; only the last one is set."""


def _on_signal(number: int, frame: FrameType | None) -> None:
    if not _patient:
        raise Stopped
    _patient[-1].made = True


@contextmanager
def stoppable() -> Iterator[None]:
    """Install the signal handlers; possible only in the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, _on_signal) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def defer_signals() -> Iterator[Request]:
    """Record signals instead of being interrupted; the caller checks regularly and stops."""
    request = Request()
    _patient.append(request)
    try:
        yield request
    finally:
        _patient.remove(request)
