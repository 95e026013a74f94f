"""One process per folder."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
import errno
import fcntl
import json
import os
from pathlib import Path
import socket
import time
from typing import Any

from braingen.runtime.errors import UserError
from braingen.runtime.files import disk_errors_as_sentences

_OTHER_HOST_TIMEOUT = (
    15 * 60
)  # seconds without a heartbeat after which another machine's lock is stale
_HEARTBEAT = 30  # seconds between heartbeats, which touch the lock
_open_here: set[Path] = set()  # POSIX locks do not exclude the process that holds them


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # alive, of another user
    return True


class FolderLock:
    """Lock of a run folder: one process at a time.

    The lock is the kernel's (POSIX record lock) and ends with its process, so the lock file of a
    dead process is taken over. The file names the holder. Where machines do not see each other's
    locks, another machine's entry counts while it has a recent heartbeat, unless it is the same
    Slurm job, requeued.
    """

    def __init__(self, folder: Path) -> None:
        self.path = (folder / ".lock").resolve()
        if self.path in _open_here:
            raise UserError(f"{folder} is already open in this process; close that run first.")
        with disk_errors_as_sentences(folder):
            self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            holder = self._holder()
            if self._taken(holder):
                who = (
                    f"process {holder['pid']} on {holder['host']}" if holder else "another process"
                )
                raise UserError(
                    f"{folder} is in use by {who}: two runs cannot share a folder; wait for it to"
                    " end or give another --model_name."
                )
            here = {
                "pid": os.getpid(),
                "host": socket.gethostname(),
                "job": os.environ.get("SLURM_JOB_ID"),
            }
            if (
                holder
                and holder["host"] != here["host"]
                and not (holder.get("job") and holder["job"] == here["job"])
            ):
                silent = time.time() - os.fstat(self._file).st_mtime
                if silent < _OTHER_HOST_TIMEOUT:
                    raise UserError(
                        f"{folder} was in use by process {holder['pid']} on {holder['host']}"
                        f" {silent:.0f} seconds ago: if that has ended, remove {self.path} and"
                        " start again."
                    )
            os.ftruncate(self._file, 0)
            os.pwrite(self._file, json.dumps(here).encode(), 0)
        except BaseException:
            os.close(self._file)
            raise
        self._touched = time.monotonic()
        _open_here.add(self.path)

    def _taken(self, holder: Mapping[str, Any] | None) -> bool:
        """Take the kernel's lock; True where another process has it."""
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                return True
            # a file system without locks: check whether the process in the file is alive
            return (
                holder is not None
                and holder["host"] == socket.gethostname()
                and _alive(holder["pid"])
            )
        return False

    def _holder(self) -> dict[str, Any] | None:
        try:
            holder = json.loads(os.pread(self._file, 4096, 0))
            return holder if {"pid", "host"} <= set(holder) else None
        except (ValueError, TypeError):
            return None  # empty: released properly

    def touch(self) -> None:
        """Touch the lock file as a heartbeat."""
        if time.monotonic() - self._touched > _HEARTBEAT:
            os.utime(self.path)
            self._touched = time.monotonic()

    def release(self) -> None:
        """Empty the file and release it; removing it would race with waiting processes."""
        os.ftruncate(self._file, 0)
        os.close(self._file)
        _open_here.discard(self.path)


@contextmanager
def only_writer(scratch: Path) -> Iterator[None]:
    """Lock a folder of unfinished files against other processes.

    Raises
    ------
    UserError
        When another process holds it.
    """
    with open(scratch / "lock", "wb") as handle:
        try:
            fcntl.lockf(
                handle, fcntl.LOCK_EX | fcntl.LOCK_NB
            )  # released by the system, however the process ends
        except OSError as error:
            raise UserError(
                f"Another process is writing {scratch.parent}; wait until it is done."
            ) from error
        yield
