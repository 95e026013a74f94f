"""Grids that voxels lie on, and how two of them differ."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Grid(NamedTuple):
    """Where voxels lie."""

    shape: tuple[int, ...]
    affine: np.ndarray | None


def misfit(one: Grid, two: Grid) -> str:
    """How two grids differ, as part of a sentence; empty where they are the same up to a hundredth
    of a voxel.
    """
    if tuple(one.shape) != tuple(two.shape):
        return f"shape {shape_text(one.shape)} and {shape_text(two.shape)}"
    if one.affine is None or two.affine is None:
        return ""
    size = float(np.linalg.norm(two.affine[:3, :3], axis=0).min())
    corners = np.array(
        [
            [x, y, z, 1]
            for x in (0, one.shape[0])
            for y in (0, one.shape[1])
            for z in (0, one.shape[2])
        ]
    )
    apart = np.linalg.norm((corners @ (one.affine - two.affine).T)[:, :3], axis=1).max()
    if apart <= 0.01 * size:
        return ""
    axes = [name for k, name in enumerate("xyz") if one.affine[:3, k] @ two.affine[:3, k] < 0]
    flipped = f", axis {', '.join(axes)} is flipped" if axes else ""
    return (
        f"the same shape {shape_text(one.shape)}, but affines that lead up to {apart:.3g} mm"
        f" apart{flipped}"
    )


def shape_text(shape: Sequence[int]) -> str:
    """A shape as it is shown: (8, 9, 7)."""
    return "(" + ", ".join(str(int(n)) for n in shape) + ")"
