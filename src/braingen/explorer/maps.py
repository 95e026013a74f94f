"""Maps of the brain for the page: experts, contributions, tuning; as values and as files.

V voxels, E experts of a level, F numbers of an embedding.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import nibabel
import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from braingen.data.places import ColumnPlaces, SurfacePlaces
from braingen.data.volumes import VoxelPlaces
from braingen.explorer.ablating import AveragedTestResponses, checked_part, encoder_of
from braingen.explorer.explored_run import ExploredRun
from braingen.explorer.generating import check_image
from braingen.explorer.requests import MapRequest
from braingen.interpret.attribution import Explainer, Query
from braingen.interpret.experts import voxel_selectivity
from braingen.interpret.readout import DecoderPart, Readout, decode
from braingen.runtime.errors import UserError

POINTS = 64
"""Points of integrated gradients, as in `braingen interpret`."""
TRIALS = 64
"""Test images over which routing that depends on the trial is averaged."""


class BrainMap(NamedTuple):
    """A value, or the number of an expert, for every voxel."""

    value_V: np.ndarray
    """float32; for experts of a level int16, counted from 1, 0 for none."""
    kind: str
    """``labels``, ``share`` (0 to 1) or ``signed``."""
    limit: float
    """Upper end of the colours; signed maps go down to its negative."""
    labels: tuple[str, ...]
    """Names of the labels from 1; empty for others."""
    note: str
    """What is shown, and in which unit."""
    regions: tuple[tuple[str, int, float | str], ...]
    """Region, voxels, and the mean in it, or its most frequent label."""


def brain_map(run: ExploredRun, asked: MapRequest) -> BrainMap:
    """Compute a map.

    Raises
    ------
    UserError
        When the run does not have what is asked for.
    """
    if asked.kind == "experts":
        return _experts(run, asked)
    if asked.kind == "contribution":
        return _contribution(run, asked)
    return _tuning(run, asked)


def _experts(run: ExploredRun, asked: MapRequest) -> BrainMap:
    encoder = encoder_of(run, asked.encoder)
    part = checked_part(run, asked.encoder, asked.part)
    if part.level is None:
        raise UserError("Choose a level or an expert: the whole decoder is no expert.")
    some_BV = torch.from_numpy(AveragedTestResponses(run)[:TRIALS]).to(encoder.device)
    levels = voxel_selectivity(encoder, run.subject, some_BV)
    if part.level >= len(levels):
        raise UserError(
            f"Voxels are traced to {len(levels)} levels of this encoder; there is no {part.name}."
        )
    found = levels[part.level]
    traced = "" if found.exact else " Units are traced by their position, so this is approximate."
    if part.expert is not None:
        share_V = found.share_EV[part.expert].astype(np.float32)
        note = f"Share of every voxel's squared weights that goes to {part.title}.{traced}"
        return _valued(run, share_V, "share", float(share_V.max()) or 1.0, note)
    chosen_V = np.where(found.share_EV.sum(axis=0) > 0, found.chosen_V + 1, 0).astype(np.int16)
    names = tuple(f"expert {expert}" for expert in range(len(found.share_EV)))
    rows = tuple(
        (name, int(inside_V.sum()), _most_frequent(chosen_V[inside_V], names))
        for name, inside_V in run.regions.items()
    )
    note = f"The expert of {part.title} that receives most of every voxel's weights.{traced}"
    return BrainMap(chosen_V, "labels", float(len(names)), names, note, rows)


def _most_frequent(label_V: np.ndarray, names: tuple[str, ...]) -> str:
    counts = np.bincount(label_V, minlength=len(names) + 1)
    best = int(counts.argmax())
    return f"{names[best - 1] if best else 'none'} ({counts[best] / max(1, len(label_V)):.0%})"


def _contribution(run: ExploredRun, asked: MapRequest) -> BrainMap:
    if asked.image is None:
        raise UserError("A contribution is that to one image: choose an image.")
    check_image(run, asked.image)
    encoder = encoder_of(run, asked.encoder)
    part = checked_part(run, asked.encoder, asked.part)
    voxels_1V = torch.from_numpy(run.responses(asked.image).mean(axis=0)[None]).to(encoder.device)
    direction_1F, about = _direction(run, asked, voxels_1V)
    explainer = Explainer(Readout(encoder, run.subject, part), "integrated_gradients", steps=POINTS)
    found = explainer(Query(np.array([asked.image]), voxels_1V, direction_1F))
    value_V = found.map_BV[0].detach().float().cpu().numpy()
    value, error = float(found.value_B[0]), float(found.error_B[0])
    note = (
        f"Contribution of every voxel to the output of {_of(part)} along the {about} embedding"
        f" (integrated gradients, {POINTS} points). Contributions add up to"
        f" {value_V.sum():.3g}; the completeness error is {abs(error) / max(abs(value), 1e-12):.1%}"
        " of the value."
    )
    return _valued(run, value_V, "signed", _limit(value_V), note)


def _direction(run: ExploredRun, asked: MapRequest, voxels_1V: Tensor) -> tuple[Tensor, str]:
    """Direction of length 1 whose contributions are shown, and its name."""
    encoder = encoder_of(run, asked.encoder)
    if asked.encoder == "image" and run.true is not None and asked.image is not None:
        true_1F = encoder.standardised(run.true(asked.image).to(encoder.device)).flatten(1)
        return normalize(true_1F, dim=1), "true"
    with torch.no_grad():
        return normalize(decode(encoder, voxels_1V, run.subject), dim=1), "decoded"


def _of(part: DecoderPart) -> str:
    return "the whole encoder" if part.level is None else part.title


def _tuning(run: ExploredRun, asked: MapRequest) -> BrainMap:
    if asked.category not in run.tuning:
        raise UserError(
            f"{run.name} has no tuning to {asked.category!r}; there is"
            f" {', '.join(run.tuning) or 'none'}."
        )
    value_V = np.asarray(run.tuning[asked.category](), dtype=np.float32)
    note = (
        f"Response that the encoding model predicts to images of {asked.category}, less that to all"
        " other images, in standard deviations of the voxel's responses."
    )
    return _valued(run, value_V, "signed", _limit(value_V), note)


def _valued(run: ExploredRun, value_V: np.ndarray, kind: str, limit: float, note: str) -> BrainMap:
    rows = tuple(
        (name, int(inside_V.sum()), float(value_V[inside_V].mean()))
        for name, inside_V in run.regions.items()
        if inside_V.any()
    )
    return BrainMap(value_V, kind, limit, (), note, rows)


def _limit(value_V: np.ndarray) -> float:
    """99th percentile of sizes; the largest size where that is 0, 1 where all are."""
    size_V = np.abs(value_V[np.isfinite(value_V)])
    if not size_V.size:
        return 1.0
    return float(np.quantile(size_V, 0.99)) or float(size_V.max()) or 1.0


def form_of(run: ExploredRun) -> str:
    """How maps of a run are shown: ``volume``, ``surface``, or ``none`` where places are
    unknown or of a surface without a mesh.
    """
    if isinstance(run.places, VoxelPlaces):
        return "volume"
    return "surface" if isinstance(run.places, SurfacePlaces) and meshes(run) else "none"


def nifti_bytes(run: ExploredRun, value_V: np.ndarray) -> bytes:
    """A map as NIfTI-1, uncompressed, 0 outside of the mask.

    Raises
    ------
    UserError
        When the responses are not voxels of a volume.
    """
    if not isinstance(run.places, VoxelPlaces):
        raise UserError(f"The responses of {run.name} are not voxels of a volume.")
    volume = run.places.to_volume(np.nan_to_num(value_V))
    image = nibabel.Nifti1Image(volume, run.places.affine)
    image.header.set_xyzt_units("mm")
    return image.to_bytes()


def meshes(run: ExploredRun) -> dict[str, Any]:
    """Side (left, right) -> shipped mesh of the surface on which responses lie; empty for other
    surfaces.
    """
    from braingen.interpret.surface import meshes_of  # nilearn's surfaces load slowly

    if not isinstance(run.places, SurfacePlaces):
        return {}
    return {mesh.side: mesh for mesh in meshes_of(run.places)}


def mesh_bytes(run: ExploredRun, side: str) -> bytes:
    """An inflated hemisphere as GIFTI."""
    from braingen.interpret.surface import shown

    inflated_N3, _ = shown(_mesh(run, side))
    arrays = [
        nibabel.gifti.GiftiDataArray(inflated_N3.astype(np.float32), "NIFTI_INTENT_POINTSET"),
        nibabel.gifti.GiftiDataArray(
            _mesh(run, side).face_F3.astype(np.int32), "NIFTI_INTENT_TRIANGLE"
        ),
    ]
    return nibabel.gifti.GiftiImage(darrays=arrays).to_bytes()


def texture_bytes(run: ExploredRun, side: str, value_V: np.ndarray) -> bytes:
    """A map on the vertices of a hemisphere as GIFTI, 0 where there is no column."""
    from braingen.interpret.surface import vertex_values

    assert isinstance(run.places, SurfacePlaces)
    value_N = vertex_values(_mesh(run, side), run.places, value_V)
    array = np.nan_to_num(np.asarray(value_N, dtype=np.float32))
    data = nibabel.gifti.GiftiDataArray(array, "NIFTI_INTENT_SHAPE")
    return nibabel.gifti.GiftiImage(darrays=[data]).to_bytes()


def _mesh(run: ExploredRun, side: str) -> Any:
    found = meshes(run)
    if side not in found:
        raise UserError(
            f"{run.name} has no {side} hemisphere of a known surface; there is"
            f" {', '.join(found) or 'none'}."
        )
    return found[side]


def whole(run: ExploredRun) -> np.ndarray:
    """1 at every voxel: the part of the brain that was measured."""
    if isinstance(run.places, ColumnPlaces):
        raise UserError(f"Where the columns of {run.name} lie is not known.")
    return np.ones(run.places.voxels, dtype=np.uint8)
