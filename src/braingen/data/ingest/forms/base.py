"""What every form of responses becomes: a source that is read in blocks of trials.

T trials, V columns (voxels, vertices or whatever an array has).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from braingen.data.ingest.names import Named

BLOCK_BYTES = 64 * 2**20
"""Size of a block in memory, as float32."""


class ScanPart(NamedTuple):
    """A stretch of columns that lie on one hemisphere of a surface."""

    side: str
    """L or R."""
    vertices: int
    """Of the whole surface."""
    vertex_N: np.ndarray | None
    """Vertex of every column; None where all vertices are there, in order."""


class ScanSource(NamedTuple):
    """Responses in a file, or in several that belong together, not read yet."""

    files: tuple[Path, ...]
    form: str
    """What it is, for messages: 'NIfTI', 'GLMsingle'."""
    trials: int
    grid: tuple[int, ...]
    """(x, y, z) of a volume, or (columns,)."""
    read: Callable[[int, int], np.ndarray]
    """Trials first..last-1 as trials x columns, a volume in C order of its axes; any float."""
    affine: np.ndarray | None = None
    """Voxels to millimetres; None where the file does not say."""
    space: int = 0
    """NIfTI's code of where the affine leads; 0 where not known."""
    parts: tuple[ScanPart, ...] = ()
    """Hemispheres of a surface, in the order of the columns."""
    surface: str = ""
    """Name of that surface: fsaverage5, fsLR, fsnative."""
    grayordinates: object | None = None
    """nibabel's BrainModelAxis of a CIFTI file."""
    signs: tuple[str, ...] = ()
    """Signs of a time series."""
    order_N: np.ndarray | None = None
    """Condition of every trial, where the file knows (GLMsingle's stimorder)."""
    order_name: str = "stimorder in DESIGNINFO"
    """What says so, for messages."""
    names_pictures: bool = False
    """Whether its values mean the same picture in every file: ids or names, not conditions."""
    regions: Mapping[str, np.ndarray] | None = None
    """Boolean vectors over the columns, where the file has them (bdpy's ROI_*)."""
    notes: tuple[str, ...] = ()
    """What was done or left out, for the summary."""

    @property
    def is_volume(self) -> bool:
        """Whether columns are voxels of a grid."""
        return len(self.grid) == 3

    @property
    def columns(self) -> int:
        """Number of columns."""
        return int(np.prod(self.grid))

    @property
    def at_once(self) -> int:
        """Trials of a block."""
        return max(1, BLOCK_BYTES // (4 * max(1, self.columns)))

    @property
    def name(self) -> str:
        """Of the first file."""
        return str(self.files[0])


class ReadRequest(NamedTuple):
    """What a reader knows besides the file."""

    dataset: str = ""
    """Name of the dataset of an HDF5 or .npz file; empty takes `betas`, or the only one
    that fits.
    """
    trials: int = 0
    """Trials that the events name, to tell apart what fits; 0 where not known."""
    grid: tuple[int, ...] = ()
    """Shape of the mask."""


Reader = Callable[[Named, ReadRequest], ScanSource]
