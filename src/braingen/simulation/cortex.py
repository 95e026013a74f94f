"""A simulated visual cortex with known truth: areas, receptive fields and tuning of every voxel.

V1, V2, V3 and hV4 pool the retina's channels (retina.py) over population receptive fields, with a
compressive exponent. Later areas respond to the scene's semantic code (semantics.py): category
areas named as in NSD's functional localisers, areas for food, tools and object location, and,
between them, voxels with random smooth mixtures of all entries. Neighbours on the cortical sheet
have similar tuning; subjects differ in folds, map sizes, borders, tuning and noise.

N images, V voxels, E early voxels, L late voxels, C channels of the retina, P cells of a map, K
entries of the semantic code, F fields.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from braingen.simulation import semantics
from braingen.simulation.cortical_sheet import CorticalSheet, fold, smooth_fields
from braingen.simulation.noise import planted_snr
from braingen.simulation.retina import (
    CELLS,
    CONTRAST_CHANNELS,
    FIELD_OF_VIEW,
    ORIENTATIONS,
    SCALES,
    cell_centres,
    channel_maps,
)
from braingen.simulation.scenes import Scene
from braingen.simulation.semantics import CODE, GROUPS, OBJECT_CODE

EXPONENT = 0.5
"""Compressive spatial summation: response = (pooled activity) ** EXPONENT."""
VISUAL_AREAS = ("V1v", "V1d", "V2v", "V2d", "V3v", "V3d", "hV4")
"""Early areas; their label in prf-visualrois.nii.gz is their index plus 1, as in NSD."""
FLOC_AREAS = {
    "floc-faces": ("OFA", "FFA-1", "FFA-2", "mTL-faces", "aTL-faces"),
    "floc-bodies": ("EBA", "FBA-1", "FBA-2", "mTL-bodies"),
    "floc-places": ("OPA", "PPA", "RSC"),
    "floc-words": ("OWFA", "VWFA-1", "VWFA-2", "mfs-words", "mTL-words"),
}
"""Labels of NSD's localiser volumes (index plus 1); temporal-lobe areas are not simulated."""
OTHER_AREAS = ("food", "tools", "where", "semantic")
"""Late areas without a localiser in NSD."""
_EARLY_STRIPS = (
    ("V3d", 4.5),
    ("V2d", 5.5),
    ("V1", 12.0),
    ("V2v", 5.5),
    ("V3v", 4.5),
    ("hV4", 6.0),
)  # dorsal to ventral, % of voxels
_EARLY_V, _EARLY_U = (0.11, 0.86), 0.58  # where the strips lie on the sheet
_LATERAL = (("OFA", 3.0), ("tools", 2.5), ("OWFA", 2.3))  # beyond hV4, from the pole forward
# columns in front of the strips: end in u, and patches from dorsal to ventral with their shares
_FRONT = (
    (
        0.74,
        (
            ("OPA", 5.0),
            ("semantic", 3.0),
            ("RSC", 2.5),
            ("semantic", 2.0),
            ("food", 2.0),
            ("EBA", 5.0),
        ),
    ),
    (
        0.88,
        (
            ("where", 3.0),
            ("semantic", 2.0),
            ("PPA", 4.0),
            ("FFA-1", 2.5),
            ("VWFA-1", 2.0),
            ("FBA-1", 2.0),
            ("tools", 2.0),
        ),
    ),
    (
        1.00,
        (
            ("semantic", 5.0),
            ("PPA", 1.0),
            ("food", 1.5),
            ("FFA-2", 2.0),
            ("VWFA-2", 1.5),
            ("FBA-2", 1.5),
            ("semantic", 3.0),
        ),
    ),
)
_CATEGORY = {
    **{area: group.removeprefix("floc-") for group, areas in FLOC_AREAS.items() for area in areas},
    "food": "food",
    "tools": "tools",
}
_MAX_ECCENTRICITY, _FOVEAL = 5.0, 0.75  # degrees
_PRF_SIGMA = {
    "V1": (0.28, 0.08),
    "V2": (0.38, 0.12),
    "V3": (0.55, 0.18),
    "hV4": (0.85, 0.3),
}  # degrees: at the fovea, and per degree
_LATE_SIGMA = (1.5, 3.5)  # degrees
_FINEST = {"V1": 3.0, "V2": 2.2, "V3": 1.6, "hV4": 1.0}  # preferred cycles per degree at the fovea
_LISTENS = {
    "V1": (0.6, 0.2, 0.2),
    "V2": (0.55, 0.2, 0.25),
    "V3": (0.6, 0.15, 0.25),
    "hV4": (0.4, 0.1, 0.5),
}  # contrast, luminance, colour
_RETINOTOPY = {
    "where": 0.6
}  # share of an object's drive that depends on where it is; 0.3 in the other late areas
_FIELD_WIDTH = 6.0  # mm over which tuning changes
_JITTER = 0.4  # sd of a voxel's individual tuning, beside a smooth field of sd 1


