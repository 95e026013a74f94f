"""Surfaces for figures: validated before any computation, then sampled from volumes.

N vertices, F faces, V voxels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import difflib
from functools import lru_cache
from pathlib import Path
import re
from typing import Any, Literal, NamedTuple
import warnings

import nibabel
from nilearn import datasets
from nilearn.surface import load_surf_data, load_surf_mesh, vol_to_surf
import numpy as np
from scipy.sparse import csr_matrix, diags_array
from scipy.spatial import KDTree

from braingen.data.places import SurfacePlaces
from braingen.data.volumes import MNI, VoxelPlaces
from braingen.runtime.data_layout import subject_name
from braingen.runtime.errors import UserError, reason

Side = Literal["left", "right"]
FSAVERAGE = "fsaverage5"
SUBJECT = "{subject}"
"""In a file's name it stands for subj01, subj02, ..."""
_ICOSAHEDRA = (642, 2562, 10242, 40962, 163842)
"""Vertices of fsaverage3 to fsaverage."""
REACH = 3.0
"""Millimetres around a vertex in which voxels are taken to belong to it."""
_FEWEST = 0.05
"""Share of that ball which voxels have to fill (one of nilearn's twenty points) for a vertex to
have a value.
"""
_SMOOTHED = 20.0
"""Millimetres over which a mesh is smoothed for figures: sulci open, the hemisphere keeps its
shape.
"""
_HELP = (
    "give meshes in the space of the volumes (--surface lh.pial,rh.pial; GIFTI or FreeSurfer), or"
    f" {FSAVERAGE} where the volumes are in MNI space"
)
_SIDES_IN_NAMES = (
    r"(?i)(?<![a-z])hemi-(l|r)(?![a-z])",
    r"(?i)(?<![a-z])(l|r)h(?![a-z])",
    r"(?<![A-Za-z])(left|right)(?![a-z])",
    r"(Left|Right|LEFT|RIGHT)(?![a-z])",
    r"(?<![A-Za-z0-9])(L|R)(?![A-Za-z0-9])",
)
"""hemi-L as in BIDS, lh as in FreeSurfer, left, L as in HCP: the first kind that a name has,
decides.
"""


class Mesh(NamedTuple):
    """A hemisphere's surface."""

    name: str
    side: Side
    vertex_N3: np.ndarray
    """Where cortex is, in the millimetres of the volumes."""
    face_F3: np.ndarray
    inflated_N3: np.ndarray | None = None
    """Vertex positions in figures; None: the smoothed mesh."""
    depth_N: np.ndarray | None = None
    """Larger in sulci, for the shading; None takes the curvature of the mesh."""


def side_of(name: str) -> Side | None:
    """The hemisphere in a file's name; None where it names neither, or both."""
    for pattern in _SIDES_IN_NAMES:
        found = {word[0].lower() for word in re.findall(pattern, name)}
        if found:
            return None if len(found) > 1 else "left" if found == {"l"} else "right"
    return None


def read_meshes(named: Sequence[str], subjects: Sequence[int]) -> dict[int, tuple[Mesh, ...]]:
    """The meshes of every subject.

    Parameters
    ----------
    named : Sequence[str]
        Nothing, 'fsaverage5', or files of one hemisphere each, in the space of the volumes;
        {subject} stands for subj01.

    Raises
    ------
    UserError
        When a name is not known, a file is missing, is no mesh, does not lie where cortex is, or
        does not say which hemisphere it is.
    """
    if FSAVERAGE not in named:
        return {
            subject: tuple(_read(name.replace(SUBJECT, subject_name(subject))) for name in named)
            for subject in subjects
        }
    if len(named) > 1:
        raise UserError(
            f"interpret.surface = {','.join(named)} mixes {FSAVERAGE} with other surfaces: it is a"
            " standard brain, for volumes in MNI space, and brings both hemispheres. Give"
            f" --surface {FSAVERAGE} alone, or meshes in the subject's own space alone."
        )
    shipped = datasets.fetch_surf_fsaverage(FSAVERAGE)  # comes with nilearn, nothing is fetched
    sides: tuple[Side, Side] = ("left", "right")
    both = []
    for side in sides:
        vertex_N3, face_F3 = load_surf_mesh(shipped[f"pial_{side}"])
        inflated_N3, _ = load_surf_mesh(shipped[f"infl_{side}"])
        both.append(
            Mesh(
                FSAVERAGE,
                side,
                vertex_N3,
                face_F3,
                inflated_N3,
                load_surf_data(shipped[f"sulc_{side}"]),
            )
        )
    return dict.fromkeys(subjects, tuple(both))


