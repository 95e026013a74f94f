"""Features of scenes of the hard world, in place of pictures.

::

    layout     what early areas see: contrast energy in four orientations and four colours, on a
               grid
    content    what later areas see: kinds, parts, textures, views, colours, background, relations,
               places, and products of them
    embedding  what decoders aim at, in the place of CLIP's image embedding: a fixed random network
               of both
    early, middle, late  hidden states of other random networks, the bands of encoding models

N images, J objects each, G cells of a grid, C channels, F features, D embedding width.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np

from braingen.simulation.hard_world.catalogue import (
    BACKGROUNDS,
    CLUTTER,
    COLOURS,
    KINDS,
    PARTS,
    PARTS_OF_K,
    RELATIONS,
    SUPERCATEGORIES,
    TEXTURES,
    VIEWS,
    VISIBLE_PV,
)
from braingen.simulation.hard_world.compose import NOTHING, HardScenes, draw_scenes

GRID = 6
"""Cells along a side of the layout."""
CHANNELS = (
    *("vertical", "left oblique", "horizontal", "right oblique"),
    *("red", "green", "blue", "yellow"),
)
EMBEDDING_WIDTH, HIDDEN_WIDTH = 256, 384
REFERENCE_SCENES, _REFERENCE_SEED = 4000, 4_000_000
_PRODUCT = 24  # width of a product of embeddings of kinds, textures, relations
_CONTENT_SHARES = {
    "kind": 0.20,
    "supercategory": 0.14,
    "part": 0.10,
    "texture": 0.07,
    "colour": 0.07,
    "view": 0.04,
    "background": 0.14,
    "clutter": 0.04,
    "relation": 0.05,
    "where": 0.05,
    "look": 0.05,
    "act": 0.05,
}
"""Share of every group of the content in the variance of the embedding's input."""
_LAYOUT_SHARE = 0.10
_NONLINEAR = 0.8  # sd of the nonlinear part of an embedding, relative to the linear part
_COMMON = 0.8  # length of the mean embedding, in lengths of the deviation from it


def _rng(stream: int) -> np.random.Generator:
    return np.random.default_rng([20261130, stream])


def _centres() -> np.ndarray:
    """Centres of the cells in shares of the image, row by row: G x 2, from the left and above."""
    steps = (np.arange(GRID) + 0.5) / GRID
    y, x = np.meshgrid(steps, steps, indexing="ij")
    return np.stack([x.ravel(), y.ravel()], axis=1)


@lru_cache(maxsize=1)
def _looks() -> tuple[np.ndarray, ...]:
    """Channels of textures, colours and backgrounds (above and below the horizon), and clutter."""
    rng = _rng(0)
    texture_TC = np.exp(0.8 * rng.standard_normal((len(TEXTURES), 4)))
    opponent_K2 = rng.standard_normal((len(COLOURS), 2))
    colour_KC = np.maximum(
        np.stack([opponent_K2[:, 0], -opponent_K2[:, 0], opponent_K2[:, 1], -opponent_K2[:, 1]], 1),
        0,
    )
    background_B2C = np.exp(0.5 * rng.standard_normal((len(BACKGROUNDS), 2, len(CHANNELS)))) * 0.6
    phase, cycles = rng.uniform(0, 2 * np.pi, CLUTTER), rng.uniform(-1.2, 1.2, (CLUTTER, 2))
    waves_FG = np.cos(2 * np.pi * cycles @ _centres().T + phase[:, None])
    channel_FC = rng.standard_normal((CLUTTER, len(CHANNELS)))
    clutter_FGC = waves_FG[:, :, None] * channel_FC[:, None, :]
    return texture_TC, colour_KC, background_B2C, clutter_FGC


