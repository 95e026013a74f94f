"""Responses on vertices: GIFTI and FreeSurfer's .mgh, a file per hemisphere; and the joining of
hemispheres.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import nibabel
import numpy as np

from braingen.data.ingest.forms.base import ReadRequest, ScanPart, ScanSource
from braingen.data.ingest.names import GUIDE, Named
from braingen.runtime.errors import UserError, as_sentence
from braingen.runtime.files import refuse_stand_in

VERTICES = {
    642: "fsaverage3",
    2562: "fsaverage4",
    10242: "fsaverage5",
    40962: "fsaverage6",
    163842: "fsaverage",
    32492: "fsLR",
}
"""Surfaces known by their number of vertices per hemisphere."""

_STRUCTURES = {"L": "CortexLeft", "R": "CortexRight"}


def surface_named(file: Named, vertices: int) -> str:
    """Name of the surface of a file: its entity `space`, or what so many vertices are known
    to be.
    """
    return file.of("space") or VERTICES.get(vertices, "fsnative")


def side_of_file(file: Named) -> str:
    """L or R.

    Raises
    ------
    UserError
        When the name says neither.
    """
    side = file.of("hemi").upper()[:1]
    if side not in ("L", "R"):
        raise UserError(
            f"{file.path} does not say which hemisphere it is: name it with hemi-L or hemi-R."
        )
    return side


def read_gifti(file: Named, asked: ReadRequest) -> ScanSource:
    """A GIFTI file of a hemisphere: an array per trial, or one of vertices x trials."""
    refuse_stand_in(file.path, GUIDE)
    with as_sentence(f"{file.path} is not a readable GIFTI file", GUIDE):
        opened: Any = nibabel.load(file.path)
        arrays = [array.data for array in opened.darrays]
    if len(arrays) == 1 and arrays[0].ndim == 2:
        arrays = list(arrays[0].T)
    vertices = len(arrays[0]) if arrays else 0
    if not arrays or any(array.ndim != 1 or len(array) != vertices for array in arrays):
        raise UserError(f"{file.path} holds no array of one value per vertex and trial; {GUIDE}.")

    def take(first: int, last: int) -> np.ndarray:
        return np.stack(arrays[first:last])

    side = side_of_file(file)
    notes = [opened.meta, *(array.meta for array in opened.darrays)]
    words = {str((note or {}).get("AnatomicalStructurePrimary", "")) for note in notes}
    if _STRUCTURES.get(side, "") not in words and words & set(_STRUCTURES.values()):
        raise UserError(
            f"{file.path} is of hemisphere {side} by its name, but says inside that it is of "
            f"{', '.join(sorted(words & set(_STRUCTURES.values())))}: correct one of them."
        )
    part = ScanPart(side, vertices, None)
    return ScanSource(
        (file.path,),
        "GIFTI",
        len(arrays),
        (vertices,),
        take,
        parts=(part,),
        surface=surface_named(file, vertices),
    )


def read_mgh(file: Named, asked: ReadRequest) -> ScanSource:
    """FreeSurfer's form: vertices, 1, 1, trials."""
    refuse_stand_in(file.path, GUIDE)
    with as_sentence(f"{file.path} is not a readable FreeSurfer file", GUIDE):
        image: Any = nibabel.load(file.path)
        shape = image.shape
        trials = shape[3] if len(shape) > 3 else 1
    if sorted(shape[:3])[:2] != [1, 1]:
        raise UserError(
            f"{file.path} has shape {shape}, (vertices, 1, 1, trials) was expected; {GUIDE}."
        )
    vertices, trials = int(max(shape[:3])), int(trials)

    def take(first: int, last: int) -> np.ndarray:
        block = image.dataobj[..., first:last] if len(shape) > 3 else image.dataobj
        return np.asarray(block).reshape(vertices, last - first).T

    part = ScanPart(side_of_file(file), vertices, None)
    return ScanSource(
        (file.path,),
        "FreeSurfer",
        trials,
        (vertices,),
        take,
        parts=(part,),
        surface=surface_named(file, vertices),
    )


def join_hemispheres(files: Sequence[Named], sources: Sequence[ScanSource]) -> ScanSource:
    """Left and right of the same trials, one after the other.

    Raises
    ------
    UserError
        When they have different trials, or a hemisphere is there twice.
    """
    sides = [side_of_file(file) for file in files]
    if sorted(sides) != ["L", "R"]:
        raise UserError(
            f"{files[0].path} and {files[1].path} are of hemispheres {', '.join(sides)}; one left"
            " and one right were expected."
        )
    left, right = (sources[sides.index(side)] for side in ("L", "R"))
    if left.trials != right.trials:
        raise UserError(
            f"{left.name} holds {left.trials} trials, {right.name} {right.trials}: the hemispheres"
            " do not belong together; correct one."
        )

    def take(first: int, last: int) -> np.ndarray:
        return np.concatenate([left.read(first, last), right.read(first, last)], axis=1)

    parts = (*_parts(left, "L"), *_parts(right, "R"))
    known = files[0].of("space")
    surface = known or left.surface or VERTICES.get(left.columns, "fsnative")
    grid = (left.columns + right.columns,)
    return ScanSource(
        (*left.files, *right.files),
        left.form,
        left.trials,
        grid,
        take,
        parts=parts,
        surface=surface,
        notes=left.notes,
    )


def _parts(source: ScanSource, side: str) -> tuple[ScanPart, ...]:
    return source.parts or (ScanPart(side, source.columns, None),)
