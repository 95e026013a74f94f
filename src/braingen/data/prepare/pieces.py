"""Large arrays written in pieces: finished pieces survive an interruption, and all are verified."""

from __future__ import annotations

from collections.abc import Iterable
import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from braingen.data.large_files import ArrayOnDisk, blocks, in_hdf5, publish, release, reserve_hdf5
from braingen.runtime.errors import UserError
from braingen.runtime.files import identity, write_json
from braingen.runtime.text_files import read_json

_VERIFIED_BYTES = 64 * 2**20


def digest(array: np.ndarray) -> str:
    """Digest of an array's bytes."""
    return hashlib.sha256(np.ascontiguousarray(array).data).hexdigest()


def stamp(files: Iterable[Path], *more: Any) -> str:
    """Identity of the files that a piece is made from, and of what else determines it."""
    return " ".join([*(f"{path.name} {identity(path)}" for path in files), *map(str, more)])


class Marks:
    """A mark per finished piece: digests of the piece and of what it was made from.

    Parameters
    ----------
    folder : Path
        Folder of the marks.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def clear(self) -> None:
        """Remove all marks."""
        for mark in self.folder.glob("*.json"):
            mark.unlink()

    def digest_of(self, name: str, made_from: str) -> str | None:
        """Digest of a finished piece; None for one that is unfinished or made from other files."""
        try:
            mark = read_json(self.folder / f"{name}.json")
        except (OSError, ValueError):
            return None
        return mark["sha256"] if mark.get("made_from") == made_from else None

    def finish(self, name: str, made_from: str, sha256: str) -> None:
        """Mark a piece as finished."""
        write_json(self.folder / f"{name}.json", {"made_from": made_from, "sha256": sha256})


class ArrayInPieces:
    """An HDF5 dataset that is written in pieces and gets its name when all of them are verified.

    Parameters
    ----------
    folder : Path
        Folder of the unfinished file and of the marks.
    dataset : str
        Name of the dataset.
    shape : tuple of int
        Shape; an unfinished file of another shape is removed.
    dtype : str
        Type of the values.
    """

    def __init__(self, folder: Path, dataset: str, shape: tuple[int, ...], dtype: str) -> None:
        self._marks, part = Marks(folder), folder / f"{dataset}.hdf5"
        if part.exists() and in_hdf5(part, dataset).shape != shape:
            part.unlink()
        if not part.exists():
            self._marks.clear()
        self._array = reserve_hdf5(part, dataset, shape, dtype, {})
        self._pieces: dict[str, tuple[slice, str]] = {}

    def write(self, name: str, rows: slice, made_from: str, parts: Iterable[np.ndarray]) -> None:
        """Write a piece unless it is finished.

        Parameters
        ----------
        name : str
            Name of the piece.
        rows : slice
            Rows of the array.
        made_from : str
            `stamp` of the files it is made from.
        parts : Iterable[np.ndarray]
            Consecutive rows, not computed for a finished piece.
        """
        sha256 = self._marks.digest_of(name, made_from)
        if sha256 is None:
            out, found, first = self._array.map(writable=True), hashlib.sha256(), rows.start
            for part in parts:
                out[first : first + len(part)] = part
                found.update(np.ascontiguousarray(part, out.dtype).data)
                first += len(part)
                release(out)
            out.flush()
            sha256 = found.hexdigest()
            self._marks.finish(name, made_from, sha256)
        self._pieces[name] = (rows, sha256)

    @property
    def digest_of_pieces(self) -> str:
        """Digest of the digests of all pieces."""
        together = "".join(sha256 for _, sha256 in self._pieces.values())
        return hashlib.sha256(together.encode()).hexdigest()

    def verify(self, path: Path) -> None:
        """Compare the pieces on the disk with what was written.

        Parameters
        ----------
        path : Path
            Name that the file is to get.

        Raises
        ------
        UserError
            When they differ.
        """
        verify(self._array, self._pieces, path)

    def publish(self, path: Path) -> None:
        """Give the file its name."""
        publish(self._array.path, path)


def verify(array: ArrayOnDisk, pieces: dict[str, tuple[slice, str]], path: Path) -> None:
    """Compare rows of an array on the disk with digests; see `ArrayInPieces.verify`."""
    found = array.map()
    row_bytes = max(1, found.dtype.itemsize * int(np.prod(found.shape[1:])))
    for name, (rows, sha256) in pieces.items():
        read = hashlib.sha256()
        for first, last in blocks(rows.stop - rows.start, max(1, _VERIFIED_BYTES // row_bytes)):
            read.update(np.ascontiguousarray(found[rows.start + first : rows.start + last]).data)
            release(found)
        if read.hexdigest() != sha256:
            raise UserError(
                f"{name} of {path} is not on the disk as it was written: remove "
                f"{path.parent / '.preparing'} and start the same command again; look at the disk "
                "if it happens twice."
            )
