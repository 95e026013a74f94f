"""NSD's betas on fsaverage: a file per hemisphere, a column per vertex, left before right."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import nibabel
import numpy as np

from braingen.data import nsd
from braingen.data.hdf5 import Rows
from braingen.data.ingest.forms import Asked, Part, Source
from braingen.data.ingest.forms.surfaces import join_hemispheres, read_mgh
from braingen.data.ingest.names import Named
from braingen.data.large_files import blocks
from braingen.data.places import Places, SurfacePlaces, surface_places
from braingen.data.raw_nsd.betas import GET_RAW, TRIALS_AT_ONCE
from braingen.data.raw_nsd.masks import visual_areas
from braingen.data.raw_nsd.release import RawNSD
from braingen.data.volumes import with_joined_areas
from braingen.errors import UserError
from braingen.files import refuse_stand_in

SPACE = "fsaverage"
_SIDES = {"L": "lh", "R": "rh"}


class RawNSDSurface(RawNSD):
    """NSD's own files with the responses on fsaverage, percent signal change."""

    space = SPACE

    @property
    def labels_folder(self) -> Path:
        """Region labels of fsaverage."""
        return self.root / "nsddata" / "freesurfer" / SPACE / "label"

    def session_files(self, subject: int, session: int) -> list[Path]:
        found = []
        for name in _SIDES.values():
            stem = self.betas_folder(subject) / f"{name}.betas_session{session:02d}"
            paths = [stem.with_name(stem.name + end) for end in (".mgh", ".mgz", ".hdf5")]
            path = next((path for path in paths if path.exists()), None)
            if path is None:
                raise UserError(f"{stem}.mgh (or .hdf5) is missing; {GET_RAW}.")
            found.append(refuse_stand_in(path, GET_RAW))
        return found

    @lru_cache(maxsize=4)  # noqa: B019  (lives as long as the command)
    def _source(self, subject: int, session: int) -> Source:
        paths = self.session_files(subject, session)
        named = [Named(p, {"hemi": side}, "betas", p.suffix) for side, p in zip(_SIDES, paths)]
        read = [read_mgh(f, Asked()) if f.ending != ".hdf5" else _read_hdf5(f) for f in named]
        return join_hemispheres(named, read)

    def _whole(self, subject: int) -> SurfacePlaces:
        """All vertices."""
        parts = [(part.side, part.vertices) for part in self._source(subject, 1).parts]
        origin = f"{self.origin}, on {SPACE}"
        return surface_places(SPACE, [(side, n, None, n) for side, n in parts], origin)

    def _labels(self, subject: int, name: str) -> np.ndarray | None:
        """Labels of all vertices, left before right; None where NSD's files are not there."""
        paths = [self.labels_folder / f"{side}.{name}.mgz" for side in _SIDES.values()]
        if not all(path.exists() for path in paths):
            return None
        images: list[Any] = [nibabel.load(path) for path in paths]
        values = [np.asarray(image.dataobj).ravel() for image in images]
        expected = list(self._whole(subject).vertices.values())
        if [len(each) for each in values] != expected:
            raise UserError(
                f"{paths[0]} has {len(values[0])} vertices, the betas have {expected[0]}; "
                f"{GET_RAW}."
            )
        return np.concatenate(values)

    def _kept(self, subject: int) -> np.ndarray | None:
        """Vertices of the mask, bool; None for all."""
        name = self.mask.volume
        if name == "all":
            return None
        stem = f"{self.labels_folder}/lh.{name}.mgz"
        values = self._labels(subject, name)
        if values is None:
            if name != "nsdgeneral":
                raise UserError(
                    f"There are no labels {stem} and rh.; {GET_RAW}, or take every vertex with "
                    "--mask all."
                )
            return None
        kept = self.mask.inside(values)
        if not kept.any():
            raise UserError(
                f"{stem}: no vertex is in {self.mask.asked}; give a mask with vertices in it."
            )
        return kept

    def places(self, subject: int) -> Places:  # type: ignore[override]
        whole, kept = self._whole(subject), self._kept(subject)
        return whole if kept is None else whole.restricted(kept)

    def candidates(self, subject: int) -> tuple[int, int]:
        return self.places(subject).voxels, self._whole(subject).voxels

    def regions(
        self, subject: int, places: Places | None, kept_V: np.ndarray
    ) -> dict[str, np.ndarray]:
        masks = {"nsd_general": np.ones(int(kept_V.sum()), dtype=bool)}
        areas, kept = self._labels(subject, "prf-visualrois"), self._kept(subject)
        if areas is None:
            return masks
        areas_V = areas if kept is None else areas[kept]
        return with_joined_areas(masks | visual_areas(areas_V[kept_V]))

    def volumes(self, subject: int) -> Mapping[str, Path]:
        return {}

    def responses(
        self, subject: int, session: int, trials: int, places: Places | None
    ) -> Iterator[np.ndarray]:
        source, vertices = self._source(subject, session), self._whole(subject).voxels
        if (source.trials, source.columns) != (trials, vertices):
            raise UserError(
                f"{source.name} and rh. hold {source.columns} vertices x {source.trials} trials, "
                f"{vertices} x {trials} were expected by the first session and responses.tsv; "
                f"{GET_RAW}."
            )
        kept = self._kept(subject)
        for first, last in blocks(trials, TRIALS_AT_ONCE):
            block = source.read(first, last).astype(np.float64)
            yield block if kept is None else block[:, kept]

    def notes(self, subject: int) -> list[str]:
        whole, kept = self._whole(subject).voxels, self._kept(subject)
        if kept is None:
            return [
                f"every vertex of {SPACE} is taken ({whole}): NSD's labels of nsdgeneral are not "
                f"in {self.labels_folder}, or --mask all"
            ]
        return [f"mask {self.mask.asked}: {int(kept.sum())} of {whole} vertices of {SPACE}"]


def _read_hdf5(file: Named) -> Source:
    """Trials x vertices."""
    rows = Rows(file.path, nsd.BETAS_DATASET, GET_RAW)
    trials, vertices = rows.shape
    part = Part(file.of("hemi"), vertices, None)

    def take(first: int, last: int) -> np.ndarray:
        return rows.take(np.arange(first, last))

    return Source((file.path,), "HDF5", trials, (vertices,), take, parts=(part,), surface=SPACE)
