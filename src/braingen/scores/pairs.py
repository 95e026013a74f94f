"""Pictures beside the ones that were seen: matched by image id, read as they are needed, refused by name when they cannot be scored.

N images, B of them at a time, S x S pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
import hashlib
from typing import Any, NamedTuple

import numpy as np

from braingen.errors import UserError

SMALLEST_SIDE = 16
"""Pixels. Below it a picture has no 11-pixel SSIM window of its own, and no network was made for it."""
IN_MEMORY = 128_000_000
"""Bytes; pictures read from files are kept in memory up to this size, larger sets are read anew at every use."""


def _named(ids: Sequence[int] | np.ndarray, most: int = 8) -> str:
    """Ids as a person reads them: the first few, then how many more."""
    listed = ("image " if len(ids) == 1 else "images ") + ", ".join(str(int(i)) for i in ids[:most])
    return listed if len(ids) <= most else f"{listed} and {len(ids) - most} more"


def check_ids(image_N: np.ndarray | Sequence[int], count: int, what: str) -> np.ndarray:
    """Image ids as int64, one per picture and each only once.

    Raises
    ------
    UserError
        When there are more or fewer ids than pictures, or an id comes twice.
    """
    ids = np.asarray(image_N)
    if ids.ndim != 1 or not np.issubdtype(ids.dtype, np.number) or not np.array_equal(ids, ids.astype(np.int64)):
        raise UserError(f"The image ids of the {what} must be a list of whole numbers; this is {ids.dtype} of shape {ids.shape}.")
    if len(ids) != count:
        raise UserError(f"The {what} are {count} pictures with {len(ids)} image ids; every picture needs one id.")
    if not count:
        raise UserError(f"There are no {what} to score.")
    seen, times = np.unique(ids, return_counts=True)
    twice = seen[times > 1]
    if len(twice):
        raise UserError(f"The {what} hold {_named(twice)} more than once; keep one picture per image id.")
    return ids.astype(np.int64)


class Pictures:
    """N pictures in [0, 1], checked once and read a slice at a time, so that memory does not grow with their number.

    Small sets (`IN_MEMORY`) are read once: every score and network asks for them again.

    Parameters
    ----------
    source : N x 3 x S x S array (or memory map, tensor, HDF5 dataset), or a sequence of 3 x S x S arrays;
        floats in [0, 1], or bytes (uint8), which are divided by 255
    image_N : image ids in the order of ``source``
    what : how messages call them, e.g. "reconstructions" or "true images"
    rows_N : which rows of ``source`` to take, and in which order; all by default

    Raises
    ------
    UserError
        When a picture is not RGB, not square, smaller than ``SMALLEST_SIDE``, of another size than the others, holds NaN or infinity,
        leaves [0, 1] or is constant (its correlation with anything is undefined). The message gives the image ids.
    """

    def __init__(self, source: Any, image_N: np.ndarray | Sequence[int], what: str, rows_N: np.ndarray | None = None) -> None:
        ids = check_ids(image_N, len(source), what)
        self._source = source
        self._rows_N = np.arange(len(ids)) if rows_N is None else rows_N
        self.image_N = ids[self._rows_N]
        self._read_before: dict[int, np.ndarray] = {}
        self._check(what)

    def __len__(self) -> int:
        return len(self._rows_N)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(N, 3, S, S)."""
        return len(self), 3, self.side, self.side

    @cached_property
    def digest(self) -> str:
        """Hash of the pictures in their order, to know them again."""
        whole = hashlib.sha256()
        for row in self._rows_N:
            whole.update(np.ascontiguousarray(self._read(row)).tobytes())
        return whole.hexdigest()[:24]

    def __getitem__(self, part: slice) -> np.ndarray:
        """Pictures of a slice, float32, B x 3 x S x S."""
        return np.stack([self._read(row) for row in self._rows_N[part]])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self[:].astype(np.float32 if dtype is None else dtype, copy=False)

    def _read(self, row: Any, keep: bool = False) -> np.ndarray:
        picture = self._read_before.get(int(row))
        if picture is None:
            picture = np.asarray(self._source[int(row)])
            # what has a dtype is in memory already, or a memory map
            if keep and not hasattr(self._source, "dtype") and picture.nbytes * len(self) <= IN_MEMORY:
                self._read_before[int(row)] = picture
        return picture.astype(np.float32) / 255 if picture.dtype == np.uint8 else picture.astype(np.float32, copy=False)

    def _check(self, what: str) -> None:
        shapes: list[tuple[int, ...]] = []
        ends_N2 = np.full((len(self), 2), np.nan)
        for number, row in enumerate(self._rows_N):
            picture = self._read(row, keep=True)
            shapes.append(picture.shape)
            if picture.size:
                ends_N2[number] = picture.min(), picture.max()  # NaN goes through both
        wrong = [n for n, s in enumerate(shapes) if len(s) != 3 or s[0] != 3 or s[1] != s[2] or s[1] < SMALLEST_SIDE]
        if wrong:
            raise UserError(
                f"The {what} hold {_named(self.image_N[wrong])} of shape {shapes[wrong[0]]}; allowed is 3 x S x S (RGB, square)"
                f" with S at least {SMALLEST_SIDE} pixels. Crop them as the stimuli were."
            )
        sizes, times = np.unique([shape[1] for shape in shapes], return_counts=True)
        self.side = int(sizes[times.argmax()])
        odd = [n for n, shape in enumerate(shapes) if shape[1] != self.side]
        if odd:
            raise UserError(
                f"The {what} hold {_named(self.image_N[odd])} of another size than the usual {self.side} x {self.side} pixels;"
                " bring all to one size, so that one is not sharper than another."
            )
        low, high = ends_N2.T
        broken = ~np.isfinite(ends_N2).all(1)
        if broken.any():
            raise UserError(f"The {what} hold NaN or infinity in {_named(self.image_N[broken])}; make them again.")
        outside = np.flatnonzero((low < 0) | (high > 1))
        if len(outside):
            first = outside[0]
            hint = "They look like bytes: divide by 255." if high.max() > 2 else "Clamp them, or map them from [-1, 1]."
            raise UserError(
                f"The {what} hold values outside [0, 1] in {_named(self.image_N[outside])}"
                f" (from {low[first]:.4g} to {high[first]:.4g} in the first). {hint}"
            )
        flat = low == high
        if flat.any():
            raise UserError(f"The {what} are constant (one value everywhere) in {_named(self.image_N[flat])}; that cannot be correlated.")