def _read(name: str) -> Mesh:
    path = Path(name).expanduser()
    if path.is_dir():
        raise UserError(f"interpret.surface = {name} is a folder: {_HELP}.")
    if not path.is_file():
        near = difflib.get_close_matches(name, [FSAVERAGE], cutoff=0.8)
        raise UserError(
            f"There is no surface {name}{f' (did you mean {FSAVERAGE}?)' if near else ''}: {_HELP}."
        )
    vertex_N3, face_F3, notes = _load(path)
    if re.search(
        r"(?i)inflated|spher|ellipsoid|(?<![a-z])flat(?![a-z])",
        f"{notes.get('GeometricType', '')} {path.name}",
    ):
        raise UserError(
            f"{path} is an inflated, spherical or flat surface, whose vertices do not lie where"
            " cortex is: give the pial, white or midthickness surface; its sulci are opened for"
            " the figure."
        )
    sides: dict[str, Side] = {"CortexLeft": "left", "CortexRight": "right"}
    side = sides.get(notes.get("AnatomicalStructurePrimary", "")) or side_of(path.name)
    if side is None:
        raise UserError(
            f"{path} does not say which hemisphere it is, left or right: give one file a"
            " hemisphere, and name it such as lh.pial, sub-01_hemi-L_pial.surf.gii or left.gii."
        )
    return Mesh(path.name, side, vertex_N3, face_F3)


def _load(path: Path) -> tuple[np.ndarray, np.ndarray, Mapping[str, Any]]:
    """Vertices, faces, and metadata of a GIFTI file."""
    notes: Mapping[str, Any] = {}
    try:
        if path.name.endswith((".gii", ".gii.gz")):
            image: Any = nibabel.load(path)
            points, triangles = (
                image.get_arrays_from_intent(f"NIFTI_INTENT_{kind}")
                for kind in ("POINTSET", "TRIANGLE")
            )
            if not points or not triangles:
                raise ValueError("it holds no points and triangles")
            vertex_N3, face_F3, notes = points[0].data, triangles[0].data, points[0].meta
        else:
            # not by nilearn, which goes by endings that lh.layerB1, lh.midthickness and lh.pial.T1
            # do not have
            with warnings.catch_warnings():
                warnings.simplefilter(
                    "ignore"
                )  # where the file has no geometry of a volume, hence no cras
                vertex_N3, face_F3, header = nibabel.freesurfer.read_geometry(
                    str(path), read_metadata=True
                )
            vertex_N3 = vertex_N3 + header.get(
                "cras", 0
            )  # FreeSurfer's own coordinates to the scanner's, as nilearn does
        if not np.isfinite(vertex_N3).all() or face_F3.min() < 0 or face_F3.max() >= len(vertex_N3):
            raise ValueError(
                "vertices that are not finite, or faces of vertices that are not there"
            )
    except Exception as error:  # readers fail on damaged files with many exception types
        raise UserError(f"{path} cannot be read as a mesh ({reason(error)}): {_HELP}.") from error
    return np.asarray(vertex_N3, dtype=np.float64), np.asarray(face_F3, dtype=np.int64), notes


