"""Where a subject's voxels lie: the mask that fits the responses, on a volume or a surface."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property

import numpy as np

from braingen.data.ingest.forms import ScanPart, ScanSource
from braingen.data.ingest.forms.surfaces import VERTICES
from braingen.data.ingest.grids import Grid, misfit
from braingen.data.ingest.inputs import Inputs
from braingen.data.ingest.masks import EVERYWHERE, Mask, choose_mask
from braingen.data.ingest.names import GUIDE, differing
from braingen.data.ingest.recordings import RecordingRun, Recordings
from braingen.data.places import Places, SurfacePlaces, surface_places
from braingen.data.volumes import ALIGNED, VoxelPlaces, load_nifti
from braingen.runtime.errors import UserError


class VoxelSpace:
    """Mask and places of one subject's voxels.

    Parameters
    ----------
    inputs : Inputs
        Files of the folder.
    recordings : Recordings
        The subject's responses.
    subject : int
        Its number.
    origin : str
        Where the scans come from, for order.json.
    """

    def __init__(self, inputs: Inputs, recordings: Recordings, subject: int, origin: str) -> None:
        self.inputs, self.recordings = inputs, recordings
        self._subject, self._origin = subject, origin
        self.notes: list[str] = []
        """For the summary."""

    @property
    def source(self) -> ScanSource:
        """The responses that define the space."""
        return self.recordings.lead

    @cached_property
    def mask(self) -> Mask | None:
        """The mask that fits the responses; None for every voxel.

        Raises
        ------
        UserError
            When none fits, or a volume has none.
        """
        asked = self.inputs.prepare.mask
        source, label = self.source, self.recordings.label
        if source.is_volume and source.affine is None:
            source = source._replace(affine=self._affine_of_masks())
        masks = self.inputs.masks_of(label)
        wanted, limit = self.inputs.wanted, self.inputs.prepare.mask_above
        found = choose_mask(masks, asked, source, wanted, limit, self._subject)
        needs_one = source.is_volume and source.form in ("NIfTI", "one file per trial")
        if found is None and needs_one and asked != EVERYWHERE:
            raise UserError(
                f"{source.name} is a volume, but there is no mask that says which voxels to take "
                f"(sub-{label}_mask.nii.gz); take every voxel with responses with --mask all; "
                f"{GUIDE}."
            )
        if found is None or source.is_volume or found.kept.shape == source.grid:
            return found
        if found.kept.size == source.columns:
            return found._replace(kept=found.kept.ravel())
        if found.kept.sum() == source.columns:
            return found
        if asked:
            raise UserError(
                f"The mask {found.files[0]} has {found.kept.size} places, {found.kept.sum()} of "
                f"them kept; {source.name} has {source.columns} columns; give a mask of as many."
            )
        where = f"they lie on {source.surface}" if source.parts else "where they lie is not known"
        self.notes.append(
            f"the mask {found.files[0].name} ({int(found.kept.sum())} voxels) is not used: the "
            f"responses have {source.columns} columns, {where}"
        )
        return None

    def _affine_of_masks(self) -> np.ndarray | None:
        """The one affine of the masks that have the responses' shape, for arrays without one."""
        masks, grid = self.inputs.masks_of(self.recordings.label), self.source.grid
        affines: list[np.ndarray] = []
        for file in masks:
            if not file.ending.startswith(".nii"):
                continue
            image = load_nifti(file.path)
            this = Grid(grid, image.affine)
            if image.shape[:3] == grid and all(misfit(this, Grid(grid, a)) for a in affines):
                affines.append(image.affine)
        if (
            len(affines) > 1
            and not self.inputs.wanted.get("space")
            and not self.inputs.prepare.mask
        ):
            spaces = ", ".join(differing(masks).get("space", []))
            raise UserError(
                f"{self.source.name} does not say in which space it is, and there are masks of "
                f"several of its shape ({spaces}); choose with --space VALUE or --mask FILE."
            )
        return affines[0] if len(affines) == 1 else None

    @cached_property
    def places(self) -> Places | None:
        """Places of the voxels inside the mask; None where they are not known."""
        mask, source, order = self.mask, self.source, self.inputs.prepare.order
        if source.is_volume:
            kept = np.ones(source.grid, dtype=bool) if mask is None else mask.kept
            affines = (source.affine, None if mask is None else mask.affine, np.eye(4))
            affine = next(affine for affine in affines if affine is not None)
            space = (source if mask is None else mask).space or ALIGNED
            return VoxelPlaces(kept, order, affine, self._origin, space)
        if mask is not None and mask.kept.ndim == 3 and mask.kept.sum() == source.columns:
            affine = np.eye(4) if mask.affine is None else mask.affine
            return VoxelPlaces(mask.kept, order, affine, self._origin, mask.space)
        if source.parts or (source.surface and source.columns // 2 in VERTICES):
            places, columns = self._on_surface(source), self.columns(source)
            return places if columns is None else places.restricted(columns)
        return None

    def _on_surface(self, source: ScanSource) -> SurfacePlaces:
        half = source.columns // 2
        surface = source.surface if source.parts else VERTICES[half]
        parts: list[tuple[str, int, np.ndarray | None, int]] = []
        for part in source.parts or tuple(ScanPart(side, half, None) for side in ("L", "R")):
            count = part.vertices if part.vertex_N is None else len(part.vertex_N)
            parts.append((part.side, part.vertices, part.vertex_N, count))
        below = source.columns - sum(count for *_, count in parts)
        if below > 0:  # grayordinates below the cortex
            parts.append(("", 0, None, below))
        return surface_places(surface, parts, self._origin)

    def columns(self, source: ScanSource) -> np.ndarray | None:
        """Columns of a source that the mask keeps; None for all."""
        mask = self.mask
        if source.is_volume:
            assert isinstance(self.places, VoxelPlaces)
            return np.ravel_multi_index(tuple(self.places.indices_V3.T), source.grid)
        if mask is not None and mask.kept.ndim == 1 and mask.kept.size == source.columns:
            return np.flatnonzero(mask.kept)
        return None

    def responses(self, run: RecordingRun) -> Iterator[np.ndarray]:
        """Responses to the trials of a run, a block at a time: trials x voxels, float64."""
        source, row = self.recordings.sources[run.source], run.trials["row"].to_numpy()
        columns = self.columns(source)
        for first in range(int(row[0]), int(row[-1]) + 1, source.at_once):
            last = min(first + source.at_once, int(row[-1]) + 1)
            wanted = row[(row >= first) & (row < last)]
            if len(wanted):
                block = source.read(first, last)
                block = block if columns is None else block[:, columns]
                yield block[wanted - first].astype(np.float64)
