"""Where the columns of the betas lie: voxels of a volume, vertices of a surface, or nobody knows
where.

`order.json` of a subject's volumes says which: a mask (`volumes.py`), `{"surface": "fsaverage5",
...}` with vertices.npz beside it, or `{"columns": 200, ...}`. Maps go to NIfTI, to GIFTI (a file
per hemisphere), or to .npy.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import nibabel
import numpy as np

from braingen.data import nsd
from braingen.data.volumes import VoxelPlaces, load_places
from braingen.runtime.arrays import read_npz
from braingen.runtime.data_layout import Layout
from braingen.runtime.errors import UserError, as_sentence
from braingen.runtime.files import replaced_file, replaced_path, write_json
from braingen.runtime.text_files import read_json

SIDES = ("L", "R")
_STRUCTURE = {"L": "CortexLeft", "R": "CortexRight"}
_VERTICES, _COLUMNS = "vertices.npz", "columns.npz"


class SurfacePlaces(NamedTuple):
    """Columns that are vertices of a named surface. V columns."""

    surface: str
    """fsaverage5, fsLR, fsnative."""
    vertices: Mapping[str, int]
    """Side (L, R) -> vertices of the whole hemisphere."""
    side_V: np.ndarray
    """L or R; '' for a column that lies elsewhere (subcortical grayordinates)."""
    vertex_V: np.ndarray
    """int64, from 0 within the hemisphere."""
    source: str

    @property
    def voxels(self) -> int:
        """Number of columns."""
        return len(self.side_V)

    @property
    def key(self) -> bytes:
        """What distinguishes these places from others."""
        return self.side_V.astype("U1").tobytes() + self.vertex_V.tobytes()

    def restricted(self, kept_V: np.ndarray) -> SurfacePlaces:
        """The places of some of the columns, in the same order."""
        return self._replace(side_V=self.side_V[kept_V], vertex_V=self.vertex_V[kept_V])

    def texture(self, side: str, values: np.ndarray, fill: float = np.nan) -> np.ndarray:
        """Values of all vertices of a hemisphere, float32, `fill` where there is no column."""
        values = np.asarray(values)
        if values.shape[:1] != (self.voxels,):
            raise UserError(
                f"A map of shape {values.shape} was given; this subject has {self.voxels} columns"
                f" ({self.source})."
            )
        found = np.full((self.vertices[side], *values.shape[1:]), fill, dtype=np.float32)
        mine = self.side_V == side
        found[self.vertex_V[mine]] = values[mine]
        return found

    def files(self, path: Path) -> list[Path]:
        """Names of the files that a map is written to."""
        stem = Path(path).name.removesuffix(".gz").removesuffix(".nii")
        return [Path(path).with_name(f"{stem}_hemi-{side}.func.gii") for side in self.vertices]

    def write(self, path: Path, values: np.ndarray, fill: float = np.nan) -> None:
        """Write a map as GIFTI, one file per hemisphere; `path` is named as a volume would be."""
        for side, file in zip(self.vertices, self.files(path)):
            texture = self.texture(side, values, fill)
            maps = texture.reshape(len(texture), -1).T
            arrays = [
                nibabel.gifti.GiftiDataArray(np.ascontiguousarray(one), "NIFTI_INTENT_NONE")
                for one in maps
            ]
            meta = nibabel.gifti.GiftiMetaData(
                {"AnatomicalStructurePrimary": _STRUCTURE[side], "Surface": self.surface}
            )
            image = nibabel.gifti.GiftiImage(darrays=arrays, meta=meta)
            with replaced_path(file) as temporary:
                temporary.write_bytes(image.to_bytes())

    def read(self, path: Path) -> np.ndarray:
        """Read a map that `write` wrote.

        Raises
        ------
        UserError
            When a file is not there, or of another surface.
        """
        textures = {}
        for side, file in zip(self.vertices, self.files(path)):
            if not file.exists():
                raise UserError(
                    f"{file} is missing: maps of {self.surface} are GIFTI files, one per"
                    " hemisphere."
                )
            opened: object = nibabel.load(file)
            data = [array.data for array in opened.darrays]  # type: ignore[attr-defined]
            textures[side] = data[0] if len(data) == 1 else np.stack(data, axis=1)
            if len(textures[side]) != self.vertices[side]:
                raise UserError(
                    f"{file} has {len(textures[side])} vertices, {self.vertices[side]} of"
                    f" {self.surface} were expected."
                )
        first = next(iter(textures.values()))
        found = np.full((self.voxels, *first.shape[1:]), np.nan, dtype=np.float32)
        for side, texture in textures.items():
            mine = self.side_V == side
            found[mine] = texture[self.vertex_V[mine]]
        return found


class ColumnPlaces(NamedTuple):
    """Columns of arrays that nobody has given a place."""

    voxels: int
    source: str

    @property
    def key(self) -> bytes:
        """What distinguishes these places from others."""
        return str(self.voxels).encode()

    def restricted(self, kept_V: np.ndarray) -> ColumnPlaces:
        """Some of the columns."""
        return self._replace(voxels=int(np.asarray(kept_V, dtype=bool).sum()))

    def files(self, path: Path) -> list[Path]:
        """Name of the file that a map is written to."""
        return [
            Path(path).with_name(Path(path).name.removesuffix(".gz").removesuffix(".nii") + ".npy")
        ]

    def write(self, path: Path, values: np.ndarray, fill: float = 0) -> None:
        """Write a map as .npy, one value per column."""
        with replaced_file(self.files(path)[0]) as handle:
            np.save(handle, np.asarray(values))

    def read(self, path: Path) -> np.ndarray:
        """Nothing has a place here."""
        raise UserError(
            f"{path} cannot be compared with the responses: where their columns lie is not known"
            f" ({self.source})."
        )


Places = VoxelPlaces | SurfacePlaces | ColumnPlaces


def files_of(places: Places, path: Path) -> list[Path]:
    """Files that a map is written to."""
    return [path] if isinstance(places, VoxelPlaces) else places.files(path)


def key_of(places: Places) -> bytes:
    """What distinguishes places from others."""
    return places.indices_V3.tobytes() if isinstance(places, VoxelPlaces) else places.key


def surface_places(
    surface: str, parts: Sequence[tuple[str, int, np.ndarray | None, int]], source: str
) -> SurfacePlaces:
    """Places of columns in stretches.

    Parameters
    ----------
    surface : str
        Its name.
    parts : Sequence[tuple[str, int, np.ndarray | None, int]]
        Side ('' for none), vertices of the hemisphere, vertex of every column (None for all, in
        order), number of columns.
    source : str
        Where they come from.
    """
    vertices: dict[str, int] = {}
    sides, numbers = [], []
    for side, count, vertex_N, columns in parts:
        if side:
            vertices[side] = int(count)
        sides.append(np.full(columns, side, dtype="U1"))
        numbers.append(
            np.arange(columns) if vertex_N is None else np.asarray(vertex_N, dtype=np.int64)
        )
    return SurfacePlaces(
        surface, vertices, np.concatenate(sides), np.concatenate(numbers).astype(np.int64), source
    )


def save_other_places(
    layout: Layout, subject: int, places: SurfacePlaces | ColumnPlaces
) -> list[Path]:
    """Write order.json, and the vertices of a surface."""
    folder = layout.volumes(subject)
    if isinstance(places, ColumnPlaces):
        write_json(folder / "order.json", {"columns": places.voxels, "source": places.source})
        return [folder / "order.json"]
    with replaced_file(folder / _VERTICES) as handle:
        np.savez(handle, side=places.side_V.astype("U1"), vertex=places.vertex_V)
    facts = {
        "surface": places.surface,
        "hemispheres": dict(places.vertices),
        "voxels": places.voxels,
        "source": places.source,
    }
    write_json(folder / "order.json", facts)
    return [folder / "order.json", folder / _VERTICES]


def save_columns(layout: Layout, subject: int, kept_V: np.ndarray, whole: int) -> list[Path]:
    """Keep which columns of the arrays of a subject are its voxels; nothing where all are.

    Parameters
    ----------
    kept_V : np.ndarray
        Columns that are kept, from 0.
    whole : int
        Columns of the arrays.
    """
    path = layout.volumes(subject) / _COLUMNS
    if len(kept_V) == whole:
        path.unlink(missing_ok=True)
        return []
    with replaced_file(path) as handle:
        np.savez(handle, kept=kept_V.astype(np.int64), whole=np.int64(whole))
    return [path]


def kept_columns(layout: Layout, subject: int, whole: int) -> np.ndarray | None:
    """Columns of arrays of that width that a subject's voxels are; None where it is not known.

    Raises
    ------
    UserError
        When the file that says so is damaged.
    """
    path = layout.volumes(subject) / _COLUMNS
    if not path.exists():
        return None
    stored = read_npz(path, nsd.WRITE_IT)
    return stored["kept"] if int(stored["whole"]) == whole else None


def load_any_places(layout: Layout, subject: int) -> Places:
    """Where a subject's columns lie, of whatever kind.

    Raises
    ------
    UserError
        When a file is missing or damaged.
    """
    folder = layout.volumes(subject)
    path = folder / "order.json"
    if not path.exists():
        return load_places(layout, subject)
    order = read_json(path, nsd.WRITE_IT)
    with as_sentence(f"{path} does not say where columns lie", nsd.WRITE_IT):
        if "columns" in order:
            return ColumnPlaces(int(order["columns"]), str(order["source"]))
        if "surface" in order:
            stored = read_npz(folder / _VERTICES, nsd.WRITE_IT)
            vertices = {side: int(count) for side, count in order["hemispheres"].items()}
            side_V, vertex_V = stored["side"], stored["vertex"]
            places = SurfacePlaces(
                str(order["surface"]), vertices, side_V, vertex_V, str(order["source"])
            )
            if places.voxels != int(order["voxels"]):
                raise UserError(
                    f"{folder / _VERTICES} has {places.voxels} vertices, {path} says"
                    f" {order['voxels']}; {nsd.WRITE_IT}."
                )
            return places
    return load_places(layout, subject)
