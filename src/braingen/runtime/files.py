"""Atomic writes, and readable errors for full or unavailable disks."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
import errno
import hashlib
import json
import os
from pathlib import Path
import re
import shutil
import struct
import tokenize
from typing import IO, Any
import zipfile
import zlib

from braingen.runtime.errors import UserError

_DISK_TROUBLE = {
    errno.ENOSPC: (
        "the disk is full: free some space or choose another folder, then start the same command"
        " again"
    ),
    errno.EDQUOT: (
        "your disk quota is used up: free some space or choose another folder, then start the same"
        " command again"
    ),
    errno.EROFS: "the file system is read-only: choose a folder that can be written",
    errno.EACCES: (
        "you have no permission to write there: choose another folder or change its permissions"
    ),
    errno.EPERM: (
        "you have no permission to write there: choose another folder or change its permissions"
    ),
    errno.ENOTDIR: "a part of that path is a file, not a folder: choose another path",
    errno.EEXIST: "a file of that name is in the way: remove it or choose another path",
    errno.EIO: "the disk reported a hardware error: choose another disk and check the system log",
}
UNREADABLE_ARRAY = (
    OSError,
    ValueError,
    EOFError,
    SyntaxError,
    tokenize.TokenError,
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    LookupError,
    TypeError,
    RuntimeError,  # NotImplementedError and RecursionError among them
    MemoryError,
    OverflowError,
)
"""Errors of NumPy (which parses headers as Python literals), zipfile and h5py for damaged files."""
_LFS_POINTER = b"version https://git-lfs.github.com/spec/"


_NUMBER_IN_TEXT = re.compile(r"os error (\d+)|errno = (\d+)|\[Errno (\d+)\]")
"""Forms in which safetensors (Rust), HDF5 and Python state the operating system's error number."""
_WRITTEN_IN_PART = re.compile(
    r"\d+ requested and \d+ written|PytorchStreamWriter failed writing|unexpected pos \d+ vs \d+"
)
"""Errors of NumPy and PyTorch for partial writes, without an error number."""


def error_number(error: BaseException | None) -> int:
    """Return the operating system's error number, also from wrapped exceptions; 0 if none."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if isinstance(error, OSError) and error.errno:
            return error.errno
        if not isinstance(error, UserError):
            if found := _NUMBER_IN_TEXT.search(str(error)):
                return int(next(number for number in found.groups() if number))
            if _WRITTEN_IN_PART.search(str(error)):
                return errno.ENOSPC
        error = error.__cause__
    return 0


def disk_trouble(error: BaseException) -> str | None:
    """Advise on an error of the disk, as the second half of a message; None for other errors."""
    return None if isinstance(error, UserError) else _DISK_TROUBLE.get(error_number(error))


@contextmanager
def disk_errors_as_sentences(path: Path | str) -> Iterator[None]:
    """Turn errors of a full or read-only disk into a `UserError` that names `path`.

    This includes errors that libraries wrap (safetensors, HDF5, NumPy, PyTorch); other exceptions
    pass unchanged.

    Raises
    ------
    UserError
        On a full disk, an exhausted quota, a read-only file system, missing permission or a broken
        disk.
    """
    try:
        yield
    except Exception as error:
        trouble = disk_trouble(error)
        if trouble is None:
            raise
        raise UserError(
            f"Cannot write {path}: {trouble}. What was there before is untouched."
        ) from error


def _sync_folder(folder: Path) -> None:
    """Make a rename inside `folder` durable; file systems without support are ignored."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):
            raise
    finally:
        os.close(descriptor)