def check_space(
    named: Sequence[str], meshes: Sequence[Mesh], places: Mapping[int, VoxelPlaces], subject: int
) -> tuple[str, ...]:
    """Compare a subject's meshes with where its voxels lie.

    Parameters
    ----------
    named : Sequence[str]
        As in `read_meshes`.
    places : Mapping[int, VoxelPlaces]
        Of all subjects.

    Returns
    -------
    tuple[str, ...]
        Sentences an embedding decoder of the figure has to know.

    Raises
    ------
    UserError
        When meshes of one subject would be used for several, or no voxel is near a vertex.
    """
    if not meshes:
        return ()
    mine, native, seen = (
        places[subject],
        FSAVERAGE not in named,
        ", ".join(dict.fromkeys(mesh.name for mesh in meshes)),
    )
    standard = all(each.space == MNI for each in places.values())
    if native and len(places) > 1 and not standard and not all(SUBJECT in name for name in named):
        raise UserError(
            f"interpret.surface = {','.join(named)} would be used for subjects"
            f" {', '.join(map(str, places))}, whose mask headers do not declare MNI space: replace"
            f" {subject_name(subject)} in the name by {SUBJECT}, or explain one subject with"
            f" --subj {subject}."
        )
    points = np.concatenate(
        [
            part
            for mesh in meshes
            for part in (mesh.vertex_N3, mesh.vertex_N3[mesh.face_F3].mean(axis=1))
        ]
    )
    distance_V, _ = KDTree(points).query(mine.millimetres_V3)
    if distance_V.min() > REACH:
        raise UserError(
            f"No voxel of subject {subject} lies within {REACH:g} mm of {seen} (the nearest is"
            f" {distance_V.min():.0f} mm away): they are not in the same space; {_HELP}."
        )
    notes = [
        f"Surface: {np.mean(distance_V <= REACH):.0%} of subject {subject}'s voxels lie within"
        f" {REACH:g} mm of {seen}."
    ]
    if not native and mine.space != MNI:
        codes = nibabel.nifti1.xform_codes
        label = codes.label[mine.space] if mine.space in codes.value_set("code") else "not known"
        notes.append(
            f"Surface: {FSAVERAGE} is right for volumes in MNI space only, and the header of"
            f" subject {subject}'s mask does not say that it is (NIfTI code {mine.space}, {label};"
            f" {MNI} is MNI152). Data in subject space would appear on the wrong gyri: give the"
            " subject's own surfaces (docs/interpret.md)."
        )
    return tuple(notes)


def check_vertices(meshes: Sequence[Mesh], places: SurfacePlaces) -> None:
    """Compare meshes with the surface that responses lie on.

    Raises
    ------
    UserError
        When a mesh has another number of vertices.
    """
    for mesh in meshes:
        side = mesh.side[0].upper()
        if side in places.vertices and vertex_values(mesh, places, np.zeros(places.voxels)) is None:
            raise UserError(
                f"interpret.surface: {mesh.name} has {len(mesh.vertex_N3)} vertices, the"
                f" {mesh.side} hemisphere of {places.surface}, which the responses lie on, has"
                f" {places.vertices[side]}: give meshes of that surface."
            )


def vertex_values(mesh: Mesh, places: SurfacePlaces, value_V: np.ndarray) -> np.ndarray | None:
    """A map at the vertices of a mesh, N, NaN without a column; None for another surface.

    FreeSurfer's icosahedra contain each other: the first vertices of fsaverage are those of
    fsaverage5. On the mesh that comes along, a coarser map is drawn at the nearest of its vertices.
    """
    side = mesh.side[0].upper()
    if side not in places.vertices:
        return np.full(len(mesh.vertex_N3), np.nan)
    texture = places.texture(side, np.asarray(value_V))
    if len(texture) == len(mesh.vertex_N3):
        return texture
    if (
        len(mesh.vertex_N3) in _ICOSAHEDRA
        and len(texture) in _ICOSAHEDRA
        and len(texture) > len(mesh.vertex_N3)
    ):
        return texture[: len(mesh.vertex_N3)]
    if mesh.name == FSAVERAGE and len(texture) in _ICOSAHEDRA:
        return texture[_nearest(mesh.side, len(texture))]
    return None


@lru_cache(maxsize=8)
def _nearest(side: Side, coarse: int) -> np.ndarray:
    """The nearest of the first vertices of fsaverage5, on the sphere, for every vertex."""
    shipped = datasets.fetch_surf_fsaverage(FSAVERAGE)
    sphere_N3, _ = load_surf_mesh(shipped[f"sphere_{side}"])
    return KDTree(sphere_N3[:coarse]).query(sphere_N3)[1]


def meshes_of(places: SurfacePlaces) -> tuple[Mesh, ...]:
    """The shipped meshes for responses on one of FreeSurfer's averages; none for other surfaces."""
    if not places.surface.startswith("fsaverage"):
        return ()
    shipped = read_meshes([FSAVERAGE], [0])[0]
    return tuple(
        mesh for mesh in shipped if vertex_values(mesh, places, np.zeros(places.voxels)) is not None
    )


