"""Cache outputs of frozen models, once per image, in memory-mapped files keyed by content."""

from __future__ import annotations

from collections.abc import Callable
import errno
import hashlib
import json
import logging
import os
from pathlib import Path

import numpy as np
from torch import Tensor

from braingen.runtime.console import track
from braingen.runtime.errors import UserError
from braingen.runtime.files import (
    UNREADABLE_ARRAY,
    can_be_written,
    disk_errors_as_sentences,
    error_number,
    own_cache,
    temporary_name,
)

logger = logging.getLogger(__name__)
Compute = Callable[[np.ndarray], Tensor]
"""Image ids (int64) -> one row per id."""


class Cache:
    """A table with one row per image of the image file, filled on demand.

    Every row has a digest of its input, so the row of a changed image or caption is computed again.

    Parameters
    ----------
    folder : Path
        Where tables are kept; where it cannot be written, missing rows are kept in its
        `files.own_cache`.
    name : str
        Name of the result.
    key : dict[str, str]
        Everything that all rows depend on (weights, settings); another key is another table.
    num_images : int
        Rows of the image file; the table on disk is sparse until it is filled.
    compute : Compute
        Computes the rows of a batch of ids.
    dtype : type[np.floating], optional
        Type of the table.
    """

    def __init__(
        self,
        folder: Path,
        name: str,
        key: dict[str, str],
        num_images: int,
        compute: Compute,
        dtype: type[np.floating] = np.float32,
    ) -> None:
        self.name, self.num_images, self.compute, self.dtype = name, num_images, compute, dtype
        digest = hashlib.sha256(
            json.dumps({**key, "images": num_images}, sort_keys=True).encode()
        ).hexdigest()[:16]
        self._name = f"{name}-{digest}"
        self._own = own_cache(folder)
        self._lie_in(folder)

    def _lie_in(self, folder: Path) -> None:
        self.folder = folder
        self._rows_path, self._made_from_path = (
            folder / f"{self._name}.rows.npy",
            folder / f"{self._name}.made_from.npy",
        )

    def of(self, image_ids: np.ndarray, digests: np.ndarray, batch: int = 64) -> np.ndarray:
        """Return the rows of some images in their order, computing missing ones.

        Parameters
        ----------
        image_ids : np.ndarray
            Int64.
        digests : np.ndarray
        Uint64, not 0: digests of the rows' inputs.
        batch : int, optional
            Images computed at once; an interruption loses one batch at most.
        """
        return np.asarray(self.table(image_ids, digests, batch)[image_ids])

    def table(self, image_ids: np.ndarray, digests: np.ndarray, batch: int = 64) -> np.ndarray:
        """Return the memory-mapped table, with the rows of some images filled; as :meth:`of`."""
        self.fill(image_ids, digests, batch)
        found = self._tables()
        if found is None:  # removed or damaged since
            raise UserError(
                f"{self._rows_path} changed while it was used: start the same command again."
            )
        return found[0]

    def _tables(self) -> tuple[np.memmap, np.memmap] | None:
        """Map rows and digests; None where they are missing, or not tables of this cache."""
        rows, made_from = _mapped(self._rows_path), _mapped(self._made_from_path)
        if rows is None or made_from is None:
            return None
        if (
            rows.dtype != self.dtype
            or made_from.dtype != np.uint64
            or rows.shape[:1] + made_from.shape != (self.num_images,) * 2
        ):
            return None
        return rows, made_from

    def stale(self, image_ids: np.ndarray, digests: np.ndarray) -> np.ndarray:
        """Positions, among distinct images, of rows that are missing or have another digest."""
        found = self._tables()
        made_from = (
            found[1][image_ids] if found is not None else np.zeros(len(image_ids), dtype=np.uint64)
        )
        return np.flatnonzero(made_from != digests)

    def fill(self, image_ids: np.ndarray, digests: np.ndarray, batch: int = 64) -> None:
        """Compute the missing and stale rows of some images.

        Several processes may fill one table at once, each for its own images.

        Raises
        ------
        UserError
            When a result is NaN or infinite, or the disk is full; what was computed before is kept.
        """
        wanted, first = np.unique(np.asarray(image_ids, dtype=np.int64), return_index=True)
        now = np.asarray(digests, dtype=np.uint64)[first]
        stale = self.stale(wanted, now)
        if len(stale) and self.folder != self._own and not can_be_written(self.folder):
            # a shared, read-only data folder: missing rows are kept elsewhere
            self._lie_in(self._own)
            logger.warning(
                "The folder of caches cannot be written: %s of images are kept in %s.",
                self.name,
                self._own,
            )
            self.fill(image_ids, digests, batch)
            return
        missing, now = wanted[stale], now[stale]
        ready = False
        starts = range(0, len(missing), batch)
        for start in track(
            starts, description=f"{self.name} of {len(missing)} images", disable=len(starts) < 4
        ):
            ids = missing[start : start + batch]
            with np.errstate(over="ignore"):  # reported in the next line
                values = self.compute(ids).detach().float().cpu().numpy().astype(self.dtype)
            self._refuse_not_finite(values, ids)
            with disk_errors_as_sentences(self._rows_path):
                if not ready:
                    self._make_tables((self.num_images, *values.shape[1:]))
                    ready = True
                # if this process ends between the next lines, an old digest must not match a new
                # row
                _write_rows(self._made_from_path, ids, np.zeros(len(ids), dtype=np.uint64))
                _write_rows(self._rows_path, ids, values)
                # digests last, so a marked row is complete
                _write_rows(self._made_from_path, ids, now[start : start + batch])

    def _refuse_not_finite(self, values: np.ndarray, ids: np.ndarray) -> None:
        wrong = ~np.isfinite(values).reshape(len(ids), -1).all(axis=1)
        if wrong.any():
            raise UserError(
                f"{self.name} of image {int(ids[wrong][0])} ({int(wrong.sum())} of {len(ids)}"
                f" computed) is NaN or infinite as {np.dtype(self.dtype).name}: check that"
                " image and the weights of the model."
            )

    def _make_tables(self, shape: tuple[int, ...]) -> None:
        """Create missing tables of zeros; damaged and misshapen ones are replaced."""
        for path, wanted, dtype in (
            (self._rows_path, shape, self.dtype),
            (self._made_from_path, shape[:1], np.dtype(np.uint64)),
        ):
            there = _mapped(path)
            if path.exists() and (there is None or there.shape != wanted or there.dtype != dtype):
                path.unlink(missing_ok=True)
        if not self._rows_path.exists():  # the digests of a removed table are invalid
            self._made_from_path.unlink(missing_ok=True)
        _make_table(self._rows_path, shape, self.dtype)
        _make_table(self._made_from_path, shape[:1], np.uint64)


