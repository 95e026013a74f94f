"""Betas of NSD in volumes of 1.8 mm: int16, 300 to the percent of signal change.

The axes of NIfTI files run x, y, z, trials; those of HDF5 files, as Matlab writes them, in reverse.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nibabel
import numpy as np

from braingen.data import nsd
from braingen.data.hdf5 import HDF5Rows
from braingen.data.large_files import blocks
from braingen.data.volumes import VoxelPlaces
from braingen.runtime.errors import UserError, as_sentence

GET_RAW = (
    "get it from NSD's bucket (s3://natural-scenes-dataset, after accepting its terms), under the "
    "same path"
)
UNITS_PER_PERCENT = 300
"""Raw betas are percent signal change times this, as int16 (NSD data manual)."""
TRIALS_AT_ONCE = 25


def read_betas(path: Path, trials: int, places: VoxelPlaces) -> Iterator[np.ndarray]:
    """Betas of a session in blocks of trials.

    Parameters
    ----------
    path : Path
        HDF5 or NIfTI file.
    trials : int
        Trials that it should hold.
    places : VoxelPlaces
        Voxels that are read.

    Yields
    ------
    Iterator[np.ndarray]
        (B, V) ndarray float64, percent signal change.

    Raises
    ------
    UserError
        When the file is damaged, or of another shape or type.
    """
    read = _hdf5_blocks if path.suffix == ".hdf5" else _nifti_blocks
    for block in read(path, trials, places):
        yield block.astype(np.float64) / UNITS_PER_PERCENT


def _check(
    path: Path, shape: tuple[int, ...], dtype: np.dtype, trials: int, places: VoxelPlaces
) -> None:
    """Refuse another shape (in the axes of the NIfTI) or type than expected."""
    expected = (*places.mask.shape, trials)
    if shape != expected:
        raise UserError(
            f"{path} holds betas of shape {shape} (x, y, z, trials), {expected} was expected by "
            "the mask and responses.tsv: it is of another subject, space or session; "
            f"{GET_RAW}."
        )
    if dtype.kind != "i":
        raise UserError(
            f"{path} holds {dtype}, integers ({UNITS_PER_PERCENT} to the percent of signal change) "
            f"were expected; {GET_RAW}."
        )


def _hdf5_blocks(path: Path, trials: int, places: VoxelPlaces) -> Iterator[np.ndarray]:
    rows = HDF5Rows(path, nsd.BETAS_DATASET, GET_RAW)
    _check(path, rows.shape[::-1], rows.dtype, trials, places)
    x_V, y_V, z_V = places.indices_V3.T
    for first, last in blocks(trials, TRIALS_AT_ONCE):
        yield rows.take(np.arange(first, last))[:, z_V, y_V, x_V]


def _nifti_blocks(path: Path, trials: int, places: VoxelPlaces) -> Iterator[np.ndarray]:
    """Read front to back, with the compressed stream kept open."""
    with as_sentence(f"{path} is not a readable NIfTI file", GET_RAW):
        image = nibabel.Nifti1Image.from_filename(path, keep_file_open=True)
        _check(path, image.shape, image.get_data_dtype(), trials, places)
        data: Any = image.dataobj
        x_V, y_V, z_V = places.indices_V3.T
        if (data.slope, data.inter) != (1, 0):  # nibabel empties those of the header
            raise UserError(
                f"{path} is scaled by its header ({data.slope:g}, {data.inter:g}), the numbers as "
                f"stored were expected; {GET_RAW}."
            )
        for first, last in blocks(trials, TRIALS_AT_ONCE):
            yield np.asarray(data[..., first:last])[x_V, y_V, z_V].T
