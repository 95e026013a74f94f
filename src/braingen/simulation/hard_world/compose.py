"""Draw scenes of the hard world: two to four objects in relations, on a cluttered background.

N images, at most J = 4 objects each.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from braingen.simulation.hard_world import catalogue
from braingen.simulation.hard_world.catalogue import (
    BACKGROUNDS,
    CLUTTER,
    COLOURS,
    CONTEXT_BS,
    RELATIONS,
    SUPERCATEGORIES,
    SUPERCATEGORY_OF_K,
    TEXTURES_OF_K,
    THEME_OF,
    THEMES,
    VIEWS,
)

MOST_OBJECTS = 4
NOTHING = -1
"""Stands where a scene has fewer objects."""
_COUNT_SHARES = (0.4, 0.35, 0.25)  # of scenes with 2, 3 and 4 objects
# how far an object lies from the one before it: right, down, as shares of the image
_OFFSETS = {
    "on": (0.0, -0.25),
    "under": (0.0, 0.22),
    "beside": (0.3, 0.0),
    "behind": (0.12, -0.12),
    "holding": (0.16, 0.04),
    "facing": (0.34, 0.03),
}
_TYPICAL = (0.85, 0.8, 0.7, 0.7)  # background, main and second object, relation are the theme's
_STREAM = 11


class HardScenes(NamedTuple):
    """Scenes as arrays; `NOTHING` where an object is missing."""

    kind_NJ: np.ndarray
    texture_NJ: np.ndarray
    colour_NJ: np.ndarray
    view_NJ: np.ndarray
    place_NJ2: np.ndarray
    """Centre in shares of the image, from the left and from above; float32."""
    size_NJ: np.ndarray
    """Share of the image's side; 0 where an object is missing; float32."""
    relation_NJ: np.ndarray
    """How an object stands to the one before it; `NOTHING` for the first."""
    background_N: np.ndarray
    horizon_N: np.ndarray
    clutter_NC: np.ndarray
    new_N: np.ndarray
    """Whether the scene shows a combination that no training image shows."""

    @property
    def weight_NJ(self) -> np.ndarray:
        """How much of what is seen an object makes up: sizes, summing to 1."""
        return self.size_NJ / self.size_NJ.sum(axis=1, keepdims=True)

    @property
    def supercategory_NJ(self) -> np.ndarray:
        """Supercategory of every object."""
        return np.where(self.kind_NJ < 0, NOTHING, SUPERCATEGORY_OF_K[self.kind_NJ])


def draw_scenes(seed: int, image_N: Sequence[int] | np.ndarray, test_images: int) -> HardScenes:
    """Draw the scenes of some image ids; every id has a generator of its own.

    Of the test images (ids below ``test_images``) those with an odd id show at least one
    combination that no training image shows: a main object on a background, or a relation of two
    supercategories.

    Parameters
    ----------
    seed : int
        Of the simulation.
    image_N : sequence of int
        Image ids.
    test_images : int
        Number of test images; their ids come first.
    """
    rows = []
    for image in map(int, image_N):
        wanted = image < test_images and image % 2 == 1
        rng = np.random.default_rng([seed, _STREAM, image])
        row = _draw(rng)
        while row["new"] != wanted:
            row = _draw(rng)
        rows.append(row)

    def stack(name: str, dtype: type) -> np.ndarray:
        return np.array([row[name] for row in rows], dtype=dtype)

    return HardScenes(
        kind_NJ=stack("kind", np.int64),
        texture_NJ=stack("texture", np.int64),
        colour_NJ=stack("colour", np.int64),
        view_NJ=stack("view", np.int64),
        place_NJ2=stack("place", np.float32),
        size_NJ=stack("size", np.float32),
        relation_NJ=stack("relation", np.int64),
        background_N=stack("background", np.int64),
        horizon_N=stack("horizon", np.float32),
        clutter_NC=stack("clutter", np.float32),
        new_N=stack("new", bool),
    )


def _draw(rng: np.random.Generator) -> dict[str, object]:
    theme = THEME_OF[int(rng.integers(THEMES))]
    typical = rng.random(4) < _TYPICAL
    background = theme.background if typical[0] else int(rng.integers(len(BACKGROUNDS)))
    count = 2 + int(rng.choice(3, p=_COUNT_SHARES))
    supercategory = rng.choice(len(SUPERCATEGORIES), count, p=CONTEXT_BS[background])
    kind = 10 * supercategory + rng.integers(10, size=count)
    kind[:2] = np.where(typical[1:3], (theme.main, theme.second), kind[:2])
    supercategory = SUPERCATEGORY_OF_K[kind]
    texture = TEXTURES_OF_K[kind, rng.integers(TEXTURES_OF_K.shape[1], size=count)]
    relation = rng.integers(len(RELATIONS), size=count)
    relation[1] = theme.relation if typical[3] else relation[1]
    relation[0] = NOTHING
    size = np.concatenate([rng.uniform(0.45, 0.7, 1), rng.uniform(0.2, 0.45, count - 1)])
    place = [np.array([rng.uniform(0.3, 0.7), rng.uniform(0.4, 0.7)])]
    for j in range(1, count):
        right, down = _OFFSETS[RELATIONS[relation[j]]]
        offset = np.array([right if rng.random() < 0.5 else -right, down])
        place.append(np.clip(place[-1] + offset + 0.04 * rng.standard_normal(2), 0.08, 0.92))
    new = bool(catalogue.NEW_KIND_ON_BACKGROUND_KB[kind[0], background]) or any(
        catalogue.NEW_RELATION_SRS[supercategory[j - 1], relation[j], supercategory[j]]
        for j in range(1, count)
    )

    def padded(values: np.ndarray, fill: float) -> np.ndarray:
        return np.concatenate([values, np.full(MOST_OBJECTS - count, fill)])

    places = np.zeros((MOST_OBJECTS, 2))
    places[:count] = place
    return {
        "kind": padded(kind, NOTHING),
        "texture": padded(texture, NOTHING),
        "colour": padded(rng.integers(len(COLOURS), size=count), NOTHING),
        "view": padded(rng.integers(VIEWS, size=count), NOTHING),
        "place": places,
        "size": padded(size, 0),
        "relation": padded(relation, NOTHING),
        "background": background,
        "horizon": rng.uniform(0.3, 0.7),
        "clutter": rng.standard_normal(CLUTTER),
        "new": new,
    }
