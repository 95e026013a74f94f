"""Which voxels are kept: masks of a subject, joined over hemispheres, intersected over runs; and
regions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import nibabel
import numpy as np

from braingen.data.ingest.forms import ScanSource
from braingen.data.ingest.grids import Grid, misfit, shape_text
from braingen.data.ingest.names import GUIDE, Named, chosen, differing
from braingen.data.ingest.tables import read_table
from braingen.data.volumes import VoxelPlaces, load_nifti
from braingen.runtime.errors import UserError, as_sentence
from braingen.runtime.files import refuse_stand_in

_USUAL = ("", "brain", "nsdgeneral")
EVERYWHERE = "all"
"""Mask of every voxel that has responses."""


def grid_of(responses: ScanSource | VoxelPlaces) -> Grid:
    """Grid of responses or places."""
    shape = responses.grid if isinstance(responses, ScanSource) else responses.mask.shape
    return Grid(shape, responses.affine)


class Mask(NamedTuple):
    """A mask that was chosen."""

    kept: np.ndarray
    """(x, y, z) or (columns,) bool."""
    affine: np.ndarray | None
    space: int
    files: tuple[Path, ...]
    notes: tuple[str, ...]


def read_mask(path: Path) -> tuple[np.ndarray, Any]:
    """Values of a mask, NIfTI or .npy, and the image (None for .npy).

    Raises
    ------
    UserError
        When it is neither, or damaged.
    """
    if path.name.endswith((".nii", ".nii.gz")):
        image = load_nifti(path)
        return np.nan_to_num(np.asanyarray(image.dataobj)), image
    refuse_stand_in(path, GUIDE)
    if path.suffix == ".npy":
        with as_sentence(f"{path} is not a readable mask", GUIDE):
            return np.nan_to_num(np.load(path, allow_pickle=False)), None
    if path.name.endswith((".gii", ".gii.gz")):
        with as_sentence(f"{path} is not a readable mask", GUIDE):
            opened: Any = nibabel.load(path)
            return np.nan_to_num(opened.darrays[0].data), None
    raise UserError(
        f"{path} is no NIfTI file (.nii, .nii.gz), .npy or GIFTI; give the mask as one of these."
    )


def above(values: np.ndarray, path: Path, threshold: float | None) -> tuple[np.ndarray, str]:
    """Voxels of a mask, and what its values are, for the summary."""
    found = np.unique(values)
    soft = bool((found != np.round(found)).any()) and not (len(found) == 2 and 0 in found)
    limit = threshold if threshold is not None else 0.5 if soft else 0.0
    kept = values > limit
    shown = ", ".join(f"{value:g}" for value in found[:6]) + (
        f", ... ({len(found)} values)" if len(found) > 6 else ""
    )
    note = (
        f"mask {path.name}: values {shown}; {int(kept.sum())} of {kept.size} voxels are above"
        f" {limit:g}"
    )
    if soft:
        note += (
            f" ({int((values > 0).sum())} above 0; prepare.mask_above=NUMBER sets the limit of a"
            " soft mask)"
        )
    elif len(found) > 2 or (len(found) == 2 and not np.isin(found, (0, 1)).all()):
        note += "; every value above the limit is kept, is that a label volume?"
    return kept, note


def choose_mask(
    masks: Sequence[Named],
    asked: str,
    source: ScanSource,
    wanted: Mapping[str, str],
    threshold: float | None,
    subject: int,
) -> Mask | None:
    """The mask of a subject that fits its responses; None where there is none.

    Parameters
    ----------
    masks : Sequence[Named]
        All files of masks of the subject.
    asked : str
        Label or path that the setting names; empty for the usual one; 'all' for none.
    source : ScanSource
        The first responses, whose grid has to fit.
    wanted : Mapping[str, str]
        Entities that settings choose.

    Raises
    ------
    UserError
        When the mask that is asked for is not there, none fits the responses, or several claim to
        be it.
    """
    if asked == EVERYWHERE:
        return None
    if asked and (Path(asked).suffix in (".nii", ".gz", ".npy", ".gii") or Path(asked).exists()):
        return _joined([Path(asked)], source, threshold)
    if asked:
        group = [file for file in masks if asked in (file.of("label"), file.of("desc"))]
        if not group:
            there = (
                ", ".join(
                    dict.fromkeys(
                        file.of("label") or file.of("desc") or "(without)" for file in masks
                    )
                )
                or "none"
            )
            raise UserError(
                f"Subject {subject} has no mask with the label {asked} (there: {there}); {GUIDE}."
            )
    else:
        group = next(
            (
                g
                for g in (
                    [f for f in masks if (f.of("label") or f.of("desc")) == name] for name in _USUAL
                )
                if g
            ),
            [],
        )
    if wanted.get("space"):
        group = chosen(group, {"space": wanted["space"]})
    if not group:
        return None
    if source.parts and group[0].of("hemi"):
        return _of_hemispheres(group, source, threshold)
    if not source.is_volume:
        values = {file.path: read_mask(file.path)[0] for file in group}
        fitting = [
            file
            for file in group
            if source.columns in (values[file.path].size, int((values[file.path] > 0).sum()))
        ]
        _refuse_other_columns(fitting, values, source)
        return _joined([file.path for file in fitting or group], source, threshold)
    reasons = {file.path: misfit(grid_of(source), _grid(file.path)) for file in group}
    fitting = [file for file in group if not reasons[file.path]]
    if not fitting:
        path, reason = next(iter(reasons.items()))
        raise UserError(
            f"{source.name} and the mask {path} are not in the same space: they have {reason}."
            f" {source.name} has shape {shape_text(source.grid)}, in the space of the mask was"
            " expected; resample one of the two, or name another mask with --mask."
        )
    apart = differing(fitting)
    other = [key for key in apart if key not in ("hemi", "ses", "run", "task", "acq", "dir")]
    if len(fitting) > 1 and (other or not apart) and not _equal(fitting):
        shown = (
            "; ".join(
                f"{key}: {', '.join(values)}" for key, values in apart.items() if key in other
            )
            or "their folder"
        )
        raise UserError(
            f"{fitting[0].path} and {fitting[1].path} both claim to be the mask (what tells them"
            f" apart: {shown}); choose with --mask FILE."
        )
    left = len(group) - len(fitting)
    mask = _joined([file.path for file in fitting], source, threshold, set(apart))
    return mask._replace(
        notes=(*mask.notes, *((f"{left} masks of other grids left out",) if left else ()))
    )


def _refuse_other_columns(
    files: Sequence[Named], values: Mapping[Path, np.ndarray], source: ScanSource
) -> None:
    """Refuse masks of as many voxels as there are columns that are not the same voxels: arrays of
    sessions that were masked each by its own mask have other voxels in the same column.
    """
    own = [file for file in files if values[file.path].size != source.columns]
    for file in own[1:]:
        if not np.array_equal(values[file.path] > 0, values[own[0].path] > 0):
            raise UserError(
                f"{own[0].path} and {file.path} have {source.columns} voxels each, as many as "
                f"{source.name} has columns, but not the same ones: a column would be another "
                "voxel in other files. Mask all responses with one mask, give volumes, or name "
                "the mask of all of them with --mask FILE."
            )


def over_columns(file: Named, values: np.ndarray, source: ScanSource) -> np.ndarray:
    """Values of a hemisphere's vertices, at the columns of a source; 0 at those of the other
    hemisphere.

    Raises
    ------
    UserError
        When they are of another number of vertices.
    """
    found, first = np.zeros(source.columns, dtype=values.dtype), 0
    for part in source.parts:
        count = part.vertices if part.vertex_N is None else len(part.vertex_N)
        if part.side == file.of("hemi").upper()[:1]:
            if values.size != part.vertices:
                raise UserError(
                    f"{file.path} has {values.size} vertices, {source.name} has {part.vertices} in"
                    f" hemisphere {part.side}."
                )
            found[first : first + count] = (
                values.ravel() if part.vertex_N is None else values.ravel()[part.vertex_N]
            )
        first += count
    return found


def _of_hemispheres(files: Sequence[Named], source: ScanSource, threshold: float | None) -> Mask:
    kept, notes = np.zeros(source.columns, dtype=bool), []
    for file in files:
        inside, note = above(read_mask(file.path)[0], file.path, threshold)
        kept |= over_columns(file, inside, source)
        notes.append(note)
    if not kept.any():
        raise UserError(f"{files[0].path} has no vertex above 0; give the mask of the responses.")
    return Mask(kept, None, 0, tuple(file.path for file in files), tuple(notes))


def _equal(files: Sequence[Named]) -> bool:
    first = read_mask(files[0].path)[0]
    return all(np.array_equal(first, read_mask(file.path)[0]) for file in files[1:])


def _grid(path: Path) -> Grid:
    if path.name.endswith((".nii", ".nii.gz")):
        image = load_nifti(path)
        return Grid(image.shape, image.affine)
    return Grid(read_mask(path)[0].shape, None)


def _joined(
    paths: Sequence[Path],
    source: ScanSource,
    threshold: float | None,
    apart: set[str] | None = None,
) -> Mask:
    kept, affine, space, notes = None, None, 0, []
    union = apart == {"hemi"}
    counts = []
    for path in paths:
        values, image = read_mask(path)
        if values.ndim not in (1, 3) and not (values.ndim == 4 and values.shape[3] == 1):
            raise UserError(
                f"{path} has no voxel above 0 in a volume of three axes (shape {values.shape});"
                " give the mask of the responses."
            )
        values = values.reshape(values.shape[:3]) if values.ndim == 4 else values
        one, note = above(values, path, threshold)
        if not one.any():
            raise UserError(
                f"{path} has no voxel above 0 in a volume of three axes (shape {one.shape}); give"
                " the mask of the responses."
            )
        if image is not None and affine is None:
            affine, space = (
                image.affine,
                int(image.header["sform_code"]) or int(image.header["qform_code"]),
            )
        if kept is not None and one.shape != kept.shape:
            raise UserError(
                f"{paths[0]} and {path} have different shapes; choose one mask with --mask FILE."
            )
        kept = one if kept is None else (kept | one if union else kept & one)
        counts.append(int(one.sum()))
        notes.append(note)
    assert kept is not None
    if len(paths) > 1:
        how = "joined over hemispheres" if union else "those in all of them are kept"
        notes = [
            f"{len(paths)} masks of {', '.join(map(str, counts))} voxels, {how}: {int(kept.sum())}"
            f" ({paths[0].name} ...)"
        ]
    if not kept.any():
        raise UserError(
            f"The masks {paths[0]} ... have no voxel in common; choose one with --mask FILE."
        )
    return Mask(kept, affine, space, tuple(paths), tuple(notes))


def region_files(masks: Sequence[Named], used: Sequence[Path]) -> dict[str, list[Named]]:
    """Masks with a label that are not the mask of the responses, by label."""
    found: dict[str, list[Named]] = {}
    for file in masks:
        label = file.of("label")
        if label and file.path not in used:
            found.setdefault(label, []).append(file)
    return found


def labels_of(segmentation: Named, tables: Sequence[Named]) -> dict[int, str] | None:
    """Names of a label volume's values, by its table; None where there is none."""
    mine = [t for t in tables if t.path.name == segmentation.path.name.partition(".")[0] + ".tsv"]
    mine += [
        t
        for t in tables
        if t not in mine
        and all(segmentation.of(key) == value for key, value in t.entities.items())
        and t.of("sub") in ("", segmentation.of("sub"))
    ]
    for table in mine:
        found = read_table(table.path)
        names = {name.lower(): name for name in found}
        index, name = (
            names.get("index") or names.get("value") or names.get("label"),
            names.get("name") or names.get("abbreviation"),
        )
        if index and name and index != name:
            return {
                int(float(i)): str(n)
                for i, n in zip(found[index], found[name])
                if int(float(i)) != 0
            }
    return None
