"""The semantic code of a scene's description, and the preferences of category areas.

The code depends on neither the image nor any network's embedding, so decoding is not trivial by
construction.

N scenes, K code entries, V voxels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from braingen.simulation.retina import FIELD_OF_VIEW
from braingen.simulation.scenes import (
    BACKGROUNDS,
    COLOUR_NAMES,
    NO_COLOUR,
    OBJECTS,
    POSITIONS,
    SUPERCATEGORIES,
    Scene,
)

OBJECT_CODE: tuple[str, ...] = (
    *(f"object {thing.name}" for thing in OBJECTS),
    *(f"supercategory {name}" for name in SUPERCATEGORIES),
    *(f"colour {name}" for name in COLOUR_NAMES),
)
"""Entries of an object, which weigh more for voxels with receptive fields near the object."""
SCENE_CODE: tuple[str, ...] = (
    *(f"background {name}" for name in BACKGROUNDS),
    "place x",
    "place y",
    "size",
    "mirrored",
)
"""Entries of the whole scene; place, size and mirroring are the larger object's."""
CODE: tuple[str, ...] = OBJECT_CODE + SCENE_CODE
"""All entries, in order."""
GROUPS: dict[str, slice] = {}
"""Groups of entries: object, supercategory, colour, background, place, size and mirrored."""
for _entry, _name in enumerate(CODE):
    _group = _name.split(" ")[0]
    GROUPS[_group] = slice(GROUPS[_group].start if _group in GROUPS else _entry, _entry + 1)
_SECOND_OBJECT = 0.4  # representation strength of the smaller object


class SceneCode(NamedTuple):
    """Scenes as input of higher visual cortex."""

    main_NK: np.ndarray
    """Object entries of the larger object, float32 (K as OBJECT_CODE)."""
    second_NK: np.ndarray
    """The same of the smaller object, weaker; zeros where there is none."""
    scene_NK: np.ndarray
    """Scene entries, numbers standardised, float32 (K as SCENE_CODE)."""
    where_N23: np.ndarray
    """Of both objects: degrees right of and above the centre, and spread (sd), float32."""


def encode(scenes: Sequence[Scene]) -> SceneCode:
    """Encode scenes by the semantic code."""
    entry = {name: k for k, name in enumerate(OBJECT_CODE)}
    objects = np.zeros((2, len(scenes), len(OBJECT_CODE)), dtype=np.float32)
    whole = np.zeros((len(scenes), len(SCENE_CODE)), dtype=np.float32)
    where = np.ones((len(scenes), 2, 3), dtype=np.float32)
    for n, scene in enumerate(scenes):
        for which, (thing, strength) in enumerate(zip(scene.objects, (1.0, _SECOND_OBJECT))):
            kind = OBJECTS[thing.object]
            objects[which, n, entry[f"object {kind.name}"]] = strength
            objects[which, n, entry[f"supercategory {kind.supercategory}"]] = strength
            if thing.colour != NO_COLOUR:
                objects[which, n, entry[f"colour {COLOUR_NAMES[thing.colour]}"]] = strength
            where[n, which] = (
                (thing.x - 0.5) * FIELD_OF_VIEW,
                (0.5 - thing.y) * FIELD_OF_VIEW,
                thing.size * FIELD_OF_VIEW / 4,
            )
        main = scene.objects[0]
        whole[n, scene.background] = 1
        whole[n, -4:] = (
            (main.x - 0.5) / 0.14,
            (0.54 - main.y) / 0.025,
            (main.size - 0.62) / 0.06,
            1 if main.mirrored else -1,
        )
    return SceneCode(objects[0], objects[1], whole, where)


PREFERENCES: dict[str, dict[str, float]] = {
    "faces": {"boy": 1.0, "dog": 0.75, "dancer": 0.5, "elephant": 0.3},
    "bodies": {"dancer": 1.0, "elephant": 0.75, "dog": 0.45, "boy": 0.4},
    "places": {"couch": 0.4, "chair": 0.3, "car": 0.3, "sailboat": 0.3, "traffic light": 0.2},
    "words": {
        "book": 1.0,
        "stop sign": 0.9,
        "clock": 0.8,
        "laptop": 0.6,
        "television": 0.3,
        "traffic light": 0.3,
    },
    "food": {"pizza": 1.0, "banana": 1.0, "wine glass": 0.5, "cup": 0.5, "kettle": 0.2},
    "tools": {
        "tennis racket": 1.0,
        "umbrella": 0.8,
        "cup": 0.7,
        "wine glass": 0.7,
        "kettle": 0.7,
        "handbag": 0.6,
        "light bulb": 0.6,
        "soccer ball": 0.5,
        "banana": 0.4,
    },
}
"""Response of a category area to objects; unlisted objects have random weights only."""
PLACE_PREFERENCES: dict[str, dict[str, float]] = {
    "PPA": {"room": 1.0, "street": 0.9, "forest": 0.5, "beach": 0.3},
    "OPA": {"street": 1.0, "forest": 0.7, "room": 0.6, "meadow": 0.4, "snow": 0.3},
    "RSC": {"beach": 1.0, "desert": 0.9, "sea": 0.8, "meadow": 0.7, "sunset": 0.6, "street": 0.5},
}
"""Response of a place area to backgrounds."""


def preference_vector(category: str, area: str) -> np.ndarray:
    """Return the weights of the code (K,) shared by all voxels of a category area."""
    entry = {name: k for k, name in enumerate(CODE)}
    weights = np.zeros(len(CODE), dtype=np.float32)
    for name, strength in PREFERENCES[category].items():
        weights[entry[f"object {name}"]] = strength
    for name, strength in PLACE_PREFERENCES.get(area, {}).items():
        weights[entry[f"background {name}"]] = strength
    return weights


LABELS = ("object", "supercategory", "colour", "background", "position")
"""Labels of a scene that can be decoded."""
LABEL_COUNTS = (
    len(OBJECTS),
    len(SUPERCATEGORIES),
    len(COLOUR_NAMES) + 1,
    len(BACKGROUNDS),
    len(POSITIONS),
)
"""Numbers of classes; the last colour stands for fixed colours."""


def labels(scenes: Sequence[Scene]) -> np.ndarray:
    """Return the classes of LABELS, int64 (N, 5)."""
    rows = []
    for scene in scenes:
        main = scene.objects[0]
        colour = len(COLOUR_NAMES) if main.colour == NO_COLOUR else main.colour
        rows.append(
            (
                main.object,
                SUPERCATEGORIES.index(OBJECTS[main.object].supercategory),
                colour,
                scene.background,
                scene.position,
            )
        )
    return np.array(rows, dtype=np.int64).reshape(len(scenes), len(LABELS))
