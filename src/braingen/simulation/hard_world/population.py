"""The visual cortex of a person in the hard world: areas, tuning, reliability, and who lacks what.

Early areas pool the layout over receptive fields; later areas read the content. The voxels of an
area have weights in a low-dimensional space that people share up to a shift of their own. People
differ in the sizes of areas, in tuning and in reliability, and every third one lacks an area.

V voxels, A areas, F features of the content, Q dimensions of an area's tuning, K directions.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np

from braingen.simulation.cortical_sheet import CorticalSheet, fold, smooth_fields
from braingen.simulation.hard_world.catalogue import (
    KINDS,
    PARTS_OF_K,
    SUPERCATEGORIES,
    SUPERCATEGORY_OF_K,
)
from braingen.simulation.hard_world.compose import HardScenes
from braingen.simulation.hard_world.scene_features import (
    CHANNELS,
    CONTENT_GROUPS,
    CONTENT_WIDTH,
    GRID,
    content_features,
    layout_features,
    reference_scenes,
)
from braingen.simulation.noise import planted_snr
from braingen.simulation.retina import FIELD_OF_VIEW

EARLY = ("V1", "V2", "V3", "hV4")
AREA_SHARES: dict[str, float] = {
    **{"V1": 12.0, "V2": 10.0, "V3": 8.0, "hV4": 8.0},
    **{"texture": 6.0, "OPA": 5.0, "where": 5.0, "EBA": 5.0},
    **{"PPA": 6.0, "vehicles": 4.0, "relations": 5.0, "FFA": 5.0},
    **{"semantic": 9.0, "food": 4.0, "tools": 4.0, "VWFA": 4.0},
}
"""The 16 kinds of areas, four to a column of the sheet, and their mean shares of the voxels (%)."""
AREAS = tuple(AREA_SHARES)
MAY_LACK = ("VWFA", "vehicles", "tools", "food")
"""Areas of which a person may lack one."""
ATLAS_NAMES = {"FFA": "FFA-1", "VWFA": "VWFA-1"}
"""Names in NSD's region volumes where they differ; V1 to V3 are split by the visual field."""
TUNING_RANK = 24
"""Dimensions of the tuning within an area."""
SHIFT = 0.35
"""Share of a person's own in the tuning of an area (as a standard deviation)."""
SIZE_SPREAD, RELIABILITY_SPREAD = 0.35, 0.25
"""Between people: log sd of an area's size, and of its signal-to-noise ratio."""
SILENT_SHARE = 0.15
"""Share of the voxels without signal."""
BASELINE = 1.0
"""Mean response, in units of the signal's sd: what a gain shows itself by."""
_JITTER, _WIDTH = 0.4, 6.0  # sd of a voxel's own tuning; mm over which tuning changes
_PRF_SIGMA = {"V1": 0.09, "V2": 0.12, "V3": 0.16, "hV4": 0.24}  # shares of the image's side
_EMPHASIS: dict[str, dict[str, float]] = {
    "texture": {"texture": 1.0, "colour": 1.0, "look": 0.5, "part": 0.2},
    "OPA": {"clutter": 1.0, "background": 0.6, "where": 0.5},
    "where": {"where": 1.2, "view": 0.5, "relation": 0.2},
    "EBA": {"kind": 0.8, "supercategory": 0.8, "part": 0.7, "view": 0.6},
    "PPA": {"background": 1.2, "clutter": 0.4, "supercategory": 0.2},
    "vehicles": {"kind": 1.0, "supercategory": 0.6, "part": 0.5, "view": 0.5},
    "relations": {"relation": 1.0, "act": 1.0, "supercategory": 0.3},
    "FFA": {"kind": 1.0, "supercategory": 0.8, "part": 0.5, "look": 0.3},
    "semantic": {
        **{"kind": 1.0, "supercategory": 1.0, "background": 0.6, "look": 0.5, "act": 0.3},
        **{"part": 0.4, "texture": 0.3, "colour": 0.3},
    },
    "food": {"kind": 1.0, "supercategory": 0.6, "part": 0.5, "colour": 0.5, "look": 0.4},
    "tools": {"kind": 1.0, "supercategory": 0.6, "part": 0.6, "relation": 0.3},
    "VWFA": {"kind": 1.0, "supercategory": 0.6, "part": 0.5, "texture": 0.3},
}
"""How strongly the voxels of a later area read every group of the content."""
_PREFERS: dict[str, dict[str, float]] = {
    "FFA": {"person": 1.0, "animal": 0.6},
    "EBA": {"animal": 1.0, "person": 0.8, "sports": 0.4},
    "VWFA": {"indoor": 1.0, "electronic": 0.7, "outdoor": 0.4},
    "food": {"food": 1.0, "kitchen": 0.6},
    "tools": {"accessory": 1.0, "sports": 0.8, "appliance": 0.7, "kitchen": 0.5},
    "vehicles": {"vehicle": 1.0, "outdoor": 0.6, "furniture": 0.3},
}
"""What category areas prefer; they read other kinds weakly."""
_OTHERS = 0.12