def _mapped(path: Path) -> np.memmap | None:
    """Map the array in a file; None where there is no readable array."""
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except UNREADABLE_ARRAY:
        return None


def _make_table(path: Path, shape: tuple[int, ...], dtype: type[np.generic]) -> None:
    """Create a sparse file of zeros, unless it exists."""
    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = temporary_name(path)
    try:
        with open(fresh, "wb") as handle:
            np.lib.format.write_array_header_1_0(
                handle, {"descr": np.dtype(dtype).str, "fortran_order": False, "shape": shape}
            )
            handle.truncate(handle.tell() + np.dtype(dtype).itemsize * int(np.prod(shape)))
        os.link(fresh, path)
    except FileExistsError:
        # another process made it meanwhile and may have filled rows: both use that one
        pass
    except OSError as error:
        if error_number(error) in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES):
            raise
        os.replace(fresh, path)  # a file system without links
    finally:
        fresh.unlink(missing_ok=True)


def _write_rows(path: Path, ids: np.ndarray, values: np.ndarray) -> None:
    """Write rows of a table in place, not through a map, which would crash on a full disk."""
    table = np.load(path, mmap_mode="r", allow_pickle=False)
    offset, size = table.offset, values[0].nbytes
    descriptor = os.open(path, os.O_WRONLY)
    try:
        for row, value in zip(ids.tolist(), np.ascontiguousarray(values)):
            content, done = value.tobytes(), 0
            while done < size:
                done += os.pwrite(descriptor, content[done:], offset + row * size + done)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
