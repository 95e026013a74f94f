"""Match images with the ones that were seen by image id, and refuse images that cannot be scored.

N images, B of them at a time, S x S pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
import hashlib
from typing import Any, NamedTuple

import numpy as np

from braingen.runtime.errors import UserError

SMALLEST_SIDE = 16
"""Pixels. Smaller images are below the 11-pixel SSIM window and any network's input."""
IN_MEMORY = 128_000_000
"""Bytes; image sets up to this size are kept in memory, larger ones are read at every use."""


def _named(ids: Sequence[int] | np.ndarray, most: int = 8) -> str:
    """Format the first few ids, and count the others."""
    listed = ("image " if len(ids) == 1 else "images ") + ", ".join(str(int(i)) for i in ids[:most])
    return listed if len(ids) <= most else f"{listed} and {len(ids) - most} more"


def check_ids(image_N: np.ndarray | Sequence[int], count: int, what: str) -> np.ndarray:
    """Check that there is one unique id per image, and return them as int64.

    Raises
    ------
    UserError
        When there are more or fewer ids than images, or an id comes twice.
    """
    ids = np.asarray(image_N)
    if (
        ids.ndim != 1
        or not np.issubdtype(ids.dtype, np.number)
        or not np.array_equal(ids, ids.astype(np.int64))
    ):
        raise UserError(
            f"The image ids of the {what} must be a list of whole numbers; this is {ids.dtype} of"
            f" shape {ids.shape}."
        )
    if len(ids) != count:
        raise UserError(
            f"The {what} are {count} images with {len(ids)} image ids; every image needs one id."
        )
    if not count:
        raise UserError(f"There are no {what} to score.")
    seen, times = np.unique(ids, return_counts=True)
    twice = seen[times > 1]
    if len(twice):
        raise UserError(
            f"The {what} hold {_named(twice)} more than once; keep one image per image id."
        )
    return ids.astype(np.int64)


class ImageSource:
    """N images in [0, 1], checked once and read by slices, so memory does not grow with N.

    Small sets (`IN_MEMORY`) are read once, since every score and network reads them again.

    Parameters
    ----------
    source : Any
        N x 3 x S x S array (or memory map, tensor, HDF5 dataset), or a sequence of 3 x S x S
        arrays; floats in [0, 1], or bytes (uint8), which are divided by 255.
    image_N : np.ndarray | Sequence[int]
        Image ids in the order of ``source``.
    what : str
        Name of the set in messages, e.g. "reconstructions" or "true images".
    rows_N : np.ndarray | None, optional
        Which rows of ``source`` to take, and in which order; all by default.

    Raises
    ------
    UserError
        When an image is not RGB, not square, smaller than ``SMALLEST_SIDE``, of another size than
        the others, holds NaN or infinity, leaves [0, 1] or is constant (its correlation is
        undefined). The message names the image ids.
    """

    def __init__(
        self,
        source: Any,
        image_N: np.ndarray | Sequence[int],
        what: str,
        rows_N: np.ndarray | None = None,
    ) -> None:
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
        """Hash of the images in their order; identifies their stored features."""
        whole = hashlib.sha256()
        for row in self._rows_N:
            whole.update(np.ascontiguousarray(self._read(row)).tobytes())
        return whole.hexdigest()[:24]

    def __getitem__(self, part: slice) -> np.ndarray:
        """Images of a slice, float32, B x 3 x S x S."""
        return np.stack([self._read(row) for row in self._rows_N[part]])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self[:].astype(np.float32 if dtype is None else dtype, copy=False)

    def _read(self, row: Any, keep: bool = False) -> np.ndarray:
        image = self._read_before.get(int(row))
        if image is None:
            image = np.asarray(self._source[int(row)])
            # a source with a dtype is in memory already, or a memory map
            if (
                keep
                and not hasattr(self._source, "dtype")
                and image.nbytes * len(self) <= IN_MEMORY
            ):
                self._read_before[int(row)] = image
        return (
            image.astype(np.float32) / 255
            if image.dtype == np.uint8
            else image.astype(np.float32, copy=False)
        )

    def _check(self, what: str) -> None:
        shapes: list[tuple[int, ...]] = []
        ends_N2 = np.full((len(self), 2), np.nan)
        for number, row in enumerate(self._rows_N):
            image = self._read(row, keep=True)
            shapes.append(image.shape)
            if image.size:
                ends_N2[number] = image.min(), image.max()  # NaN propagates through both
        wrong = [
            n
            for n, s in enumerate(shapes)
            if len(s) != 3 or s[0] != 3 or s[1] != s[2] or s[1] < SMALLEST_SIDE
        ]
        if wrong:
            raise UserError(
                f"The {what} hold {_named(self.image_N[wrong])} of shape {shapes[wrong[0]]};"
                f" allowed is 3 x S x S (RGB, square) with S at least {SMALLEST_SIDE} pixels. Crop"
                " them as the stimuli were."
            )
        sizes, times = np.unique([shape[1] for shape in shapes], return_counts=True)
        self.side = int(sizes[times.argmax()])
        odd = [n for n, shape in enumerate(shapes) if shape[1] != self.side]
        if odd:
            raise UserError(
                f"The {what} hold {_named(self.image_N[odd])} of another size than the usual"
                f" {self.side} x {self.side} pixels; bring all to one size, so that one is not"
                " sharper than another."
            )
        low, high = ends_N2.T
        broken = ~np.isfinite(ends_N2).all(1)
        if broken.any():
            raise UserError(
                f"The {what} hold NaN or infinity in {_named(self.image_N[broken])}; make them"
                " again."
            )
        outside = np.flatnonzero((low < 0) | (high > 1))
        if len(outside):
            first = outside[0]
            hint = (
                "They seem to be bytes: divide by 255."
                if high.max() > 2
                else "Clamp them, or map them from [-1, 1]."
            )
            raise UserError(
                f"The {what} hold values outside [0, 1] in {_named(self.image_N[outside])}"
                f" (from {low[first]:.4g} to {high[first]:.4g} in the first). {hint}"
            )
        flat = low == high
        if flat.any():
            raise UserError(
                f"The {what} are constant (one value everywhere) in {_named(self.image_N[flat])};"
                " that cannot be correlated."
            )