class Brain(NamedTuple):
    """The planted cortex of one person."""

    sheet: CorticalSheet
    area_V: np.ndarray
    """Name of every voxel's area, one of `AREAS`."""
    prf_V3: np.ndarray
    """Receptive field: centre from the left and from above, and sd, in shares of the image."""
    channel_weights_VC: np.ndarray
    """Of early voxels, summing to 1; zeros elsewhere; float32."""
    content_weights_VF: np.ndarray
    """Of later voxels, so that the drive has sd 1 over the reference scenes; zeros elsewhere."""
    signal_mean_V: np.ndarray
    """Mean of the raw response over the reference scenes."""
    signal_sd_V: np.ndarray
    snr_V: np.ndarray
    """Signal sd / noise sd of a single trial that is aimed at; 0 for voxels without signal."""
    missing: str
    """The area that this person lacks; empty for most."""

    @property
    def early_V(self) -> np.ndarray:
        """Whether a voxel is in V1 to hV4."""
        return np.isin(self.area_V, EARLY)

    @property
    def area_index_V(self) -> np.ndarray:
        """Place of every voxel's area in `AREAS`."""
        place = {name: index for index, name in enumerate(AREAS)}
        return np.array([place[name] for name in self.area_V])

    def signal(self, scenes: HardScenes) -> np.ndarray:
        """Noise-free responses: mean 0, sd 1 over the reference scenes; 0 where there is none.

        Returns
        -------
        np.ndarray
            N x V, float32.
        """
        return _standardised(
            _raw_signal(self, layout_features(scenes), content_features(scenes)),
            self.signal_mean_V,
            self.signal_sd_V,
            self.snr_V > 0,
        )

    @property
    def prf_x_V(self) -> np.ndarray:
        """Degrees right of the centre of gaze."""
        return ((self.prf_V3[:, 0] - 0.5) * FIELD_OF_VIEW).astype(np.float32)

    @property
    def prf_y_V(self) -> np.ndarray:
        """Degrees above the centre of gaze."""
        return ((0.5 - self.prf_V3[:, 1]) * FIELD_OF_VIEW).astype(np.float32)

    @property
    def atlas_V(self) -> np.ndarray:
        """Areas by the names of NSD's region volumes."""
        lower_V = self.prf_V3[:, 1] > 0.5
        return np.array(
            [
                f"{area}{'d' if lower else 'v'}"
                if area in EARLY[:3]
                else ATLAS_NAMES.get(area, area)
                for area, lower in zip(self.area_V, lower_V)
            ]
        )


def build_brain(seed: int, subject: int, voxels: int) -> Brain:
    """Generate a person's cortex; equal arguments give equal results.

    Parameters
    ----------
    seed : int
        Of the simulation.
    subject : int
        Number from 1.
    voxels : int
        In nsdgeneral.
    """
    folds, people, tuning, reliability = (
        np.random.default_rng([seed, subject, 20, stream]) for stream in range(4)
    )
    sheet = fold(folds, voxels)
    missing = ""
    if subject % 3 == 0:
        missing = MAY_LACK[int(people.integers(len(MAY_LACK)))]
    area_V = _areas(people, sheet, missing)
    brain = Brain(
        sheet=sheet,
        area_V=area_V,
        prf_V3=_receptive_fields(people, sheet, area_V),
        channel_weights_VC=_channel_weights(tuning, sheet, area_V),
        content_weights_VF=_content_weights(tuning, sheet, area_V),
        signal_mean_V=np.zeros(voxels, dtype=np.float32),
        signal_sd_V=np.ones(voxels, dtype=np.float32),
        snr_V=_snr(reliability, sheet, area_V),
        missing=missing,
    )
    layout_NF, content_NF = _reference_features()
    drive_NV = content_NF @ brain.content_weights_VF.T
    sd_V = np.maximum(drive_NV.std(0), 1e-6)
    brain = brain._replace(content_weights_VF=brain.content_weights_VF / sd_V[:, None])
    raw_NV = _raw_signal(brain, layout_NF, content_NF)
    return brain._replace(signal_mean_V=raw_NV.mean(0), signal_sd_V=raw_NV.std(0))


