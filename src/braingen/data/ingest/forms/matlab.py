"""Matlab's files: not read, but named with the line that converts them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import scipy.io

USUAL = ("betas", "modelmd", "betasmd")
"""Names of responses; GLMsingle's in Matlab is modelmd."""
_ATTRIBUTE = "MATLAB_class"


def written_by_matlab(opened: h5py.File) -> bool:
    """Whether Matlab wrote an HDF5 file, whose axes are then in reverse."""
    marked = (_ATTRIBUTE in item.attrs for item in opened.values())
    return _ATTRIBUTE in opened.attrs or any(marked)


def largest(shapes: Mapping[str, tuple[int, ...]]) -> str:
    """Name of the variable that holds the responses: a usual one, or the largest."""
    usual = [name for name in USUAL if name in shapes]
    sizes = {name: int(np.prod(shape)) for name, shape in shapes.items()}
    return next(iter(usual), max(sizes, key=sizes.__getitem__, default=USUAL[0]))


def variable_of(path: Path) -> tuple[str, bool]:
    """Name of the variable that holds the responses, and whether the file is HDF5 (v7.3).

    A file that cannot be read is taken to hold `betas`.
    """
    with open(path, "rb") as handle:
        start = handle.read(516)
    is_hdf5 = start.startswith((b"MATLAB 7.3", b"\x89HDF")) or start[512:516] == b"\x89HDF"
    shapes: dict[str, tuple[int, ...]] = {}
    try:
        if is_hdf5:
            with h5py.File(path, "r") as opened:
                items: dict[str, Any] = dict(opened.items())
                shapes = {n: i.shape for n, i in items.items() if isinstance(i, h5py.Dataset)}
        else:
            shapes = {name: shape for name, shape, _ in scipy.io.whosmat(path)}
    except (OSError, ValueError, NotImplementedError, TypeError):
        pass  # the line that converts it will say what is wrong
    return largest(shapes), is_hdf5