class Cortex(NamedTuple):
    """The visual cortex of one simulated subject."""

    sheet: CorticalSheet
    area_V: np.ndarray
    """Name of every voxel's area: VISUAL_AREAS, FLOC_AREAS or OTHER_AREAS."""
    prf_x_V: np.ndarray
    """Centre of the population receptive field, degrees right of the image centre; float32."""
    prf_y_V: np.ndarray
    """The same, degrees up."""
    prf_sigma_V: np.ndarray
    """Spread (sd) of the pooling Gaussian, degrees; float32."""
    channel_weights_VC: np.ndarray
    """Channel weights of early voxels, summing to 1; zeros in late voxels; float32."""
    code_weights_VK: np.ndarray
    """Semantic-code weights of late voxels; zeros in early voxels; float32."""
    retinotopy_V: np.ndarray
    """Share of a late voxel's object drive that depends on the object's place; float32."""
    snr_V: np.ndarray
    """Signal sd / noise sd of a single trial at NSD's noise; float32."""

    @property
    def early_V(self) -> np.ndarray:
        """Whether a voxel is in V1-hV4."""
        return np.isin(self.area_V, VISUAL_AREAS)

    @property
    def prf_eccentricity_V(self) -> np.ndarray:
        """Degrees from the centre of gaze."""
        return np.hypot(self.prf_x_V, self.prf_y_V)

    @property
    def prf_angle_V(self) -> np.ndarray:
        """Degrees from 0 to 360, counter-clockwise from the right (NSD's convention)."""
        return np.degrees(np.arctan2(self.prf_y_V, self.prf_x_V)) % 360

    @property
    def prf_size_V(self) -> np.ndarray:
        """Spread (sd) of the response to a point in degrees: sigma / sqrt(exponent), as NSD's."""
        return self.prf_sigma_V / np.float32(np.sqrt(EXPONENT))


def build_cortex(seed: int, subject: int, voxels: int) -> Cortex:
    """Generate the visual cortex of a subject; equal arguments give equal results.

    Parameters
    ----------
    seed : int
        Of the simulation.
    subject : int
        Number from 1.
    voxels : int
        In nsdgeneral.
    """
    folds, maps, tuning = (np.random.default_rng([seed, subject, stream]) for stream in range(3))
    sheet = fold(folds, voxels)
    place = _place_on_map(maps, sheet)
    area_V, along_V = _areas(maps, place)
    x_V, y_V, sigma_V = _receptive_fields(maps, sheet, area_V, along_V, place[:, 0])
    early_V = np.isin(area_V, VISUAL_AREAS)
    noise_field_V = smooth_fields(tuning, sheet, 1, _FIELD_WIDTH)[:, 0] + tuning.standard_normal(
        voxels
    )
    return Cortex(
        sheet=sheet,
        area_V=area_V,
        prf_x_V=x_V,
        prf_y_V=y_V,
        prf_sigma_V=sigma_V,
        channel_weights_VC=_channel_weights(tuning, sheet, area_V, np.hypot(x_V, y_V)),
        code_weights_VK=_code_weights(tuning, sheet, area_V),
        retinotopy_V=np.array(
            [0 if early else _RETINOTOPY.get(area, 0.3) for area, early in zip(area_V, early_V)],
            dtype=np.float32,
        ),
        snr_V=planted_snr(noise_field_V, early_V),
    )


