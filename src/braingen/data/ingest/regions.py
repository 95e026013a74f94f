"""Regions of own scans: masks with a label, label volumes, and regions that responses bring."""

from __future__ import annotations

import numpy as np

from braingen.data.ingest.forms import Source
from braingen.data.ingest.masks import (
    Grid,
    above,
    grid_of,
    labels_of,
    misfit,
    over_columns,
    read_mask,
    region_files,
)
from braingen.data.ingest.names import Named
from braingen.data.ingest.voxel_space import VoxelSpace
from braingen.data.places import Places
from braingen.data.volumes import VoxelPlaces, load_nifti, with_joined_areas
from braingen.errors import UserError


def regions_of(
    space: VoxelSpace, places: Places | None, kept_V: np.ndarray, notes: list[str]
) -> dict[str, np.ndarray]:
    """Regions of a subject's kept voxels. V voxels inside the mask, K kept ones.

    Parameters
    ----------
    space : VoxelSpace
        The subject's voxels.
    places : Places or None
        Places of the kept voxels.
    kept_V : (V,) ndarray of bool
        Voxels that are kept.
    notes : list of str
        Notes for the summary are added here.

    Returns
    -------
    dict of str to (K,) ndarray of bool
        Region by name.

    Raises
    ------
    UserError
        When a region does not fit the voxels.
    """
    source, mask = space.source, space.mask
    columns = space.columns(source)
    masks = space.inputs.masks_of(space.recordings.label)
    regions = {"nsd_general": np.ones(int(kept_V.sum()), dtype=bool)}
    for label, files in region_files(masks, mask.files if mask else ()).items():
        for file in files:
            region_K = _region(space, file, columns, places, kept_V)
            if region_K is not None:
                regions[label] = regions.get(label, False) | region_K
            else:
                notes.append(
                    f"the region {file.path.name} is a volume and ignored: where the columns lie "
                    "is not known; give it as .npy"
                )
    for name, row in (source.regions or {}).items():
        regions[name] = (row if columns is None else row[columns])[kept_V]
    regions |= _label_volumes(space, places, notes)
    return with_joined_areas(regions)


def _region(
    space: VoxelSpace,
    file: Named,
    columns: np.ndarray | None,
    places: Places | None,
    kept_V: np.ndarray,
) -> np.ndarray | None:
    """Kept voxels that a mask holds; None for a volume where voxels have no place in one."""
    source: Source = space.source
    values, image = read_mask(file.path)
    inside, _ = above(values, file.path, space.inputs.prepare.mask_above)
    if image is not None:
        if not isinstance(places, VoxelPlaces):
            return None
        if reason := misfit(Grid(inside.shape, image.affine), grid_of(places)):
            named = space.mask.files[0] if space.mask else "of the responses"
            raise UserError(
                f"The region {file.path} does not fit the mask {named}: they have {reason}; "
                "resample the region."
            )
        return places.to_vector(inside)
    by_side = source.parts and file.of("hemi")
    inside = over_columns(file, inside, source) if by_side else inside.ravel()
    if columns is not None and len(inside) == source.columns:
        inside = inside[columns]
    if len(inside) != len(kept_V):
        raise UserError(
            f"The region {file.path} has {len(inside)} columns, {source.name} has "
            f"{source.columns}; give one value for each."
        )
    return inside[kept_V]


def _label_volumes(
    space: VoxelSpace, places: Places | None, notes: list[str]
) -> dict[str, np.ndarray]:
    """Regions of label volumes (dseg) whose labels have names."""
    found: dict[str, np.ndarray] = {}
    for file in space.inputs.label_volumes_of(space.recordings.label):
        names = labels_of(file, space.inputs.label_tables)
        if names is None:
            table = f"{file.path.name.partition('.')[0]}.tsv"
            notes.append(f"{file.path.name} is ignored: no table names its labels ({table})")
            continue
        image = load_nifti(file.path)
        reason = "no grid in common"
        if isinstance(places, VoxelPlaces):
            reason = misfit(Grid(image.shape, image.affine), grid_of(places))
        if reason:
            notes.append(f"{file.path.name} is ignored: it and the mask have {reason}")
            continue
        assert isinstance(places, VoxelPlaces)
        values = places.to_vector(np.asanyarray(image.dataobj))
        for index, name in names.items():
            if (values == index).any():
                found[name] = found.get(name, False) | (values == index)
    return found