def sample(mesh: Mesh, places: VoxelPlaces, value_V: np.ndarray) -> np.ndarray:
    """Mean of the voxels around every vertex (ball of `REACH` mm, trilinear), N; NaN with too few.

    nilearn's mean also counts what is interpolated towards the zeros outside the mask, so it is
    divided by that of the mask itself: a map of ones is one everywhere.
    """
    value_V = np.asarray(value_V, dtype=np.float64)
    finite_V = np.isfinite(
        value_V
    )  # what has no value counts as little as what lies outside the mask
    both_V2 = np.stack([np.where(finite_V, value_V, 0), finite_V], axis=1)
    volume = np.pad(
        places.to_volume(both_V2), ((1, 1), (1, 1), (1, 1), (0, 0))
    )  # a rim: nilearn extrapolates at the edge
    affine = places.affine @ np.block(
        [[np.eye(3), -np.ones((3, 1))], [np.zeros((1, 3)), np.ones((1, 1))]]
    )
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", "Mean of empty slice", RuntimeWarning
        )  # vertices outside the volume
        texture_N2 = vol_to_surf(
            nibabel.Nifti1Image(volume, affine),
            [mesh.vertex_N3, mesh.face_F3],
            radius=REACH,
            kind="ball",
        )
    value_N, filled_N = texture_N2.T
    known_N = filled_N >= _FEWEST  # NaN is not
    return np.where(known_N, value_N / np.where(known_N, filled_N, 1), np.nan)


def shown(mesh: Mesh) -> tuple[np.ndarray, np.ndarray]:
    """Vertex positions in figures with open sulci, N x 3, and their grey, larger in sulci, N."""
    mean_NN = _mean_of_neighbours(mesh.face_F3, len(mesh.vertex_N3))
    edge = float(
        np.median(
            np.linalg.norm(
                mesh.vertex_N3[mesh.face_F3[:, 0]] - mesh.vertex_N3[mesh.face_F3[:, 1]], axis=1
            )
        )
    )

    def smooth(value_N: np.ndarray, millimetres: float) -> np.ndarray:
        for _ in range(
            int(np.clip((millimetres / edge) ** 2, 1, 1000))
        ):  # a step spreads over about an edge
            value_N = mean_NN @ value_N
        return value_N

    inflated_N3 = (
        smooth(mesh.vertex_N3, _SMOOTHED) if mesh.inflated_N3 is None else mesh.inflated_N3
    )
    depth_N = (
        smooth(_curvature(mesh, mean_NN), _SMOOTHED / 4) if mesh.depth_N is None else mesh.depth_N
    )
    low, high = np.quantile(depth_N, (0.02, 0.98))
    return inflated_N3, 0.25 + 0.4 * np.clip((depth_N - low) / max(high - low, 1e-12), 0, 1)


def _mean_of_neighbours(faces: np.ndarray, vertices: int) -> csr_matrix:
    one, other = faces[:, [0, 1, 2, 1, 2, 0]].ravel(), faces[:, [1, 2, 0, 0, 1, 2]].ravel()
    beside_NN = csr_matrix((np.ones(len(one)), (one, other)), shape=(vertices, vertices))
    beside_NN += diags_array(np.ones(vertices))  # itself too: a vertex without faces stays
    return csr_matrix(diags_array(1 / np.asarray(beside_NN.sum(axis=1)).ravel()) @ beside_NN)


def _curvature(mesh: Mesh, mean_NN: csr_matrix) -> np.ndarray:
    """Larger in sulci: how far outside the neighbours' mean lies, N."""
    corner_F33 = mesh.vertex_N3[mesh.face_F3]
    normal_F3 = np.cross(corner_F33[:, 1] - corner_F33[:, 0], corner_F33[:, 2] - corner_F33[:, 0])
    normal_N3 = np.zeros_like(mesh.vertex_N3)
    for corner_F in mesh.face_F3.T:
        np.add.at(normal_N3, corner_F, normal_F3)
    normal_N3 /= np.maximum(np.linalg.norm(normal_N3, axis=1, keepdims=True), 1e-12)
    return ((mean_NN @ mesh.vertex_N3 - mesh.vertex_N3) * normal_N3).sum(axis=1)
