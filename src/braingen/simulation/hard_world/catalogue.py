"""What scenes of the hard world consist of: kinds of objects with parts, textures and views,
relations, backgrounds, and the combinations that only test images show.

The tables are drawn once from fixed seeds: every simulation has the same world, with other scenes
and other brains.

K kinds, S supercategories, P parts, B backgrounds, R relations.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

KINDS_BY_SUPERCATEGORY: dict[str, tuple[str, ...]] = {
    "person": (
        *("boy", "girl", "woman", "man", "baby"),
        *("dancer", "cook", "diver", "clown", "guard"),
    ),
    "vehicle": (
        *("car", "bus", "lorry", "train", "bicycle"),
        *("motorcycle", "sailboat", "aeroplane", "tractor", "tram"),
    ),
    "outdoor": (
        *("bench", "hydrant", "traffic light", "stop sign", "lamp post"),
        *("fountain", "letter box", "tent", "statue", "fence"),
    ),
    "animal": (
        *("dog", "cat", "horse", "cow", "elephant"),
        *("bird", "fish", "snake", "rabbit", "butterfly"),
    ),
    "accessory": (
        *("handbag", "umbrella", "hat", "tie", "suitcase"),
        *("glasses", "shoe", "glove", "belt", "watch"),
    ),
    "sports": (
        *("ball", "racket", "skateboard", "surfboard", "kite"),
        *("ski", "bat", "frisbee", "helmet", "dumbbell"),
    ),
    "kitchen": (
        *("cup", "fork", "knife", "spoon", "bowl"),
        *("bottle", "wine glass", "kettle", "pan", "jug"),
    ),
    "food": (
        *("banana", "apple", "sandwich", "orange", "carrot"),
        *("pizza", "cake", "bread", "grapes", "egg"),
    ),
    "furniture": (
        *("chair", "couch", "bed", "table", "wardrobe"),
        *("desk", "stool", "shelf", "cradle", "mirror"),
    ),
    "electronic": (
        *("television", "laptop", "mouse", "remote", "keyboard"),
        *("telephone", "camera", "radio", "headphones", "printer"),
    ),
    "appliance": (
        *("oven", "toaster", "sink", "refrigerator", "fan"),
        *("washing machine", "heater", "iron", "mixer", "vacuum cleaner"),
    ),
    "indoor": (
        *("book", "clock", "vase", "scissors", "teddy bear"),
        *("lamp", "candle", "newspaper", "picture", "plant"),
    ),
}
"""Ten kinds of objects in each of COCO's supercategories."""
SUPERCATEGORIES = tuple(KINDS_BY_SUPERCATEGORY)
KINDS = tuple(kind for kinds in KINDS_BY_SUPERCATEGORY.values() for kind in kinds)
"""All kinds, those of a supercategory side by side."""
SUPERCATEGORY_OF_K = np.repeat(np.arange(len(SUPERCATEGORIES)), 10)
PARTS = (
    *("head", "eye", "ear", "leg", "arm", "tail", "wing", "hand", "wheel", "window"),
    *("door", "handle", "lid", "screen", "button", "cable", "blade", "spout", "strap", "zip"),
    *("leaf", "stem", "peel", "seed", "crust", "filling", "seat", "back", "cushion", "drawer"),
    *("shelf", "sail", "mast", "sign", "letter", "net", "string", "rim", "base", "bulb"),
)
TEXTURES = (
    *("plain", "striped", "dotted", "checked", "furry", "scaly", "feathered", "wooden"),
    *("metallic", "glassy", "knitted", "leathery", "grassy", "rocky", "glossy", "rusty"),
)
COLOURS = (
    *("red", "orange", "yellow", "green", "cyan", "blue", "purple", "brown", "white", "black"),
)
VIEWS = 8
"""Directions from which an object is seen, 45 degrees apart."""
RELATIONS = ("on", "under", "beside", "behind", "holding", "facing")
"""How an object stands to the one before it."""
BACKGROUNDS = (
    *("meadow", "forest", "beach", "sea", "desert", "snow", "mountain", "river"),
    *("street", "square", "harbour", "station", "garden", "playground", "stadium", "market"),
    *("kitchen", "bedroom", "living room", "office", "shop", "workshop", "bathroom", "museum"),
)
CLUTTER = 20
"""Coefficients of a background's clutter."""
PARTS_OF_KIND, TEXTURES_OF_KIND = 4, 3
HELD_OUT_SHARE = 0.2
"""Share of the combinations that no training image shows."""


def _rng(stream: int) -> np.random.Generator:
    return np.random.default_rng([20261129, stream])


def _choices(rng: np.random.Generator, pool: int, of_pool: int, each: int) -> np.ndarray:
    """For every kind, ``each`` members of its supercategory's pool: K x each."""
    rows = []
    for _ in SUPERCATEGORIES:
        members = rng.choice(pool, of_pool, replace=False)
        rows += [rng.choice(members, each, replace=False) for _ in range(10)]
    return np.array(rows)


PARTS_OF_K = _choices(_rng(0), len(PARTS), 8, PARTS_OF_KIND)
"""Parts of every kind: K x 4. Kinds of a supercategory share parts."""
TEXTURES_OF_K = _choices(_rng(1), len(TEXTURES), 6, TEXTURES_OF_KIND)
"""Textures that a kind comes in: K x 3."""
VISIBLE_PV = _rng(2).random((len(PARTS), VIEWS)) < 0.6
"""Whether a part is visible from a view."""
CONTEXT_BS = _rng(3).dirichlet(np.full(len(SUPERCATEGORIES), 0.6), len(BACKGROUNDS))
CONTEXT_BS = 0.7 * CONTEXT_BS + 0.3 / len(SUPERCATEGORIES)
"""Probability of every supercategory in front of a background."""
THEMES = 96
"""Themes of scenes: what occurs together, so that many images are alike and differ in details."""


class Theme(NamedTuple):
    """What the scenes of a theme mostly show."""

    background: int
    main: int
    """Kind of the first object."""
    second: int
    """Kind of the second object."""
    relation: int


def _themes() -> tuple[Theme, ...]:
    rng = _rng(6)
    found = []
    for _ in range(THEMES):
        background = int(rng.integers(len(BACKGROUNDS)))
        main, second = 10 * rng.choice(
            len(SUPERCATEGORIES), 2, p=CONTEXT_BS[background]
        ) + rng.integers(10, size=2)
        found.append(Theme(background, int(main), int(second), int(rng.integers(len(RELATIONS)))))
    return tuple(found)


THEME_OF = _themes()
"""The themes."""
NEW_KIND_ON_BACKGROUND_KB = _rng(4).random((len(KINDS), len(BACKGROUNDS))) < HELD_OUT_SHARE
"""Main object and background that only test images show together."""
NEW_RELATION_SRS = (
    _rng(5).random((len(SUPERCATEGORIES), len(RELATIONS), len(SUPERCATEGORIES))) < HELD_OUT_SHARE
)
"""Relations of two supercategories that only test images show."""
