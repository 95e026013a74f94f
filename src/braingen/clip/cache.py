"""What frozen models make of a picture, computed once per picture and kept in a memory-mapped file keyed by content."""

from __future__ import annotations

from collections.abc import Callable, Iterable
import hashlib
import json
import os
from pathlib import Path

import numpy as np
from numpy.lib.format import open_memmap
from rich.progress import track
from torch import Tensor

from braingen.files import disk_errors_as_sentences, temporary_name

Compute = Callable[[np.ndarray], Tensor]
"""Image ids (int64) -> one row per id."""


class Cache:
    """A table with one row per image of the image file, filled as images are asked for.

    Beside every row stands a digest of what it was made from, so a changed image (or caption) is noticed and computed again.

    Parameters
    ----------
    folder : where tables are kept
    name : of the result
    key : what all rows depend on (weights, settings); another key is another table
    num_images : rows of the image file; the table on disk is sparse until it is filled
    compute : makes the rows of a batch of ids
    dtype : of the table
    """

    def __init__(
        self, folder: Path, name: str, key: dict[str, str], num_images: int, compute: Compute, dtype: type[np.floating] = np.float32
    ) -> None:
        self.name, self.num_images, self.compute, self.dtype = name, num_images, compute, dtype
        digest = hashlib.sha256(json.dumps({**key, "images": num_images}, sort_keys=True).encode()).hexdigest()[:16]
        self._rows_path, self._made_from_path = folder / f"{name}-{digest}.rows.npy", folder / f"{name}-{digest}.made_from.npy"

    def of(self, image_ids: np.ndarray, digests: np.ndarray, batch: int = 64) -> np.ndarray:
        """Rows of some images in their order, computing those that are missing.

        Parameters
        ----------
        image_ids : int64
        digests : uint64, not 0, of what each row is made from
        batch : images computed at once; an interruption loses one batch at most
        """
        return np.asarray(self.table(image_ids, digests, batch)[image_ids])

    def table(self, image_ids: np.ndarray, digests: np.ndarray, batch: int = 64) -> np.ndarray:
        """The memory-mapped table of all images, with the rows of some images filled; parameters as for :meth:`of`."""
        self.fill(image_ids, digests, batch)
        return np.load(self._rows_path, mmap_mode="r")

    def stale(self, image_ids: np.ndarray, digests: np.ndarray) -> np.ndarray:
        """Positions, among distinct images, of those that are missing or were made from something else."""
        known = self._made_from_path.exists() and self._rows_path.exists()
        made_from = np.load(self._made_from_path, mmap_mode="r")[image_ids] if known else np.zeros(len(image_ids), dtype=np.uint64)
        return np.flatnonzero(made_from != digests)

    def fill(self, image_ids: np.ndarray, digests: np.ndarray, batch: int = 64) -> None:
        """Compute what is missing or stale among some images.

        Several processes may fill the same table at once, each its own images.
        """
        wanted, first = np.unique(np.asarray(image_ids, dtype=np.int64), return_index=True)
        now = np.asarray(digests, dtype=np.uint64)[first]
        stale = self.stale(wanted, now)
        missing, now = wanted[stale], now[stale]
        rows: np.ndarray | None = None
        made_from: np.ndarray | None = None
        starts = range(0, len(missing), batch)
        for start in track(starts, description=f"{self.name} of {len(missing)} images", disable=len(starts) < 4):
            ids = missing[start : start + batch]
            values = self.compute(ids).detach().float().cpu().numpy().astype(self.dtype)
            with disk_errors_as_sentences(self._rows_path):
                if rows is None or made_from is None:
                    if not self._rows_path.exists():  # somebody removed it: its marks mean nothing any more
                        self._made_from_path.unlink(missing_ok=True)
                    rows = _open_table(self._rows_path, (self.num_images, *values.shape[1:]), self.dtype)
                    made_from = _open_table(self._made_from_path, (self.num_images,), np.uint64)
                made_from[ids] = 0  # should this process end between the next two lines, old digests must not vouch for new rows
                rows[ids] = values
                rows.flush()  # type: ignore[attr-defined]
                made_from[ids] = now[start : start + batch]  # after the rows, so what is marked is there
                made_from.flush()  # type: ignore[attr-defined]


def _open_table(path: Path, shape: tuple[int, ...], dtype: type[np.generic]) -> np.ndarray:
    """Map a file of zeros for writing, made sparse where it is not there yet."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh = temporary_name(path)
        open_memmap(fresh, "w+", dtype, shape).flush()
        try:
            os.link(fresh, path)
        except FileExistsError:
            pass  # another process made it meanwhile and may have filled rows already: both go on in that one
        except OSError:
            os.replace(fresh, path)  # a file system without links
        finally:
            fresh.unlink(missing_ok=True)
    return np.load(path, mmap_mode="r+")


def digest_of_texts(texts: Iterable[Iterable[str]]) -> np.ndarray:
    """A 64-bit digest, never 0, of every group of texts."""
    digests = [int.from_bytes(hashlib.blake2b("\0".join(group).encode(), digest_size=8).digest(), "little") or 1 for group in texts]
    return np.array(digests, dtype=np.uint64)


def fingerprint_of_files(folder: str | Path, sample: int = 1 << 20) -> str:
    """A key that changes when weights change: names and sizes of a folder's files, with the first and last ``sample`` bytes of each.

    A hub name is its own key. A card (``.md``) is no weight: a corrected sentence does not make another model.
    """
    root = Path(folder)
    digest = hashlib.sha256(b"" if root.exists() else str(folder).encode())
    files = [root] if root.is_file() else sorted(path for path in root.rglob("*") if path.is_file() and path.suffix != ".md")
    for path in files:
        size = path.stat().st_size
        digest.update(f"{path.name}/{size}".encode())
        with path.open("rb") as file:
            digest.update(file.read(sample))
            file.seek(max(0, size - sample))
            digest.update(file.read(sample))
    return digest.hexdigest()[:16]
