"""NSD's betas on fsaverage: lh/rh.betas_sessionNN.mgh (or .hdf5), percent signal change, a column per vertex, left before right."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import h5py
import nibabel
import numpy as np

from braingen.data import nsd
from braingen.data.large_files import blocks
from braingen.data.places import Places, SurfacePlaces, surface_places
from braingen.data.raw_nsd import GET_RAW, TRIALS_AT_ONCE, RawNSD, _labels
from braingen.data.volumes import with_joined_areas
from braingen.errors import UserError
from braingen.files import refuse_stand_in

SPACE = "fsaverage"
_SIDES = {"L": "lh", "R": "rh"}


class RawNSDSurface(RawNSD):
    """NSD's own files, with the responses on fsaverage; everything else as `RawNSD`."""

    def betas_folder(self, subject: int) -> Path:
        return self.root / "nsddata_betas" / "ppdata" / nsd.subject_name(subject) / SPACE / self.version

    @property
    def labels_folder(self) -> Path:
        """Region labels of fsaverage."""
        return self.root / "nsddata" / "freesurfer" / SPACE / "label"

    def _files(self, subject: int, session: int) -> dict[str, Path]:
        found: dict[str, Path] = {}
        for side, name in _SIDES.items():
            stem = self.betas_folder(subject) / f"{name}.betas_session{session:02d}"
            path = next((p for ending in (".mgh", ".mgz", ".hdf5") if (p := stem.with_name(stem.name + ending)).exists()), None)
            if path is None:
                raise UserError(f"{stem}.mgh (or .hdf5) is missing; {GET_RAW}.")
            found[side] = refuse_stand_in(path, GET_RAW)
        return found

    def session_files(self, subject: int, session: int) -> list[Path]:
        return list(self._files(subject, session).values())

    @cached_property
    def _vertices(self) -> dict[int, dict[str, int]]:
        return {}

    def _whole(self, subject: int) -> SurfacePlaces:
        """All vertices."""
        if subject not in self._vertices:
            self._vertices[subject] = {side: _shape(path)[0] for side, path in self._files(subject, 1).items()}
        count = self._vertices[subject]
        return surface_places(SPACE, [(side, n, None, n) for side, n in count.items()], f"{self.origin}, on {SPACE}")

    def _label_vector(self, subject: int, name: str) -> np.ndarray | None:
        """Labels of all vertices, left before right; None where NSD's files are not there."""
        paths = [self.labels_folder / f"{side}.{name}.mgz" for side in _SIDES.values()]
        if not all(path.exists() for path in paths):
            return None
        values = []
        for path in paths:
            image: Any = nibabel.load(path)
            values.append(np.asarray(image.dataobj).ravel())
        found, whole = np.concatenate(values), self._whole(subject)
        if len(found) != whole.voxels:
            raise UserError(f"{paths[0]} has {len(values[0])} vertices, the betas have {whole.vertices['L']}; {GET_RAW}.")
        return found

    def _kept(self, subject: int) -> np.ndarray | None:
        """Vertices of the mask; None for all."""
        name, _, labels = self.region.partition(":")
        if name == "all":
            return None
        values = self._label_vector(subject, name)
        if values is None:
            if name != "nsdgeneral":
                raise UserError(
                    f"There are no labels {self.labels_folder}/lh.{name}.mgz and rh.; {GET_RAW}, or take every vertex with --mask all."
                )
            return None
        kept = np.isin(values, _labels(labels, self.mask, name)) if labels else values > 0
        if not kept.any():
            raise UserError(f"{self.labels_folder}/lh.{name}.mgz: no vertex is in {self.mask}; give a mask with vertices in it.")
        return kept

    def places(self, subject: int) -> Places:  # type: ignore[override]
        whole, kept = self._whole(subject), self._kept(subject)
        return whole if kept is None else whole.restricted(kept)

    def candidates(self, subject: int) -> tuple[int, int]:
        return self.places(subject).voxels, self._whole(subject).voxels

    def regions(self, subject: int, places: Places | None, kept_V: np.ndarray) -> dict[str, np.ndarray]:
        masks = {"nsd_general": np.ones(int(kept_V.sum()), dtype=bool)}
        areas, kept = self._label_vector(subject, "prf-visualrois"), self._kept(subject)
        if areas is None:
            return masks
        areas_V = (areas if kept is None else areas[kept])[kept_V]
        masks |= {name: np.isin(areas_V, labels) for name, labels in nsd.VISUAL_ROI_LABELS.items()}
        return with_joined_areas(masks)

    def volumes(self, subject: int) -> Mapping[str, Path]:
        return {}

    def responses(self, subject: int, session: int, trials: int, places: Places | None) -> Iterator[np.ndarray]:
        files, kept = self._files(subject, session), self._kept(subject)
        for side, path in files.items():
            vertices, count = _shape(path)
            if count != trials or vertices != self._whole(subject).vertices[side]:
                raise UserError(
                    f"{path} holds {vertices} vertices x {count} trials, {self._whole(subject).vertices[side]} x {trials} were "
                    "expected by the "
                    f"first session and responses.tsv; {GET_RAW}."
                )
        for first, last in blocks(trials, TRIALS_AT_ONCE):
            block = np.concatenate([_read(path, first, last) for path in files.values()], axis=1)
            yield (block if kept is None else block[:, kept]).astype(np.float64)

    def notes(self, subject: int) -> list[str]:
        whole, kept = self._whole(subject), self._kept(subject)
        if kept is None:
            return [
                f"every vertex of {SPACE} is taken ({whole.voxels}): NSD's labels of nsdgeneral are not in {self.labels_folder}, or "
                "--mask all"
            ]
        return [f"mask {self.mask}: {int(kept.sum())} of {whole.voxels} vertices of {SPACE}"]


def _shape(path: Path) -> tuple[int, int]:
    """Vertices and trials of a hemisphere's file."""
    try:
        if path.suffix == ".hdf5":
            with h5py.File(path, "r") as file:
                trials, vertices = file[nsd.BETAS_DATASET].shape
            return int(vertices), int(trials)
        image: Any = nibabel.load(path)
        return int(image.shape[0]), int(image.shape[3]) if len(image.shape) > 3 else 1
    except (OSError, KeyError, ValueError, nibabel.filebasedimages.ImageFileError) as error:
        raise UserError(f"{path} cannot be read ({' '.join(str(error).split())}); {GET_RAW}.") from error


def _read(path: Path, first: int, last: int) -> np.ndarray:
    """Trials x vertices."""
    if path.suffix == ".hdf5":
        with h5py.File(path, "r") as file:
            return file[nsd.BETAS_DATASET][first:last]
    image: Any = nibabel.load(path)
    block = np.asarray(image.dataobj[..., first:last] if len(image.shape) > 3 else image.dataobj)
    return block.reshape(image.shape[0], last - first).T