@lru_cache(maxsize=1)
def _reference_features() -> tuple[np.ndarray, np.ndarray]:
    scenes = reference_scenes()
    return layout_features(scenes), content_features(scenes)


def _standardised(
    raw_NV: np.ndarray, mean_V: np.ndarray, sd_V: np.ndarray, has_signal_V: np.ndarray
) -> np.ndarray:
    return ((raw_NV - mean_V) / sd_V * has_signal_V).astype(np.float32)


def _raw_signal(brain: Brain, layout_NF: np.ndarray, content_NF: np.ndarray) -> np.ndarray:
    """Pooled energy to the power 0.5 (early), log(1 + exp(drive)) (later): N x V, float32."""
    early_V = brain.early_V
    raw_NV = np.empty((len(layout_NF), len(early_V)), dtype=np.float32)
    x, y, sigma = brain.prf_V3[early_V].T
    steps = (np.arange(GRID) + 0.5) / GRID
    cell_y, cell_x = np.meshgrid(steps, steps, indexing="ij")
    squared_EG = (cell_x.ravel() - x[:, None]) ** 2 + (cell_y.ravel() - y[:, None]) ** 2
    pool_EG = np.exp(-squared_EG / (2 * sigma[:, None] ** 2))
    pool_EG /= pool_EG.sum(1, keepdims=True)
    weights_EF = pool_EG[:, :, None] * brain.channel_weights_VC[early_V][:, None, :]
    pooled_NE = layout_NF @ weights_EF.reshape(len(pool_EG), -1).T.astype(np.float32)
    raw_NV[:, early_V] = np.sqrt(np.maximum(pooled_NE, 0))
    drive_NL = content_NF @ brain.content_weights_VF[~early_V].T
    raw_NV[:, ~early_V] = np.logaddexp(0, 1.2 * drive_NL - 0.3)
    return raw_NV


def _areas(rng: np.random.Generator, sheet: CorticalSheet, missing: str) -> np.ndarray:
    """Cut the sheet into four columns of four areas, with a person's own sizes."""
    share_A = np.array(list(AREA_SHARES.values())) * np.exp(
        SIZE_SPREAD * rng.standard_normal(len(AREAS))
    )
    if missing:
        share_A[AREAS.index(missing)] = 0
    share_A /= share_A.sum()
    bend_V2 = 0.03 * smooth_fields(rng, sheet, 2, 0.3 * sheet.extent[1])
    u_V, v_V = (sheet.uv_V2 + bend_V2).T
    area_V = np.empty(len(u_V), dtype="<U10")
    columns = np.array_split(np.arange(len(AREAS)), 4)
    column_ends = np.cumsum([share_A[column].sum() for column in columns])
    rank_V = (np.argsort(np.argsort(u_V, kind="stable"), kind="stable") + 0.5) / len(u_V)
    for number, column in enumerate(columns):
        begin = column_ends[number - 1] if number else 0.0
        inside = np.flatnonzero((rank_V >= begin) & (rank_V < column_ends[number]))
        ends = np.cumsum(share_A[column]) / share_A[column].sum()
        order = np.argsort(np.argsort(v_V[inside], kind="stable"), kind="stable")
        place = np.searchsorted(ends, (order + 0.5) / max(1, len(inside)))
        area_V[inside] = np.array(AREAS)[column[np.minimum(place, len(column) - 1)]]
    return area_V


def _receptive_fields(
    rng: np.random.Generator, sheet: CorticalSheet, area_V: np.ndarray
) -> np.ndarray:
    """Centres that vary smoothly over the sheet, the left hemisphere's on the right."""
    fields_V3 = smooth_fields(rng, sheet, 3, _WIDTH)
    own_V3 = rng.standard_normal((len(area_V), 3))
    side_V = np.where(sheet.hemisphere_V == 0, 1.0, -1.0)
    across_V = 0.42 / (1 + np.exp(-1.5 * (fields_V3[:, 0] + 0.3 * own_V3[:, 0])))
    down_V = 0.5 + 0.42 * np.tanh(0.8 * (fields_V3[:, 1] + 0.3 * own_V3[:, 1]))
    sigma_V = np.array([_PRF_SIGMA.get(area, 0.3) for area in area_V])
    sigma_V = sigma_V * np.exp(0.15 * own_V3[:, 2])
    return np.stack([0.5 + side_V * across_V, down_V, sigma_V], axis=1).astype(np.float32)