def sync_file(path: Path) -> None:
    """Flush a written file to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def temporary_name(path: Path) -> Path:
    """Return a hidden temporary name beside `path`, unique to this process."""
    return path.with_name(f".{path.name}.tmp-{os.getpid()}")


def clear_temporaries(folder: Path) -> None:
    """Remove temporary files of killed processes from a folder (not below it)."""
    for left in folder.glob(".*.tmp-*"):
        shutil.rmtree(left) if left.is_dir() else left.unlink(missing_ok=True)


@contextmanager
def replaced_path(path: Path | str) -> Iterator[Path]:
    """Yield a temporary path; on success it is synced and renamed to `path`, else removed.

    For writers that open the file themselves. A reader always finds the old or the new file.
    """
    path = Path(path)
    with disk_errors_as_sentences(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = temporary_name(path)
        try:
            yield temporary
            sync_file(temporary)
            os.replace(temporary, path)
            _sync_folder(path.parent)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


@contextmanager
def replaced_file(path: Path | str, mode: str = "wb") -> Iterator[IO[Any]]:
    """Like `replaced_path`, with the file already open (`mode` is "wb" or "w"; text is UTF-8)."""
    with (
        replaced_path(path) as temporary,
        open(temporary, mode, encoding=None if "b" in mode else "utf-8") as handle,
    ):
        yield handle
        handle.flush()


@contextmanager
def replaced_folder(path: Path | str) -> Iterator[Path]:
    """Yield an empty temporary folder; on success it replaces `path`.

    A folder cannot be renamed over a full one, so the old one is renamed first; `recover_folder`
    restores it if the process is killed between the two renames.
    """
    path = Path(path)
    with disk_errors_as_sentences(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        recover_folder(path)
        temporary, aside = temporary_name(path), _aside_name(path)
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        try:
            yield temporary
            for file in sorted(temporary.rglob("*")):
                if file.is_file():
                    sync_file(file)
            if path.exists():
                os.replace(path, aside)
            os.replace(temporary, path)
            _sync_folder(path.parent)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            recover_folder(path)
            raise
        shutil.rmtree(aside, ignore_errors=True)


@contextmanager
def replaced_parts(
    folder: Path | str, parts: Collection[str], index: str, keep: bool = False
) -> Iterator[Path]:
    """Yield an empty temporary folder; on success its content replaces the parts of `folder`.

    Other files of the folder are kept. The index, without which the folder is not read, is removed
    before the first part is replaced and written last, so parts of two saves are never mixed.

    Parameters
    ----------
    folder : Path | str
        Created if missing.
    parts : Collection[str]
        Names of its parts; parts that are not written again are removed.
    index : str
        Name of the file without which the folder is not read.
    keep : bool, optional
        Keep the files of parts that are not written again.
    """
    folder = Path(folder)
    with disk_errors_as_sentences(folder):
        folder.mkdir(parents=True, exist_ok=True)
        clear_temporaries(folder)
        temporary = temporary_name(folder / "parts")
        temporary.mkdir()
        try:
            yield temporary
            for file in sorted(temporary.rglob("*")):
                if file.is_file():
                    sync_file(file)
            (folder / index).unlink(missing_ok=True)
            for name in parts:
                if not keep and (folder / name).is_dir():
                    shutil.rmtree(folder / name)
            for source in sorted(temporary.rglob("*"), key=lambda path: path == temporary / index):
                if source.is_file():
                    target = folder / source.relative_to(temporary)
                    target.parent.mkdir(parents=True, exist_ok=True)
                    os.replace(source, target)
            _sync_folder(folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def _aside_name(path: Path) -> Path:
    return path.with_name(f".{path.name}.before")


def recover_folder(path: Path | str) -> None:
    """Undo a `replaced_folder` that was killed between its two renames."""
    path = Path(path)
    aside = _aside_name(path)
    if aside.exists():
        if path.exists():
            shutil.rmtree(aside)
        else:
            os.replace(aside, path)


def write_text(path: Path | str, text: str) -> None:
    """Write a UTF-8 text file atomically."""
    with replaced_file(path, "w") as handle:
        handle.write(text)


def write_json(path: Path | str, value: Any) -> None:
    """Write JSON atomically, indented, keys in the order given, one newline at the end."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def reserve(path: Path | str, size: int) -> None:
    """Allocate a file's full size on the disk, so that a memory map of it can be filled.

    Writing through a map of a sparse file kills the process with SIGBUS when the disk is full; this
    raises ENOSPC instead.
    """
    descriptor = os.open(path, os.O_RDWR)
    try:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(descriptor, 0, size)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):  # no support by the file system
            raise
    finally:
        os.close(descriptor)


