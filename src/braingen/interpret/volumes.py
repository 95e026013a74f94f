"""Maps as NIfTI in the space of the subject, and tables of regions.

V voxels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import csv
from pathlib import Path

import nibabel
from nilearn.image import resample_to_img
import numpy as np
import pandas as pd

from braingen.data import nsd
from braingen.data.places import Places
from braingen.data.volumes import VoxelPlaces, load_nifti, read_regions
from braingen.runtime.data_layout import Layout
from braingen.runtime.errors import UserError
from braingen.runtime.text_files import read_json

LABELS = {
    "prf-visualrois": ("V1v", "V1d", "V2v", "V2d", "V3v", "V3d", "hV4"),
    "floc-faces": ("OFA", "FFA-1", "FFA-2", "mTL-faces", "aTL-faces"),
    "floc-bodies": ("EBA", "FBA-1", "FBA-2", "mTL-bodies"),
    "floc-places": ("OPA", "PPA", "RSC"),
    "floc-words": ("OWFA", "VWFA-1", "VWFA-2", "mfs-words", "mTL-words"),
}
"""Names of the labels 1, 2, ... of NSD's region volumes (NSD data manual)."""


_UNIONS = ("nsd_general", "early_vis", "higher_vis")


def region_masks(
    path: Path, places: VoxelPlaces, names: Mapping[int, str] | None = None
) -> dict[str, np.ndarray]:
    """The regions of an atlas or ROI volume, as masks over a subject's voxels.

    A volume on another grid is resampled by nearest neighbour. It must lie in the functional space
    of the subject, which cannot be checked.

    Parameters
    ----------
    path : Path
        NIfTI of whole numbers; 0 and below is no region.
    names : Mapping[int, str] | None, optional
        Label -> name; where not given, taken from a table of the same name beside it (.json: {"1":
        "V1v"}, .csv or .tsv: label and name in the first two columns), from NSD's own names, or
        else "<volume> <label>".

    Returns
    -------
    dict[str, np.ndarray]
        Name -> bool V; regions that have no voxel of the subject are left out.
    """
    image = load_nifti(path)
    if len(image.shape) != 3:
        raise UserError(
            f"{path} has shape {image.shape}: an atlas is one volume of labels, three axes."
        )
    if image.shape != places.mask.shape or not np.allclose(image.affine, places.affine, atol=1e-4):
        grid = nibabel.Nifti1Image(places.mask.astype(np.int16), places.affine)
        image = resample_to_img(
            image, grid, interpolation="nearest", force_resample=True, copy_header=True
        )
    label_V = places.to_vector(np.asanyarray(image.dataobj))
    if not np.allclose(label_V, np.round(label_V), equal_nan=True):
        found = label_V[label_V != np.round(label_V)][0]
        raise UserError(
            f"{path} holds numbers like {found:g}: an atlas holds whole numbers, its labels."
        )
    stem = path.name.removesuffix(".gz").removesuffix(".nii")
    names = (
        names or _names_beside(path.parent / stem) or dict(enumerate(LABELS.get(stem, ()), start=1))
    )
    labels = sorted({int(label) for label in label_V[np.isfinite(label_V)] if label > 0})
    return {names.get(label, f"{stem} {label}"): label_V == label for label in labels}


def _names_beside(stem: Path) -> dict[int, str]:
    try:
        for ending, delimiter in ((".csv", ","), (".tsv", "\t")):
            table = stem.with_name(stem.name + ending)
            if table.is_file():
                with open(table, encoding="utf-8", newline="") as handle:
                    rows = [row for row in csv.reader(handle, delimiter=delimiter) if len(row) > 1]
                return {int(row[0]): row[1].strip() for row in rows if row[0].strip().isdigit()}
        table = stem.with_name(stem.name + ".json")
        if table.is_file():
            return {int(label): str(name) for label, name in read_json(table).items()}
    except (ValueError, AttributeError) as error:
        raise UserError(
            f"{table} is not a table of label names ({error}): give label and name in two columns."
        ) from error
    return {}


def known_regions(
    layout: Layout, subject: int, places: Places, atlases: Sequence[Path] = ()
) -> dict[str, np.ndarray]:
    """Regions of the volumes of the data folder (visual areas, localisers) and of atlases.

    Without such volumes, and for responses on a surface, those of brain_region_masks.hdf5.
    """
    folder = layout.volumes(subject)
    if not isinstance(places, VoxelPlaces):
        return _regions_of_columns(layout, subject)
    own = [folder / f"{name}.nii.gz" for name in nsd.ROI_VOLUMES if name in LABELS]
    found: dict[str, np.ndarray] = {}
    for path in [*(path for path in own if path.exists()), *atlases]:
        found |= region_masks(Path(path), places)
    return found or _regions_of_columns(layout, subject)


def _regions_of_columns(layout: Layout, subject: int) -> dict[str, np.ndarray]:
    if not layout.masks().exists():
        return {}
    return {
        name: mask for name, mask in read_regions(layout, subject).items() if name not in _UNIONS
    }


def check_atlases(atlases: Sequence[Path], places: Mapping[int, VoxelPlaces]) -> None:
    """Reject a missing atlas, or one without labels in any subject, before any computation.

    Parameters
    ----------
    places : Mapping[int, VoxelPlaces]
        Subject -> where its voxels lie.

    Raises
    ------
    UserError
    """
    for path in map(Path, atlases):
        if not path.is_file():
            raise UserError(
                f"There is no atlas {path}: --atlases takes NIfTI files of whole numbers, labels of"
                " regions."
            )
        if not any(region_masks(path, each) for each in places.values()):
            raise UserError(
                f"{path} has no label above 0 at any voxel of subject"
                f" {', '.join(map(str, places))}: an atlas has to lie in the subject's functional"
                " space (docs/interpret.md)."
            )


def region_table(maps: Mapping[str, np.ndarray], regions: Mapping[str, np.ndarray]) -> pd.DataFrame:
    """Summary of every map in every region.

    Regions of one atlas do not overlap, those of several may; voxels in none are the last row of
    every map.

    Returns
    -------
    pd.DataFrame
        Columns map, region, voxels, mean, mean_size (of the absolute values), share (of the map's
        summed absolute values), enrichment (share over the region's share of voxels: 1 is no more
        than its size), peak (the value largest in size).
    """
    rows = []
    for name, value_V in maps.items():
        value_V = np.asarray(value_V, dtype=np.float64)
        size_V = np.abs(value_V)
        rest_V = (
            ~np.any(list(regions.values()), axis=0)
            if regions
            else np.ones(len(value_V), dtype=bool)
        )
        for region, inside_V in {**regions, "in no region": rest_V}.items():
            if inside_V.any():
                share = size_V[inside_V].sum() / max(size_V.sum(), 1e-30)
                rows.append(
                    {
                        "map": name,
                        "region": region,
                        "voxels": int(inside_V.sum()),
                        "mean": value_V[inside_V].mean(),
                        "mean_size": size_V[inside_V].mean(),
                        "share": share,
                        "enrichment": share / inside_V.mean(),
                        "peak": value_V[inside_V][size_V[inside_V].argmax()],
                    }
                )
    return pd.DataFrame(rows)