def _channel_weights(
    rng: np.random.Generator, sheet: CorticalSheet, area_V: np.ndarray
) -> np.ndarray:
    """Channel weights of early voxels; hV4 reads colours more than orientations."""
    fields_VC = smooth_fields(rng, sheet, len(CHANNELS), _WIDTH)
    fields_VC = fields_VC + _JITTER * rng.standard_normal(fields_VC.shape)
    weights_VC = np.exp(fields_VC)
    colours = np.arange(len(CHANNELS)) >= 4
    weights_VC[np.ix_(area_V == "hV4", colours)] *= 3
    weights_VC[np.ix_(np.isin(area_V, ("V1", "V2", "V3")), colours)] *= 0.6
    weights_VC /= weights_VC.sum(1, keepdims=True)
    weights_VC[~np.isin(area_V, EARLY)] = 0
    return weights_VC.astype(np.float32)


def _emphasis(area: str) -> np.ndarray:
    """How strongly an area reads every feature of the content."""
    emphasis_F = np.zeros(CONTENT_WIDTH)
    for group, strength in _EMPHASIS[area].items():
        emphasis_F[CONTENT_GROUPS[group]] = strength
    preferred = _PREFERS.get(area)
    if preferred:
        strength_S = np.array([preferred.get(name, _OTHERS) for name in SUPERCATEGORIES])
        strength_K = strength_S[SUPERCATEGORY_OF_K]
        emphasis_F[CONTENT_GROUPS["kind"]] *= strength_K
        emphasis_F[CONTENT_GROUPS["supercategory"]] *= strength_S
        part = CONTENT_GROUPS["part"]
        strength_P = np.full(part.stop - part.start, _OTHERS)
        for kind in range(len(KINDS)):
            np.maximum.at(strength_P, PARTS_OF_K[kind], strength_K[kind])
        emphasis_F[part] *= strength_P
    return emphasis_F


@lru_cache(maxsize=len(AREAS))
def _tuning_space(area: str) -> np.ndarray:
    """Directions of an area's tuning that all people share: F x Q, and what all voxels prefer."""
    rng = np.random.default_rng([20261131, AREAS.index(area)])
    space_FQ = rng.standard_normal((CONTENT_WIDTH, TUNING_RANK))
    preferred = _PREFERS.get(area, {})
    common_F = np.zeros(CONTENT_WIDTH)
    strength_S = np.array([preferred.get(name, 0.0) for name in SUPERCATEGORIES])
    common_F[CONTENT_GROUPS["supercategory"]] = 3 * strength_S
    common_F[CONTENT_GROUPS["kind"]] = strength_S[SUPERCATEGORY_OF_K]
    return np.concatenate([space_FQ, common_F[:, None]], axis=1)


def _content_weights(
    rng: np.random.Generator, sheet: CorticalSheet, area_V: np.ndarray
) -> np.ndarray:
    """Content weights of later voxels, before they are scaled."""
    fields_VQ = smooth_fields(rng, sheet, TUNING_RANK + 1, _WIDTH)
    fields_VQ = fields_VQ + _JITTER * rng.standard_normal(fields_VQ.shape)
    fields_VQ[:, -1] = 1 + 0.4 * fields_VQ[:, -1]  # of what all voxels of the area prefer
    weights_VF = np.zeros((len(area_V), CONTENT_WIDTH), dtype=np.float32)
    for area in AREAS[len(EARLY) :]:
        own_FQ = rng.standard_normal((CONTENT_WIDTH, TUNING_RANK + 1))
        own_FQ[:, -1] = 0
        inside = area_V == area
        space_FQ = np.sqrt(1 - SHIFT**2) * _tuning_space(area) + SHIFT * own_FQ
        weights_VF[inside] = (fields_VQ[inside] @ space_FQ.T) * _emphasis(area)
    return weights_VF


def _snr(rng: np.random.Generator, sheet: CorticalSheet, area_V: np.ndarray) -> np.ndarray:
    """SNR of NSD's distribution, with a factor per area, and 0 for voxels without signal."""
    field_V = smooth_fields(rng, sheet, 1, _WIDTH)[:, 0] + rng.standard_normal(len(area_V))
    snr_V = planted_snr(field_V, np.isin(area_V, EARLY))
    factor_A = np.exp(RELIABILITY_SPREAD * rng.standard_normal(len(AREAS)))
    for area, factor in zip(AREAS, factor_A):
        snr_V[area_V == area] *= np.float32(factor)
    silent_V = rng.random(len(area_V)) < SILENT_SHARE
    return np.where(silent_V, np.float32(0), snr_V).astype(np.float32)