def layout_features(scenes: HardScenes) -> np.ndarray:
    """Energy of every channel in every cell: N x (G C), float32, not negative."""
    texture_TC, colour_KC, background_B2C, clutter_FGC = _looks()
    centre_G2 = _centres()
    below_NG = 1 / (1 + np.exp(-(centre_G2[:, 1] - scenes.horizon_N[:, None]) / 0.08))
    two_N2C = background_B2C[scenes.background_N]
    map_NGC = (1 - below_NG)[..., None] * two_N2C[:, :1] + below_NG[..., None] * two_N2C[:, 1:]
    map_NGC = map_NGC * np.exp(0.2 * np.tensordot(scenes.clutter_NC, clutter_FGC, 1))
    for j in range(scenes.kind_NJ.shape[1])[::-1]:  # the first object is in front
        there_N = scenes.kind_NJ[:, j] != NOTHING
        energy_NC = texture_TC[scenes.texture_NJ[:, j]]
        turn_N4 = (np.arange(4) + scenes.view_NJ[:, j, None]) % 4
        energy_NC = np.take_along_axis(energy_NC, turn_N4, axis=1)
        own_NC = np.concatenate([energy_NC, colour_KC[scenes.colour_NJ[:, j]]], axis=1)
        squared_NG = ((centre_G2 - scenes.place_NJ2[:, j, None]) ** 2).sum(2)
        width_N = np.maximum(scenes.size_NJ[:, j], 1e-3) / 2.5
        covers_NG = 0.85 * np.exp(-squared_NG / (2 * width_N[:, None] ** 2)) * there_N[:, None]
        map_NGC = (1 - covers_NG[..., None]) * map_NGC + covers_NG[..., None] * own_NC[:, None]
    return map_NGC.reshape(len(map_NGC), -1).astype(np.float32)


@lru_cache(maxsize=1)
def _codes() -> dict[str, np.ndarray]:
    """Codes of kinds, textures, colours, relations and views, whose products are content."""
    rng = _rng(1)
    own = rng.standard_normal((len(KINDS), _PRODUCT))
    shared = np.repeat(rng.standard_normal((len(SUPERCATEGORIES), _PRODUCT)), 10, axis=0)
    return {
        "kind": (own + shared) / np.sqrt(2),
        "texture": rng.standard_normal((len(TEXTURES), _PRODUCT)),
        "colour": rng.standard_normal((len(COLOURS), _PRODUCT)),
        "view": rng.standard_normal((VIEWS, _PRODUCT)),
        "relation": rng.standard_normal((len(RELATIONS), _PRODUCT)),
    }


