"""The pictures of a data folder: all of them, or those that are new or have changed."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from braingen.console import track
from braingen.data import nsd
from braingen.data.large_files import blocks
from braingen.data.nsd import Layout
from braingen.data.prepare.pieces import ArrayInPieces, stamp
from braingen.data.scans import Scans
from braingen.data.stimuli import Stimuli

PICTURE_SIDE = 224
_AT_ONCE = 100


def write_images(scans: Scans, layout: Layout, scratch: Path) -> dict[str, str]:
    """Write the pictures; those that are there and unchanged are copied.

    Returns
    -------
    dict
        Their entry of the manifest.
    """
    count, sources = scans.pictures
    shape = (count, 3, PICTURE_SIDE, PICTURE_SIDE)
    images = ArrayInPieces(scratch / "images", nsd.IMAGES_DATASET, shape, "float16")
    before = Stimuli(layout).rows if layout.images().exists() else None
    there = 0 if before is None else len(before)

    def make(first: int, last: int) -> np.ndarray:
        made = np.empty((last - first, *shape[1:]), np.float16)
        new = max(first, min(there, last))
        if before is not None and new > first:
            made[: new - first] = before.take(np.arange(first, new))
        todo = [(k, k + 1) for k in sorted(scans.exchanged()) if first <= k < new]
        for one, until in [*todo, *([(new, last)] if new < last else [])]:
            shown = scans.images(one, until, PICTURE_SIDE).astype(np.float32) / 255
            made[one - first : until - first] = shown
        return made

    few = count < 4 * _AT_ONCE
    for first, last in track(blocks(count, _AT_ONCE), description="pictures", disable=few):
        if len(sources) == 1:
            made_from = stamp(sources, 1, count)
        else:
            made_from = stamp(dict.fromkeys(sources[first:last]), first, last)
        parts = (make(*block) for block in [(first, last)])
        images.write(f"images{first:06d}", slice(first, last), made_from, parts)
    images.verify(layout.images())
    images.publish(layout.images())
    return {"sha256_of_parts": images.digest_of_pieces}
