"""bdpy's HDF5 (Kamitani lab's public data sets): one matrix of samples x columns, and metadata that
says what every column is.
"""

from __future__ import annotations

from typing import NamedTuple

import h5py
import numpy as np

from braingen.data.ingest.forms.base import ScanSource
from braingen.data.ingest.names import Named
from braingen.runtime.errors import UserError


class Columns(NamedTuple):
    """What a bdpy matrix holds."""

    voxel_V: np.ndarray
    """Columns that are voxels."""
    regions: dict[str, np.ndarray]
    """Boolean vectors over the voxels, by name without ``ROI_``."""
    labels: dict[str, int]
    """Column of Label, Run, stimulus_id and the like."""


def columns_of(opened: h5py.File, path: object) -> Columns:
    """Read the metadata.

    Raises
    ------
    UserError
        When no column is marked as a voxel.
    """
    keys = [
        key.decode() if isinstance(key, bytes) else str(key)
        for key in opened["metadata"]["key"][()]
    ]
    value_KC = np.asarray(opened["metadata"]["value"][()], dtype=float) == 1
    if "VoxelData" not in keys:
        raise UserError(
            f"{path} is bdpy's form, but its metadata has no VoxelData (it has {', '.join(keys)});"
            " write it again with bdpy."
        )
    voxel_V = np.flatnonzero(value_KC[keys.index("VoxelData")])
    regions = {
        key.removeprefix("ROI_"): row[voxel_V]
        for key, row in zip(keys, value_KC)
        if key.startswith("ROI_")
    }
    other = {
        key: row
        for key, row in zip(keys, value_KC)
        if key != "VoxelData" and not key.startswith("ROI_")
    }
    labels = {
        key: int(np.flatnonzero(row)[0])
        for key, row in other.items()
        if row.sum() == 1 and not row[voxel_V].any()
    }
    return Columns(voxel_V, regions, labels)


def read_bdpy(file: Named, opened: h5py.File) -> ScanSource:
    """The columns that are voxels; labels are noted as left out."""
    columns, dataset = columns_of(opened, file.path), opened["dataset"]
    first_V = columns.voxel_V[0]
    together = (np.diff(columns.voxel_V) == 1).all()

    def take(first: int, last: int) -> np.ndarray:
        if together:
            return dataset[first:last, first_V : first_V + len(columns.voxel_V)]
        return dataset[first:last][:, columns.voxel_V]

    left_out = ", ".join(columns.labels) or "none"
    note = (
        f"{file.path.name}: bdpy's form, {len(columns.voxel_V)} columns are voxels; columns"
        f" {left_out} are no voxels and left out"
    )
    label = columns.labels.get("Label", columns.labels.get("stimulus_id"))
    order_N = None if label is None else np.unique(dataset[:, label], return_inverse=True)[1]
    return ScanSource(
        (file.path,),
        "bdpy",
        dataset.shape[0],
        (len(columns.voxel_V),),
        take,
        order_N=order_N,
        regions=columns.regions,
        notes=(note,),
    )