def content_groups(scenes: HardScenes) -> dict[str, np.ndarray]:
    """Groups of content features, N x width each, float64, before standardisation."""
    N, J = scenes.kind_NJ.shape
    weight_NJ, codes = scenes.weight_NJ, _codes()
    rows = np.arange(N)

    def bag(index_NJ: np.ndarray, size: int) -> np.ndarray:
        found = np.zeros((N, size))
        for j in range(J):
            there = index_NJ[:, j] != NOTHING
            np.add.at(found, (rows[there], index_NJ[there, j]), weight_NJ[there, j])
        return found

    part_NP = np.zeros((N, len(PARTS)))
    look_NQ, act_NQ = np.zeros((N, _PRODUCT)), np.zeros((N, _PRODUCT))
    relation_NR = np.zeros((N, len(RELATIONS) * (1 + len(SUPERCATEGORIES))))
    for j in range(J):
        there = scenes.kind_NJ[:, j] != NOTHING
        kind, w = scenes.kind_NJ[there, j], weight_NJ[there, j][:, None]
        view = scenes.view_NJ[there, j]
        for part in PARTS_OF_K[kind].T:
            np.add.at(part_NP, (rows[there], part), w[:, 0] * VISIBLE_PV[part, view])
        look = codes["texture"][scenes.texture_NJ[there, j]]
        look = look + codes["colour"][scenes.colour_NJ[there, j]] + codes["view"][view]
        look_NQ[there] += w * codes["kind"][kind] * look
        if j:
            before = scenes.kind_NJ[there, j - 1]
            relation = scenes.relation_NJ[there, j]
            both = np.sqrt(w * weight_NJ[there, j - 1][:, None])
            roles = codes["kind"][before] * np.roll(codes["kind"][kind], 1, axis=1)
            act_NQ[there] += both * roles * codes["relation"][relation]
            np.add.at(relation_NR, (rows[there], relation), both[:, 0])
            place = len(RELATIONS) * (1 + kind // 10) + relation
            np.add.at(relation_NR, (rows[there], place), both[:, 0])
    background_NB = np.eye(len(BACKGROUNDS))[scenes.background_N]
    return {
        "kind": bag(scenes.kind_NJ, len(KINDS)),
        "supercategory": bag(scenes.supercategory_NJ, len(SUPERCATEGORIES)),
        "part": part_NP,
        "texture": bag(scenes.texture_NJ, len(TEXTURES)),
        "colour": bag(scenes.colour_NJ, len(COLOURS)),
        "view": bag(scenes.view_NJ, VIEWS),
        "background": background_NB,
        "clutter": scenes.clutter_NC.astype(np.float64),
        "relation": relation_NR,
        "where": _where(scenes),
        "look": look_NQ,
        "act": act_NQ,
    }


def _where(scenes: HardScenes) -> np.ndarray:
    """Places of the two largest roles on a coarse grid, sizes, number of objects, horizon."""
    steps = np.array([0.2, 0.5, 0.8])
    y, x = np.meshgrid(steps, steps, indexing="ij")
    parts = []
    for j in range(2):
        dx = scenes.place_NJ2[:, j, :1] - x.ravel()
        dy = scenes.place_NJ2[:, j, 1:] - y.ravel()
        parts.append(np.exp(-(dx**2 + dy**2) / (2 * 0.2**2)))
    count_N = (scenes.kind_NJ != NOTHING).sum(1)
    single = np.stack([scenes.size_NJ[:, 0], scenes.size_NJ[:, 1], count_N, scenes.horizon_N], 1)
    return np.concatenate([*parts, single], axis=1)


GROUP_WIDTHS: dict[str, int] = {
    "kind": len(KINDS),
    "supercategory": len(SUPERCATEGORIES),
    "part": len(PARTS),
    "texture": len(TEXTURES),
    "colour": len(COLOURS),
    "view": VIEWS,
    "background": len(BACKGROUNDS),
    "clutter": CLUTTER,
    "relation": len(RELATIONS) * (1 + len(SUPERCATEGORIES)),
    "where": 22,
    "look": _PRODUCT,
    "act": _PRODUCT,
}
"""Groups of the content and their widths."""
CONTENT_WIDTH = sum(GROUP_WIDTHS.values())
_ENDS = np.cumsum(list(GROUP_WIDTHS.values()))
CONTENT_GROUPS: dict[str, slice] = {
    name: slice(int(end) - width, int(end))
    for (name, width), end in zip(GROUP_WIDTHS.items(), _ENDS)
}
"""Columns of every group of the content."""


class Standard(NamedTuple):
    """Mean and standard deviation over the reference scenes."""

    mean_F: np.ndarray
    sd_F: np.ndarray

    def apply(self, values_NF: np.ndarray) -> np.ndarray:
        """Standardise; a feature that the reference does not vary in stays 0."""
        return ((values_NF - self.mean_F) / self.sd_F).astype(np.float32)


def _standard(values_NF: np.ndarray) -> Standard:
    sd_F = values_NF.std(0)
    return Standard(values_NF.mean(0), np.where(sd_F > 1e-6, sd_F, np.inf))


@lru_cache(maxsize=1)
def reference_scenes() -> HardScenes:
    """Scenes that no simulation shows, by which features and voxels are standardised."""
    return draw_scenes(_REFERENCE_SEED, range(REFERENCE_SCENES), 0)


@lru_cache(maxsize=1)
def _standards() -> tuple[Standard, Standard]:
    """Of layout and content."""
    scenes = reference_scenes()
    content_NF = np.concatenate(list(content_groups(scenes).values()), axis=1)
    return _standard(layout_features(scenes)), _standard(content_NF)


def content_features(scenes: HardScenes) -> np.ndarray:
    """Standardised content, groups as `CONTENT_GROUPS`: N x F, float32."""
    return _standards()[1].apply(np.concatenate(list(content_groups(scenes).values()), axis=1))


class SceneFeatures(NamedTuple):
    """Everything that stands in the place of pictures."""

    embedding_ND: np.ndarray
    """In the place of CLIP's image embedding; unit length; float32."""
    bands: dict[str, np.ndarray]
    """Feature spaces of encoding models besides the embedding: early, middle, late, energy."""


def scene_features(scenes: HardScenes) -> SceneFeatures:
    """Compute embedding and bands of scenes."""
    energy_NF = layout_features(scenes)
    layout_NF = _standards()[0].apply(energy_NF)
    content_NF = content_features(scenes)
    looks = [content_NF[:, CONTENT_GROUPS[name]] for name in ("texture", "colour", "part", "where")]
    return SceneFeatures(
        _embedding(layout_NF, content_NF),
        {
            "early": _hidden(layout_NF, 20),
            "middle": _hidden(np.concatenate([layout_NF, *looks], axis=1), 21),
            "late": _hidden(content_NF, 22),
            "energy": energy_NF,
        },
    )


def _hidden(values_NF: np.ndarray, stream: int) -> np.ndarray:
    """States of a random layer of rectified units."""
    width = values_NF.shape[1]
    weights = _rng(stream).standard_normal((width, HIDDEN_WIDTH), dtype=np.float32)
    return np.maximum(values_NF @ weights / np.float32(np.sqrt(width)), 0)


def _input(layout_NF: np.ndarray, content_NF: np.ndarray) -> np.ndarray:
    """What the embedding is made from: every group with its share of the variance."""
    scaled = [
        content_NF[:, part] * np.float32(np.sqrt(_CONTENT_SHARES[name] / GROUP_WIDTHS[name]))
        for name, part in CONTENT_GROUPS.items()
    ]
    share = np.float32(np.sqrt(_LAYOUT_SHARE / layout_NF.shape[1]))
    return np.concatenate([*scaled, layout_NF * share], axis=1)


@lru_cache(maxsize=1)
def _network() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Linear map, two layers of the nonlinear part, and the shift to the mean embedding."""
    rng = _rng(10)
    scenes = reference_scenes()
    layout, content = _standards()
    raw_NF = np.concatenate(list(content_groups(scenes).values()), axis=1)
    x_NF = _input(layout.apply(layout_features(scenes)), content.apply(raw_NF))
    width = x_NF.shape[1]
    linear = rng.standard_normal((width, EMBEDDING_WIDTH), dtype=np.float32)
    linear /= np.float32(np.sqrt(EMBEDDING_WIDTH))
    first = 1.5 * rng.standard_normal((width, 2 * EMBEDDING_WIDTH), dtype=np.float32)
    second = rng.standard_normal((2 * EMBEDDING_WIDTH, EMBEDDING_WIDTH), dtype=np.float32)
    linear_ND, bent_ND = x_NF @ linear, np.tanh(x_NF @ first) @ second
    second *= np.float32(_NONLINEAR * linear_ND.std(0).mean() / bent_ND.std(0).mean())
    whole_ND = linear_ND + np.tanh(x_NF @ first) @ second
    around_ND = whole_ND - whole_ND.mean(0)
    length = float(np.linalg.norm(around_ND, axis=1).mean())
    common_D = rng.standard_normal(EMBEDDING_WIDTH, dtype=np.float32)
    common_D *= np.float32(_COMMON * length / np.linalg.norm(common_D))
    return linear, first, second, common_D - whole_ND.mean(0)


def _embedding(layout_NF: np.ndarray, content_NF: np.ndarray) -> np.ndarray:
    linear, first, second, shift_D = _network()
    x_NF = _input(layout_NF, content_NF)
    whole_ND = x_NF @ linear + np.tanh(x_NF @ first) @ second + shift_D
    return (whole_ND / np.linalg.norm(whole_ND, axis=1, keepdims=True)).astype(np.float32)


def effective_dimensions(values_ND: np.ndarray) -> float:
    """Participation ratio of the covariance: (sum of eigenvalues)^2 / sum of their squares."""
    centred_ND = values_ND - values_ND.mean(0)
    covariance_DD = centred_ND.T.astype(np.float64) @ centred_ND
    return float(np.trace(covariance_DD) ** 2 / (covariance_DD**2).sum())