def _place_on_map(rng: np.random.Generator, sheet: CorticalSheet) -> np.ndarray:
    """Map coordinates (V, 2) with straight area borders: the sheet's, bent by a subject's field."""
    bend = smooth_fields(rng, sheet, 2, 0.25 * sheet.extent[1])
    return np.clip(sheet.uv_V2 + 0.02 * bend, 0, 1 - 1e-6)


def _cut(
    rng: np.random.Generator, parts: Sequence[tuple[str, float]]
) -> tuple[list[str], np.ndarray]:
    """Return names and ends in [0, 1] of a line's parts; shares vary by a tenth."""
    shares = np.array([share for _, share in parts]) * np.exp(
        0.12 * rng.standard_normal(len(parts))
    )
    return [name for name, _ in parts], np.cumsum(shares) / shares.sum()


def _areas(rng: np.random.Generator, place_V2: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return every voxel's area, and its position along early strips (0 dorsal to 1 ventral)."""
    u, v = place_V2.T
    area_V, along_V = np.full(len(u), "semantic", dtype="<U10"), np.zeros(len(u), dtype=np.float32)
    behind = u < _EARLY_U * np.exp(0.05 * rng.standard_normal())
    low, high = _EARLY_V
    names, ends = _cut(rng, _EARLY_STRIPS)
    across = (v - low) / (high - low)
    strip = np.clip(np.searchsorted(ends, across), 0, len(names) - 1)
    starts = np.concatenate([[0], ends[:-1]])
    along = (across - starts[strip]) / (ends - starts)[strip]
    inside = behind & (v >= low) & (v < high)
    area_V[inside] = np.array(names)[strip[inside]]
    along_V[inside] = along[inside]
    area_V[inside & (area_V == "V1") & (along_V < 0.5)] = "V1d"  # the lower field lies dorsally
    area_V[area_V == "V1"] = "V1v"
    area_V[behind & (v < low)] = "where"
    names, ends = _cut(rng, _LATERAL)
    beyond = behind & (v >= high)
    area_V[beyond] = np.array(names)[
        np.clip(np.searchsorted(ends, u[beyond] / _EARLY_U), 0, len(names) - 1)
    ]
    begin = _EARLY_U
    for end, patches in _FRONT:
        names, ends = _cut(rng, patches)
        column = ~behind & (u < end) & (u >= begin if begin > _EARLY_U else True)
        area_V[column] = np.array(names)[
            np.clip(np.searchsorted(ends, v[column]), 0, len(names) - 1)
        ]
        begin = end
    return area_V, along_V


# degrees from the horizontal meridian, at the dorsal and the ventral border of an area: mirrored
# from one to the next
_ELEVATION = {
    "V3d": (-90, 0),
    "V2d": (0, -90),
    "V1": (-90, 90),
    "V2v": (90, 0),
    "V3v": (0, 90),
    "hV4": (90, -90),
}


def _receptive_fields(
    rng: np.random.Generator,
    sheet: CorticalSheet,
    area_V: np.ndarray,
    along_V: np.ndarray,
    u_V: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Centre (x, y) and sigma of every voxel's population receptive field, in degrees."""
    fields = smooth_fields(rng, sheet, 3, _FIELD_WIDTH)
    own = rng.standard_normal((len(area_V), 3))
    outward = np.clip(u_V / _EARLY_U, 0, 1)
    eccentricity = _FOVEAL * (np.exp(outward * np.log1p(_MAX_ECCENTRICITY / _FOVEAL)) - 1)
    eccentricity = np.maximum(eccentricity * np.exp(0.05 * own[:, 0]), 0.05)
    elevation = np.zeros(len(area_V))
    sigma = np.zeros(len(area_V))
    for area in VISUAL_AREAS:
        inside = area_V == area
        kind = "V1" if area.startswith("V1") else area
        dorsal, ventral = _ELEVATION[kind]
        elevation[inside] = dorsal + (ventral - dorsal) * along_V[inside]
        at_fovea, slope = _PRF_SIGMA[kind if kind in _PRF_SIGMA else kind[:2]]
        sigma[inside] = (at_fovea + slope * eccentricity[inside]) * np.exp(0.15 * own[inside, 2])
    late = ~np.isin(area_V, VISUAL_AREAS)
    eccentricity[late] = 0.3 + 2.7 / (1 + np.exp(-1.5 * fields[late, 0]))
    elevation[late] = np.clip(45 * fields[late, 1], -90, 90)
    sigma[late] = _LATE_SIGMA[0] + (_LATE_SIGMA[1] - _LATE_SIGMA[0]) / (
        1 + np.exp(-fields[late, 2])
    )
    angle = np.radians(np.clip(elevation + 4 * own[:, 1], -95, 95))
    side = np.where(sheet.hemisphere_V == 0, 1, -1)  # the left hemisphere sees the right
    x, y = side * eccentricity * np.cos(angle), eccentricity * np.sin(angle)
    return x.astype(np.float32), y.astype(np.float32), sigma.astype(np.float32)


def _channel_weights(
    rng: np.random.Generator, sheet: CorticalSheet, area_V: np.ndarray, eccentricity_V: np.ndarray
) -> np.ndarray:
    """Channel weights of early voxels (V, C)."""
    fields = smooth_fields(rng, sheet, 11, _FIELD_WIDTH) + _JITTER * rng.standard_normal(
        (len(area_V), 11)
    )
    kind_V = np.array([area if area == "hV4" else area[:2] for area in area_V])
    finest_V = (
        np.array([_FINEST.get(kind, 1.0) for kind in kind_V])
        / (1 + 0.25 * eccentricity_V)
        * np.exp(0.3 * fields[:, 0])
    )
    octaves_VS = np.log2(np.array(SCALES) / finest_V[:, None])
    angle_V = np.arctan2(fields[:, 1], fields[:, 2]) / 2
    turned_VO = np.array(ORIENTATIONS) - angle_V[:, None]
    to_scale_VS, to_orientation_VO = (
        np.exp(-(octaves_VS**2) / (2 * 0.9**2)),
        1 + 0.6 * np.cos(2 * turned_VO),
    )
    contrast = (to_scale_VS[:, :, None] * to_orientation_VO[:, None, :]).reshape(
        len(area_V), CONTRAST_CHANNELS
    )
    luminance = np.exp(0.7 * fields[:, 3:5])
    colour = np.exp(0.7 * fields[:, 5:9])
    share_V3 = np.array([_LISTENS.get(kind, (1, 1, 1)) for kind in kind_V]) * np.exp(
        0.5 * fields[:, [0, 9, 10]]
    )
    share_V3 /= share_V3.sum(axis=1, keepdims=True)
    groups = [group / group.sum(axis=1, keepdims=True) for group in (contrast, luminance, colour)]
    weights = np.concatenate([group * share_V3[:, [k]] for k, group in enumerate(groups)], axis=1)
    weights[~np.isin(area_V, VISUAL_AREAS)] = 0
    return weights.astype(np.float32)


# mean emphasis of mixed voxels on the groups of the code, and of those for where things are
_EMPHASIS = {
    "semantic": {
        "object": 1.0,
        "supercategory": 1.0,
        "colour": 0.9,
        "background": 1.0,
        "place": 0.5,
        "size": 0.3,
        "mirrored": 0.3,
    },
    "where": {
        "object": 0.3,
        "supercategory": 0.2,
        "colour": 0.2,
        "background": 0.4,
        "place": 1.5,
        "size": 0.8,
        "mirrored": 0.6,
    },
}


def _code_weights(rng: np.random.Generator, sheet: CorticalSheet, area_V: np.ndarray) -> np.ndarray:
    """Semantic-code weights of late voxels (V, K)."""
    mixture_VK = smooth_fields(rng, sheet, len(CODE), _FIELD_WIDTH) + _JITTER * rng.standard_normal(
        (len(area_V), len(CODE))
    )
    emphasis_VG = np.exp(0.7 * smooth_fields(rng, sheet, len(GROUPS), _FIELD_WIDTH))
    weights_VK = np.zeros((len(area_V), len(CODE)), dtype=np.float32)
    for area, mean_emphasis in _EMPHASIS.items():
        inside = area_V == area
        for g, (group, entries) in enumerate(GROUPS.items()):
            strength = mean_emphasis[group] * emphasis_VG[inside, g]
            weights_VK[inside, entries] = mixture_VK[inside, entries] * strength[:, None]
    for area, category in _CATEGORY.items():
        inside = area_V == area
        scatter = np.zeros(
            len(CODE), dtype=np.float32
        )  # how much a category area's voxels differ in their other weights
        scatter[GROUPS["object"]] = 0.3
        scatter[GROUPS["background"]] = 0.5 if category == "places" else 0.1
        scatter[GROUPS["colour"]] = 0.4 if category == "food" else 0.15
        strength = 2 * np.exp(0.25 * emphasis_VG[inside, :1])
        weights_VK[inside] = (
            strength * semantics.preference_vector(category, area) + mixture_VK[inside] * scatter
        )
    return weights_VK


def pooling(x_V: np.ndarray, y_V: np.ndarray, sigma_V: np.ndarray) -> np.ndarray:
    """Gaussian receptive fields over map cells (V, P); inside the image they sum to 1."""
    cell_x, cell_y = cell_centres()
    squared = (cell_x - x_V[:, None]) ** 2 + (cell_y - y_V[:, None]) ** 2
    area = (FIELD_OF_VIEW / CELLS) ** 2
    return (
        np.exp(-squared / (2 * sigma_V[:, None] ** 2))
        * (area / (2 * np.pi * sigma_V[:, None] ** 2))
    ).astype(np.float32)


def early_responses(cortex: Cortex, images_N3HW: np.ndarray) -> np.ndarray:
    """Compute responses of early voxels to images (224 x 224, [0, 1]): N x E, not negative."""
    early_V = cortex.early_V
    pool_EP = pooling(cortex.prf_x_V[early_V], cortex.prf_y_V[early_V], cortex.prf_sigma_V[early_V])
    weights_CE = np.ascontiguousarray(cortex.channel_weights_VC[early_V].T)
    out_NE = np.empty((len(images_N3HW), len(pool_EP)), dtype=np.float32)
    for first in range(
        0, len(images_N3HW), 8
    ):  # few enough images that memory stays small at full size
        maps_NCP = channel_maps(images_N3HW[first : first + 8])
        pooled_NCE = (maps_NCP.reshape(-1, maps_NCP.shape[2]) @ pool_EP.T).reshape(
            *maps_NCP.shape[:2], -1
        )
        out_NE[first : first + 8] = np.einsum("nce,ce->ne", pooled_NCE, weights_CE)
    return out_NE**EXPONENT


def late_responses(cortex: Cortex, scenes: Sequence[Scene]) -> np.ndarray:
    """Compute responses of late voxels to scenes: N x L, float32, not negative."""
    late_V = ~cortex.early_V
    code = semantics.encode(scenes)
    weights_KL = cortex.code_weights_VK[late_V].T
    of_objects, of_scene = weights_KL[: len(OBJECT_CODE)], weights_KL[len(OBJECT_CODE) :]
    x, y, sigma, share = (
        field[late_V]
        for field in (cortex.prf_x_V, cortex.prf_y_V, cortex.prf_sigma_V, cortex.retinotopy_V)
    )
    drive_NL = code.scene_NK @ of_scene
    for which, objects_NK in enumerate((code.main_NK, code.second_NK)):
        there_x, there_y, spread = (code.where_N23[:, which, k][:, None] for k in range(3))
        overlap_NL = np.exp(
            -((there_x - x) ** 2 + (there_y - y) ** 2) / (2 * (sigma**2 + spread**2))
        )
        drive_NL += (1 - share + share * overlap_NL) * (objects_NK @ of_objects)
    return np.logaddexp(0, drive_NL).astype(np.float32)  # firing rates are not negative


def responses(cortex: Cortex, images_N3HW: np.ndarray, scenes: Sequence[Scene]) -> np.ndarray:
    """Compute noise-free responses of all voxels (N, V), float32, in arbitrary units.

    Parameters
    ----------
    cortex : Cortex
        Of one subject.
    images_N3HW : np.ndarray
        The stored images, in [0, 1].
    scenes : Sequence[Scene]
        Scenes of the images.
    """
    out_NV = np.empty((len(scenes), len(cortex.area_V)), dtype=np.float32)
    out_NV[:, cortex.early_V] = early_responses(cortex, images_N3HW)
    out_NV[:, ~cortex.early_V] = late_responses(cortex, scenes)
    return out_NV
