"""Where in the picture: a voxel's contribution spread over the part of the visual field it looks
at.

N images, V voxels, P = side x side places of the picture, from its upper left corner row by row.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.stats import rankdata

from braingen.data.large_files import blocks
from braingen.evaluation.uncertainty import mean_interval

_VOXELS, _IMAGES = 512, 64
"""Worked on at once."""


class ReceptiveFields(NamedTuple):
    """Population receptive fields of a subject's voxels, in degrees from the centre of the
    picture.
    """

    x_V: np.ndarray
    """To the right."""
    y_V: np.ndarray
    """Up."""
    size_V: np.ndarray
    """Spread (sd) of the Gaussian."""

    @classmethod
    def from_polar(
        cls, eccentricity_V: np.ndarray, angle_V: np.ndarray, size_V: np.ndarray
    ) -> ReceptiveFields:
        """From NSD's volumes: degrees of eccentricity, polar angle counter-clockwise from the
        right, size.
        """
        angle = np.radians(angle_V)
        return cls(
            eccentricity_V * np.cos(angle), eccentricity_V * np.sin(angle), np.asarray(size_V)
        )

    @property
    def usable_V(self) -> np.ndarray:
        """Where all three are known and the size is positive."""
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
    """What every voxel looks at: V x P float32, each summing to 1 over the picture; zeros where the
    field is not known or lies outside.
    """
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
    """Contributions in favour spread over the picture: N x P float32, each summing to 1 (to 0 where
    nothing speaks in favour).

    A contribution against what is explained comes from places that show something else, or from
    cancelled noise; sizes of both kinds together were tried and followed the object less
    (docs/interpret.md).

    Parameters
    ----------
    out_NP : np.ndarray | None, optional
        Filled, such as a memory map; a new array where none is given.
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
    """What is particular to an image: its saliency relative to the mean of all other images, less
    1.

    Voxels look at the centre more than at the margin, and some voxels weigh more in every image;
    neither says anything about this one.

    Parameters
    ----------
    out_NP : np.ndarray | None, optional
        Filled, possibly saliency_NP itself; a new array where none is given.
    """
    out_NP = np.empty_like(saliency_NP) if out_NP is None else out_NP
    sum_P = saliency_NP.sum(axis=0)
    for first, last in blocks(len(saliency_NP), _IMAGES):
        some_BP = saliency_NP[first:last]
        others_BP = (sum_P - some_BP) / max(len(saliency_NP) - 1, 1)
        out_NP[first:last] = some_BP / np.maximum(others_BP, 1e-12) - 1
    return out_NP


class Pointing(NamedTuple):
    """How often the highest point of a map lies on the object, against maps of other images."""

    hits: float
    low: float
    high: float
    """95 % interval of the share of hits, over images."""
    chance: float
    """The same share with the maps of other images (every image with every other's map)."""
    gain: float
    gain_low: float
    gain_high: float
    """Hits less the image's own chance, with its 95 % interval over images: above 0 where the map
    follows the object.
    """
    images: int


def peaks_on_object(map_NP: np.ndarray, object_NP: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Per image, whether its map's highest point lies on its object (1 or 0), and how often other
    images' maps' do.
    """
    peak_N = map_NP.argmax(axis=1)
    hit_NN = object_NP[:, peak_N]  # image x whose map
    own_N = np.diagonal(hit_NN).astype(np.float64)
    return own_N, (hit_NN.sum(axis=1) - own_N) / (len(own_N) - 1)


def pointing_game(
    map_NP: np.ndarray, object_NP: np.ndarray, resamples: int = 2000, seed: int = 0
) -> Pointing:
    """The pointing game (Zhang et al. 2016), with a chance level that knows how central objects and
    maps are.

    Parameters
    ----------
    map_NP : np.ndarray
        Saliency of every image.
    object_NP : np.ndarray
        Bool, where the object is.
    """
    own_N, others_N = peaks_on_object(map_NP, object_NP)
    hits, gain = (
        mean_interval(own_N, resamples, seed),
        mean_interval(own_N - others_N, resamples, seed),
    )
    return Pointing(*hits, float(others_N.mean()), *gain, images=len(own_N))


def inside_outside(map_NP: np.ndarray, object_NP: np.ndarray) -> np.ndarray:
    """Per image, the area under the ROC curve of the map for telling object from background (0.5:
    it does not).
    """
    inside_N = object_NP.sum(axis=1)
    outside_N = object_NP.shape[1] - inside_N
    pieces = blocks(len(map_NP), _IMAGES)
    total_N = np.concatenate(
        [np.where(object_NP[a:b], rankdata(map_NP[a:b], axis=1), 0).sum(axis=1) for a, b in pieces]
    )
    with np.errstate(invalid="ignore", divide="ignore"):
        return (total_N - inside_N * (inside_N + 1) / 2) / (inside_N * outside_N)