class Pairs(NamedTuple):
    """What was seen and what was read out, in the same order."""

    truth: Pictures
    recons: Pictures
    image_N: np.ndarray
    """Image ids, int64, ascending."""


def match(truth: Any, truth_ids: Any, recons: Any, recon_ids: Any, partial: bool = False) -> Pairs:
    """Put every reconstruction beside the picture that was seen, by image id and never by order.

    Parameters
    ----------
    truth, recons : N x 3 x S x S pictures, anything `Pictures` reads; the two sets may be of different sizes
    truth_ids, recon_ids : their image ids, in any order
    partial : score the images that have a reconstruction when some have none, instead of refusing

    Raises
    ------
    UserError
        When an image has no reconstruction (unless ``partial``), a reconstruction has no image, or `Pictures` refuses one.
    """
    truth_ids = check_ids(truth_ids, len(truth), "true images")
    recon_ids = check_ids(recon_ids, len(recons), "reconstructions")
    unknown = np.setdiff1d(recon_ids, truth_ids)
    if len(unknown):
        raise UserError(f"There are reconstructions of {_named(unknown)}, which the true images do not hold; check the image ids.")
    missing = np.setdiff1d(truth_ids, recon_ids)
    if len(missing) and not partial:
        raise UserError(
            f"Of {len(truth_ids)} images {len(missing)} have no reconstruction: {_named(missing)}."
            " Reconstruct them, or ask for a partial score, which then states its N."
        )
    place = {int(i): row for row, i in enumerate(truth_ids)}
    order = np.argsort(recon_ids, kind="stable")
    ids = recon_ids[order]
    truth_rows = np.array([place[int(i)] for i in ids])
    return Pairs(
        truth=Pictures(truth, truth_ids, "true images", truth_rows),
        recons=Pictures(recons, recon_ids, "reconstructions", order),
        image_N=ids,
    )
