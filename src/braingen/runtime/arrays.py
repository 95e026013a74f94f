"""Read arrays of untrusted files: .npy, .npz and HDF5.

Nothing is unpickled. The declared size is compared with the file and with free memory before
anything is read.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any
import zipfile

import numpy as np
import psutil

from braingen.runtime.errors import UserError, reason
from braingen.runtime.files import UNREADABLE_ARRAY, refuse_stand_in, reserve

LARGEST_SHARE = 0.9
"""Largest share of free memory that an array may take; more could end the process."""


def refuse_more_than_memory(size: int, what: str, instead: str) -> None:
    """Refuse to read data that do not fit into memory.

    Parameters
    ----------
    size : int
        Bytes.
    what : str
        Begins the message: the file and its part.
    instead : str
        What the user should do; ends the message.

    Raises
    ------
    UserError
        When less memory is free.
    """
    free = psutil.virtual_memory().available
    if size > LARGEST_SHARE * free:
        raise UserError(
            f"{what} declares {size / 1e9:,.1f} GB, {free / 1e9:,.1f} GB of memory are free;"
            f" {instead}."
        )


def read_npy(path: Path | str, get_it: str) -> np.ndarray:
    """Read the array of a .npy file, memory-mapped.

    Raises
    ------
    UserError
        When it is missing, damaged, shorter than declared, or holds Python objects.
    """
    refuse_stand_in(path, get_it)
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except UNREADABLE_ARRAY as error:
        raise UserError(
            f"{path} cannot be read as .npy: it is not a readable array ({_reason(error)});"
            f" {get_it}."
        ) from error


def read_npz(path: Path | str, get_it: str) -> dict[str, np.ndarray]:
    """Read the arrays of a .npz file by name.

    Raises
    ------
    UserError
        When it is missing, damaged, declares more data than it has or than fits into memory, or
        holds Python objects.
    """
    refuse_stand_in(path, get_it)
    try:
        with zipfile.ZipFile(path) as archive:
            for member in archive.infolist():
                refuse_more_than_memory(
                    max(member.file_size, _declared(archive, member)),
                    f"{path}: {member.filename}",
                    get_it,
                )
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except UserError:
        raise
    except UNREADABLE_ARRAY as error:
        raise UserError(f"{path} cannot be read as .npz ({_reason(error)}); {get_it}.") from error


def _declared(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> int:
    """Number of bytes that a member's header declares."""
    if not member.filename.endswith(".npy"):
        return 0
    with archive.open(member) as handle:
        shape, dtype = read_header(handle)
    return int(np.prod(shape, dtype=object)) * dtype.itemsize


def read_header(handle: Any) -> tuple[tuple[int, ...], np.dtype]:
    """Read shape and type from the header of an array in .npy form.

    Raises
    ------
    ValueError
        When it is not such a header.
    """
    version = np.lib.format.read_magic(handle)
    if version == (1, 0):
        shape, _, dtype = np.lib.format.read_array_header_1_0(handle)
    elif version == (2, 0):
        shape, _, dtype = np.lib.format.read_array_header_2_0(handle)
    else:
        raise ValueError(f"version {version} of the .npy format is not known")
    return shape, dtype


def read_dataset(dataset: Any, path: Path | str, get_it: str) -> np.ndarray:
    """Read a whole HDF5 dataset.

    Raises
    ------
    UserError
        When it is damaged, holds no plain values, or declares more than fits into memory.
    """
    refuse_more_than_memory(
        dataset.size * dataset.dtype.itemsize if dataset.size else 0,
        f"{path}: {dataset.name}",
        get_it,
    )
    if dataset.dtype.hasobject:
        raise UserError(
            f"{path}: {dataset.name} holds {dataset.dtype}, numbers were expected; {get_it}."
        )
    try:
        return dataset[()]
    except UNREADABLE_ARRAY as error:
        raise UserError(
            f"{path}: {dataset.name} cannot be read ({reason(error)}); {get_it}."
        ) from error


def _reason(error: BaseException) -> str:
    if "allow_pickle" in str(error) or "Python objects" in str(error):
        return "it holds Python objects, which could run code"
    return reason(error)


def whole_numbers(ids: Any, path: Path | str, get_it: str) -> np.ndarray:
    """Convert image ids to int64, flat.

    Raises
    ------
    UserError
        When they are not whole numbers.
    """
    found = np.asarray(ids).ravel()
    if (
        found.dtype.kind not in "iuf"
        or not np.isfinite(found).all()
        or (found != np.floor(found)).any()
    ):
        shown = "" if not found.size else f" (the first is {str(found[0])[:40]})"
        raise UserError(
            f"{path}: image ids are no whole numbers but {found.dtype}{shown}; {get_it}."
        )
    if found.size and (found.min() < -(2**62) or found.max() > 2**62):
        raise UserError(
            f"{path}: image ids reach {found.max():g}, ids of images were expected; {get_it}."
        )
    return found.astype(np.int64)


def new_npy(path: Path | str, dtype: Any, shape: tuple[int, ...]) -> np.memmap:
    """Create a memory-mapped .npy file whose disk space is reserved.

    Writing to the map of a sparse file on a full disk would kill the process.
    """
    made = np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape)
    if made.nbytes:
        reserve(path, made.offset + made.nbytes)
    return made
