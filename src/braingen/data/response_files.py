"""Files of responses in the forms that `prepare` reads, at the columns of a data folder.

GIFTI, FreeSurfer and CIFTI, GLMsingle's and bdpy's output, volumes in arrays: whatever stands in
the registry of forms. Columns are put where the folder's are, by voxel or vertex.

N trials, V columns of the folder.
"""

from __future__ import annotations

from pathlib import Path

import h5py
import nibabel
import numpy as np

from braingen.data.ingest import forms
from braingen.data.ingest.forms import ReadRequest, ScanSource
from braingen.data.ingest.forms.arrays import GLMSINGLE
from braingen.data.ingest.forms.surfaces import join_hemispheres
from braingen.data.ingest.grids import misfit
from braingen.data.ingest.masks import grid_of
from braingen.data.ingest.names import Named, named_alone
from braingen.data.places import Places, SurfacePlaces, kept_columns, load_any_places
from braingen.data.volumes import VoxelPlaces
from braingen.runtime.arrays import refuse_more_than_memory
from braingen.runtime.data_layout import Layout
from braingen.runtime.errors import UserError

_PLAIN = (".npy", ".npz", ".h5", ".hdf5", ".nii", ".nii.gz")
_OTHER_SIDE = {"hemi-L": "hemi-R", "hemi-R": "hemi-L", "lh.": "rh.", "rh.": "lh."}


def is_of_a_lab(path: Path) -> bool:
    """Whether a file is to be read by the registry of forms, not as a plain array or volume."""
    ending = forms.ending_of(path)
    if ending not in _PLAIN or path.name.startswith("TYPE"):
        return True
    try:
        if ending in (".nii", ".nii.gz"):
            return isinstance(nibabel.load(path), nibabel.Cifti2Image)
        if ending in (".h5", ".hdf5"):
            with h5py.File(path, "r") as file:
                return GLMSINGLE in file or {"dataset", "metadata"} <= set(file)
        if ending == ".npy":
            array = np.load(path, mmap_mode="r", allow_pickle=False)
            return array.ndim == 4
    except ValueError as error:
        return "object" in str(error).lower()  # a pickled dictionary, perhaps GLMsingle's
    except Exception:  # the plain reader refuses it with a sentence
        return False
    return False


def read_of_a_lab(path: Path, subject: int, layout: Layout | None) -> np.ndarray:
    """Responses at the columns of a subject of a data folder: N x V, float32.

    Raises
    ------
    UserError
        When the file is of no form that is read, damaged, or lies elsewhere than the folder's
        columns.
    """
    file = named_alone(path)
    if forms.MATLAB.search(f"betas{path.suffix}"):
        raise forms.refuse_matlab(file)
    if layout is None:
        raise UserError(
            f"{path}: name the data folder of subject {subject} (data_root, --data_path), which "
            "says where its columns lie."
        )
    places = load_any_places(layout, subject)
    grid = tuple(places.mask.shape) if isinstance(places, VoxelPlaces) else ()
    source = _open(file, places, ReadRequest(grid=grid))
    columns = _columns(source, places, subject)
    if columns is None:
        columns = kept_columns(layout, subject, source.columns)
    if columns is None:
        raise UserError(
            f"{path} has {source.columns} voxels, subject {subject} has {places.voxels}: give all "
            "voxels of that subject."
        )
    refuse_more_than_memory(
        4 * source.trials * source.columns, str(path), "give fewer trials at once"
    )
    found = np.empty((source.trials, len(columns)), dtype=np.float32)
    for first in range(0, source.trials, source.at_once):
        last = min(first + source.at_once, source.trials)
        found[first:last] = source.read(first, last)[:, columns]
    return found


def _open(file: Named, places: Places, asked: ReadRequest) -> ScanSource:
    """A source of a file, and of the other hemisphere beside it where the folder has both."""
    source = forms.read(file, asked)
    sides = {part.side for part in source.parts}
    if not isinstance(places, SurfacePlaces) or set(places.vertices) <= sides or len(sides) != 1:
        return source
    name = file.path.name
    mark = next((mark for mark in _OTHER_SIDE if mark in name), "")
    other = file.path.with_name(name.replace(mark, _OTHER_SIDE.get(mark, ""), 1))
    if not mark or not other.is_file():
        raise UserError(
            f"{file.path} is of hemisphere {sides.pop()}, the folder has both: put the other one "
            f"beside it, as {other.name if mark else 'NAME_hemi-R_...'}."
        )
    both = (file, named_alone(other))
    return join_hemispheres(both, [source, forms.read(both[1], asked)])


def _columns(source: ScanSource, places: Places, subject: int) -> np.ndarray | None:
    """Columns of a source that are those of a folder, in its order; None where nothing says so."""
    if isinstance(places, VoxelPlaces) and source.is_volume:
        if reason := misfit(grid_of(source), grid_of(places)):
            raise UserError(
                f"{source.name} and the mask of subject {subject} are not in the same space: they "
                f"have {reason}; resample the file."
            )
        return np.ravel_multi_index(tuple(places.indices_V3.T), source.grid)
    if isinstance(places, SurfacePlaces) and source.parts:
        return _vertices(source, places, subject)
    return np.arange(places.voxels) if source.columns == places.voxels else None


def _vertices(source: ScanSource, places: SurfacePlaces, subject: int) -> np.ndarray:
    """Columns of a source by hemisphere and vertex; what lies below the cortex by its place."""
    where: dict[tuple[str, int], int] = {}
    first = 0
    for part in source.parts:
        if places.vertices.get(part.side, part.vertices) != part.vertices:
            raise UserError(
                f"{source.name} has {part.vertices} vertices in hemisphere {part.side}, "
                f"{places.surface} of subject {subject} has {places.vertices[part.side]}."
            )
        vertex_N = np.arange(part.vertices) if part.vertex_N is None else part.vertex_N
        where.update(((part.side, vertex), first + k) for k, vertex in enumerate(vertex_N.tolist()))
        first += len(vertex_N)
    where.update((("", k), first + k) for k in range(source.columns - first))
    wanted = list(zip(places.side_V.tolist(), places.vertex_V.tolist()))
    missing = [place for place in wanted if place not in where]
    if missing:
        side, vertex = missing[0]
        raise UserError(
            f"{source.name} lacks {len(missing)} of the {places.voxels} vertices of subject "
            f"{subject} (the first: {vertex} of hemisphere {side or 'none'})."
        )
    return np.array([where[place] for place in wanted])
