"""A folded cortical sheet in a 3-D grid: positions of simulated voxels in volume and on the sheet.

Each hemisphere is a flat rectangle (u from the occipital pole forward, v from dorsal over medial
and ventral to lateral), rolled up like the back of a brain and folded by a few waves that differ
between subjects. The voxels are the cells of a 1.8 mm grid nearest to the two sheets, so neighbours
in the volume are mostly, but (across a sulcus) not always, neighbours on the sheet.

V voxels, F fields.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.ndimage import gaussian_filter, map_coordinates
from scipy.spatial import cKDTree

VOXEL_SIZE = 1.8
"""Side of a voxel in mm, as NSD's func1pt8mm."""
_THICKNESS = 2.2  # mm of cortex that a voxel's centre may lie in
_ASPECT = 1.25  # length (u) over width (v) of a hemisphere's sheet
_ROLL = 3.6  # radians that the sheet is rolled up over
_MEDIAL = 0.45  # v that faces the midline: the middle of V1, as in the calcarine sulcus
_GAP = 3.0  # mm between a hemisphere and the midline
_POLE = -100.0  # mm, where the occipital pole lies in front-to-back direction
_FOLD_HEIGHT, _FOLD_LENGTH = 2.5, 18.0  # mm; at most this high, about this far apart
_SAMPLING = 0.5  # mm between the points that stand for the sheet
_MARGIN = 3  # empty voxels around the brain


class CorticalSheet(NamedTuple):
    """The voxels of one subject, in C order of the volume's mask."""

    mask: np.ndarray
    """(x, y, z) bool."""
    affine: np.ndarray
    """(4, 4) voxel indices to mm: x to the right, y to the front, z up."""
    hemisphere_V: np.ndarray
    """0 left, 1 right; int8."""
    uv_V2: np.ndarray
    """Place on the flat sheet, each coordinate in [0, 1]; float32."""
    extent: tuple[float, float]
    """Length (u) and width (v) of a hemisphere's sheet in mm."""
    depth_V: np.ndarray
    """Distance of a voxel's centre from the middle of the sheet in mm; float32."""

    @property
    def millimetres_V3(self) -> np.ndarray:
        """Position of every voxel's centre in mm."""
        return np.argwhere(self.mask) * VOXEL_SIZE + self.affine[:3, 3]

    def arrays(self) -> dict[str, np.ndarray]:
        """Where the voxels lie, by the names of the files of planted truth."""
        return {
            "hemisphere": self.hemisphere_V,
            "voxel_index": np.argwhere(self.mask).astype(np.int16),
            "sheet_uv": self.uv_V2,
            "sheet_extent_mm": np.array(self.extent, dtype=np.float32),
        }


def fold(rng: np.random.Generator, voxels: int) -> CorticalSheet:
    """Fold the two sheets of a subject, and select the nearest voxels.

    Parameters
    ----------
    rng : np.random.Generator
        Determines the subject's folds.
    voxels : int
        Number of voxels, which determines the size of the sheets.
    """
    area = voxels * VOXEL_SIZE**3 / _THICKNESS / 2
    width = float(np.sqrt(area / _ASPECT))
    extent = (_ASPECT * width, width)
    points, places = [], []
    for side in (-1, 1):
        uv = _flat_points(extent)
        points.append(_surface(rng, uv, extent, side))
        places.append(uv)
    cloud = np.concatenate(points)
    origin = np.floor(cloud.min(axis=0) / VOXEL_SIZE) - _MARGIN
    shape = tuple((np.ceil(cloud.max(axis=0) / VOXEL_SIZE) + _MARGIN - origin).astype(int) + 1)
    affine = np.diag([VOXEL_SIZE, VOXEL_SIZE, VOXEL_SIZE, 1.0])
    affine[:3, 3] = origin * VOXEL_SIZE
    cells = np.indices(shape).reshape(3, -1).T * VOXEL_SIZE + affine[:3, 3]
    distance, nearest = cKDTree(cloud).query(cells, distance_upper_bound=3 * _THICKNESS)
    chosen = np.sort(
        np.argsort(distance, kind="stable")[:voxels]
    )  # ascending cell number is C order
    mask = np.zeros(len(cells), dtype=bool)
    mask[chosen] = True
    return CorticalSheet(
        mask=mask.reshape(shape),
        affine=affine,
        hemisphere_V=(nearest[chosen] >= len(points[0])).astype(np.int8),
        uv_V2=np.concatenate(places)[nearest[chosen]].astype(np.float32),
        extent=extent,
        depth_V=distance[chosen].astype(np.float32),
    )


def _flat_points(extent: tuple[float, float]) -> np.ndarray:
    axes = [
        (np.arange(max(2, round(length / _SAMPLING))) + 0.5) / max(2, round(length / _SAMPLING))
        for length in extent
    ]
    return np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 2)


def _surface(
    rng: np.random.Generator, uv: np.ndarray, extent: tuple[float, float], side: int
) -> np.ndarray:
    """Points of the sheet in mm (points, 3)."""
    radius = extent[1] / _ROLL
    u, v = uv.T
    height = np.zeros(len(uv))
    for _ in range(3):
        direction = rng.uniform(0, np.pi)
        waves = (np.cos(direction) * u * extent[0] + np.sin(direction) * v * extent[1]) / (
            _FOLD_LENGTH * rng.uniform(0.8, 1.25)
        )
        height += np.sin(2 * np.pi * (waves + rng.random()))
    height *= min(_FOLD_HEIGHT, 0.15 * radius) / 3
    around = (v - _MEDIAL) * _ROLL
    r = radius * (0.6 + 0.4 * np.sin(u * np.pi / 2)) + height  # narrower toward the pole
    x = side * (_GAP + radius * 1.15 - r * np.cos(around))
    return np.stack([x, _POLE + u * extent[0], -r * np.sin(around)], axis=1)


def smooth_fields(
    rng: np.random.Generator, sheet: CorticalSheet, fields: int, width: float
) -> np.ndarray:
    """Generate random fields that vary smoothly along the sheet, per hemisphere.

    Parameters
    ----------
    rng : np.random.Generator
        Generator of the white noise.
    sheet : CorticalSheet
        The voxels.
    fields : int
        Number of independent fields.
    width : float
        Full width at half maximum of the smoothing Gaussian, in mm.

    Returns
    -------
    np.ndarray
        Float32 array, V x F, with mean 0 and variance 1 over the sheet.
    """
    out_VF = np.empty((len(sheet.uv_V2), fields), dtype=np.float32)
    shape = [max(4, round(length)) for length in sheet.extent]  # one point per mm
    sigma = width / 2.355
    for hemisphere in (0, 1):
        inside = sheet.hemisphere_V == hemisphere
        where = sheet.uv_V2[inside].T * np.array(shape)[:, None] - 0.5
        for field in range(fields):
            plane = gaussian_filter(rng.standard_normal(shape), sigma, mode="reflect")
            plane = (plane - plane.mean()) / plane.std()
            out_VF[inside, field] = map_coordinates(plane, where, order=1, mode="nearest")
    return out_VF