class Pairs(NamedTuple):
    """True and reconstructed images in the same order."""

    truth: ImageSource
    recons: ImageSource
    image_N: np.ndarray
    """Image ids, int64, ascending."""


def match(truth: Any, truth_ids: Any, recons: Any, recon_ids: Any, partial: bool = False) -> Pairs:
    """Match every reconstruction with its true image by image id, never by order.

    Parameters
    ----------
    truth, recons : Any
        N x 3 x S x S images, anything `ImageSource` reads; the two sets may differ in size.
    truth_ids, recon_ids : Any
        Their image ids, in any order.
    partial : bool, optional
        Score the images that have a reconstruction when others have none, instead of refusing.

    Raises
    ------
    UserError
        When an image has no reconstruction (unless ``partial``), a reconstruction has no image, or
        `ImageSource` refuses one.
    """
    truth_ids = check_ids(truth_ids, len(truth), "true images")
    recon_ids = check_ids(recon_ids, len(recons), "reconstructions")
    unknown = np.setdiff1d(recon_ids, truth_ids)
    if len(unknown):
        raise UserError(
            f"There are reconstructions of {_named(unknown)}, which the true images do not hold;"
            " check the image ids."
        )
    missing = np.setdiff1d(truth_ids, recon_ids)
    if len(missing) and not partial:
        raise UserError(
            f"Of {len(truth_ids)} images {len(missing)} have no reconstruction: {_named(missing)}."
            " Reconstruct them, or request a partial score (evaluation.partial)."
        )
    place = {int(i): row for row, i in enumerate(truth_ids)}
    order = np.argsort(recon_ids, kind="stable")
    ids = recon_ids[order]
    truth_rows = np.array([place[int(i)] for i in ids])
    return Pairs(
        truth=ImageSource(truth, truth_ids, "true images", truth_rows),
        recons=ImageSource(recons, recon_ids, "reconstructions", order),
        image_N=ids,
    )