def nearest_folder(path: Path | str) -> Path:
    """Return a path, or the nearest folder above it that exists."""
    path = Path(path).absolute()
    return next(folder for folder in (path, *path.parents) if folder.exists())


def can_be_written(folder: Path) -> bool:
    """Whether files can be created in a folder, which is created if missing."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = temporary_name(folder / "probe")
        probe.touch()
        probe.unlink()
    except OSError:
        return False
    return True


def own_cache(folder: Path) -> Path:
    """Return the user's cache folder for a read-only folder, below XDG_CACHE_HOME or ~/.cache."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    return (
        home / "braingen" / hashlib.sha256(os.fsencode(os.path.realpath(folder))).hexdigest()[:16]
    )


def free_bytes(path: Path | str) -> int:
    """Free bytes on the disk of a path, which need not exist."""
    return shutil.disk_usage(nearest_folder(path)).free


def refuse_small_disk(path: Path | str, needed: int, what: str, instead: str) -> None:
    """Refuse work that does not fit on the disk.

    Parameters
    ----------
    path : Path | str
        Where it is written.
    needed : int
        Bytes still to be written.
    what : str
        Begins the message.
    instead : str
        What the user may do besides freeing space; ends the message.

    Raises
    ------
    UserError
        When less is free.
    """
    free = free_bytes(path)
    if needed > free:
        raise UserError(
            f"{what} need {needed / 1e9:.1f} GB more in {path}, where {free / 1e9:.1f} GB are free:"
            f" free some space, {instead}."
        )


def identity(path: Path | str) -> str:
    """Return size and modification time of a file, to detect changes without reading it."""
    status = os.stat(path)
    return f"{status.st_size}-{status.st_mtime_ns}"


def sha256_of(path: Path | str) -> str:
    """Digest of a file's content, read in chunks."""
    digest = hashlib.sha256()
    with open(path, "rb") as handle:
        while piece := handle.read(1 << 22):
            digest.update(piece)
    return digest.hexdigest()


def refuse_stand_in(path: Path | str, get_it: str) -> Path:
    """Refuse a path that does not hold the expected data.

    Parameters
    ----------
    path : Path | str
        The file to be read.
    get_it : str
        What the user should do when it is missing or replaced; ends the message.

    Raises
    ------
    UserError
        When the file is missing, a folder, empty, unreadable, a Git-LFS or git-annex pointer, or a
        web page saved in its place.
    """
    path = Path(path)
    if not path.exists():
        if path.is_symlink():
            raise UserError(
                f"{path} is a link to {os.readlink(path)}, which does not exist; {get_it}."
            )
        raise UserError(f"{path} is missing; {get_it}.")
    if path.is_dir():
        raise UserError(f"{path} is a folder, a file was expected; {get_it}.")
    try:
        with open(path, "rb") as handle:
            start = handle.read(256)
    except PermissionError as error:
        raise UserError(
            f"{path} cannot be read: you have no permission; change its permissions."
        ) from error
    if not start:
        raise UserError(f"{path} is empty (0 bytes); {get_it}.")
    if start.startswith(_LFS_POINTER):
        raise UserError(
            f"{path} is a Git-LFS pointer of {path.stat().st_size} bytes, not the data; run `git"
            f" lfs pull` there, or {get_it}."
        )
    if start.startswith((b"/annex/objects/", b".git/annex/")) or b"/.git/annex/objects/" in start:
        raise UserError(
            f"{path} is a git-annex pointer, its content is not here; run `datalad get` there, or"
            f" {get_it}."
        )
    if start.lstrip()[:14].lower().startswith((b"<!doctype html", b"<html")):
        raise UserError(f"{path} is a web page saved under the name of the data; {get_it}.")
    return path
