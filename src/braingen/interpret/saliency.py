"""Saliency in the image: voxel contributions projected through their receptive fields.

N images, V voxels, P = side x side pixels, row by row from the upper left corner.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.stats import rankdata

from braingen.data.large_files import blocks
from braingen.evaluation.uncertainty import mean_interval

_VOXELS, _IMAGES = 512, 64
"""Voxels and images per block."""


class ReceptiveFields(NamedTuple):
    """Population receptive fields of voxels, in degrees from the centre of the image."""

    x_V: np.ndarray
    """Rightwards."""
    y_V: np.ndarray
    """Upwards."""
    size_V: np.ndarray
    """Standard deviation of the Gaussian."""

    @classmethod
    def from_polar(
        cls, eccentricity_V: np.ndarray, angle_V: np.ndarray, size_V: np.ndarray
    ) -> ReceptiveFields:
        """From eccentricity, polar angle (counter-clockwise from the right) and size in degrees."""
        angle = np.radians(angle_V)
        return cls(
            eccentricity_V * np.cos(angle), eccentricity_V * np.sin(angle), np.asarray(size_V)
        )

    @property
    def usable_V(self) -> np.ndarray:
        """Voxels with finite values and positive size."""
        return (
            np.isfinite(self.x_V)
            & np.isfinite(self.y_V)
            & np.isfinite(self.size_V)
            & (self.size_V > 0)
        )


def places(side: int, field_of_view: float) -> tuple[np.ndarray, np.ndarray]:
    """Degrees to the right and up of the centres of side x side squares, P each."""
    along = ((np.arange(side) + 0.5) / side - 0.5) * field_of_view
    return np.tile(along, side), np.repeat(-along, side)


def gaussians(fields: ReceptiveFields, side: int, field_of_view: float) -> np.ndarray:
    """Receptive fields in the image, V x P float32, each with sum 1, or zeros outside."""
    x_P, y_P = places(side, field_of_view)
    out_VP = np.zeros((len(fields.x_V), side * side), dtype=np.float32)
    usable = np.flatnonzero(fields.usable_V)
    for first, last in blocks(len(usable), _VOXELS):
        some = usable[first:last]
        x, y, size = (np.asarray(values, dtype=np.float64)[some, None] for values in fields)
        squared = (x_P - x) ** 2 + (y_P - y) ** 2
        weight = np.exp(-squared / (2 * size**2))
        total = weight.sum(axis=1, keepdims=True)
        out_VP[some] = np.where(total > 1e-6, weight / np.maximum(total, 1e-6), 0)
    return out_VP


def saliency(
    maps_NV: np.ndarray, gaussian_VP: np.ndarray, out_NP: np.ndarray | None = None
) -> np.ndarray:
    """Positive contributions in the image: N x P float32, each with sum 1 (0 without any).

    Negative contributions come from other parts of the image or from cancelled noise. Maps of
    absolute contributions followed the object less closely (docs/interpret.md).

    Parameters
    ----------
    out_NP : np.ndarray | None, optional
        Output array, such as a memory map; a new array by default.
    """
    out_NP = (
        np.empty((len(maps_NV), gaussian_VP.shape[1]), dtype=np.float32)
        if out_NP is None
        else out_NP
    )
    for first, last in blocks(len(maps_NV), _IMAGES):
        spread = np.maximum(np.asarray(maps_NV[first:last], dtype=np.float32), 0) @ gaussian_VP
        out_NP[first:last] = spread / np.maximum(spread.sum(axis=1, keepdims=True), 1e-12)
    return out_NP


def beyond_usual(saliency_NP: np.ndarray, out_NP: np.ndarray | None = None) -> np.ndarray:
    """Saliency of an image relative to the mean of all other images, minus 1.

    This removes what all images share: more receptive fields near the centre, and voxels with
    large weights.

    Parameters
    ----------
    out_NP : np.ndarray | None, optional
        Output array, possibly saliency_NP itself; a new array by default.
    """
    out_NP = np.empty_like(saliency_NP) if out_NP is None else out_NP
    sum_P = saliency_NP.sum(axis=0)
    for first, last in blocks(len(saliency_NP), _IMAGES):
        some_BP = saliency_NP[first:last]
        others_BP = (sum_P - some_BP) / max(len(saliency_NP) - 1, 1)
        out_NP[first:last] = some_BP / np.maximum(others_BP, 1e-12) - 1
    return out_NP


class Pointing(NamedTuple):
    """Share of maps with their maximum on the object, compared with maps of other images."""

    hits: float
    low: float
    high: float
    """95 % interval of the share of hits, over images."""
    chance: float
    """The same share with the maps of all other images."""
    gain: float
    gain_low: float
    gain_high: float
    """Hits minus the chance of each image, with 95 % interval; above 0 if maps follow objects."""
    images: int


def peaks_on_object(map_NP: np.ndarray, object_NP: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Per image: maximum of its map on its object (1 or 0), and the share of other maps."""
    peak_N = map_NP.argmax(axis=1)
    hit_NN = object_NP[:, peak_N]  # image x whose map
    own_N = np.diagonal(hit_NN).astype(np.float64)
    return own_N, (hit_NN.sum(axis=1) - own_N) / (len(own_N) - 1)


def pointing_game(
    map_NP: np.ndarray, object_NP: np.ndarray, resamples: int = 2000, seed: int = 0
) -> Pointing:
    """The pointing game (Zhang et al. 2016), with chance from the maps of other images.

    Parameters
    ----------
    map_NP : np.ndarray
        Saliency of every image.
    object_NP : np.ndarray
        Bool, pixels of the object.
    """
    own_N, others_N = peaks_on_object(map_NP, object_NP)
    hits, gain = (
        mean_interval(own_N, resamples, seed),
        mean_interval(own_N - others_N, resamples, seed),
    )
    return Pointing(*hits, float(others_N.mean()), *gain, images=len(own_N))


def inside_outside(map_NP: np.ndarray, object_NP: np.ndarray) -> np.ndarray:
    """Per image, area under the ROC curve of the map for object against background."""
    inside_N = object_NP.sum(axis=1)
    outside_N = object_NP.shape[1] - inside_N
    pieces = blocks(len(map_NP), _IMAGES)
    total_N = np.concatenate(
        [np.where(object_NP[a:b], rankdata(map_NP[a:b], axis=1), 0).sum(axis=1) for a, b in pieces]
    )
    with np.errstate(invalid="ignore", divide="ignore"):
        return (total_N - inside_N * (inside_N + 1) / 2) / (inside_N * outside_N)
