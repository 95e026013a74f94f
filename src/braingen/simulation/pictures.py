"""Images of a simulated data folder: every id is a scene, generated from its own seed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from braingen.runtime.data_layout import Layout
from braingen.runtime.errors import UserError
from braingen.runtime.text_files import read_json
from braingen.simulation import scenes
from braingen.simulation.scenes import (
    BACKGROUNDS,
    COLOUR_NAMES,
    NO_COLOUR,
    OBJECTS,
    POSITIONS,
    Placement,
    Scene,
)

MAX_IMAGES = 1_000_000
"""Number of image ids per seed."""
MAX_SEED = 2**32 // MAX_IMAGES - 1
"""Largest seed of a simulation; seeds above 2**32 are those of the tiny backbones' corpus."""


def _generator(seed: int, image: int) -> np.random.Generator:
    return np.random.default_rng(seed * MAX_IMAGES + image)


def scene_of(seed: int, image: int) -> Scene:
    """Return the scene of an id."""
    return scenes.random_scene(_generator(seed, image))


def captions_of(seed: int, image: int) -> list[str]:
    """Return the five captions of an id."""
    rng = _generator(seed, image)
    return scenes.captions(scenes.random_scene(rng), rng)


def picture_of(seed: int, image: int) -> np.ndarray:
    """Render the stored image of an id: 3 x 224 x 224, float16 in [0, 1]."""
    return np.clip(scenes.stimulus(scenes.render(scene_of(seed, image))), 0, 1)


def describe(scene: Scene) -> dict[str, Any]:
    """Describe a scene as JSON-able values; `scene_from` is the inverse."""
    return {
        "background": BACKGROUNDS[scene.background],
        "position": POSITIONS[scene.position],
        "horizon": scene.horizon,
        "hue_shift": scene.hue_shift,
        "texture_seed": scene.texture_seed,
        "objects": [
            {
                **thing._asdict(),
                "object": OBJECTS[thing.object].name,
                "supercategory": OBJECTS[thing.object].supercategory,
                "colour": None if thing.colour == NO_COLOUR else COLOUR_NAMES[thing.colour],
            }
            for thing in scene.objects
        ],
    }


def scene_from(description: dict[str, Any]) -> Scene:
    """Rebuild a scene from its description."""
    names = [thing.name for thing in OBJECTS]
    things = tuple(
        Placement(
            **{
                **{name: thing[name] for name in Placement._fields},
                "object": names.index(thing["object"]),
                "colour": (
                    NO_COLOUR if thing["colour"] is None else COLOUR_NAMES.index(thing["colour"])
                ),
            }
        )
        for thing in description["objects"]
    )
    return Scene(
        background=BACKGROUNDS.index(description["background"]),
        horizon=description["horizon"],
        hue_shift=description["hue_shift"],
        texture_seed=description["texture_seed"],
        objects=things,
    )


def scenes_path(layout: Layout) -> Path:
    """Path of the scene descriptions of a simulated folder."""
    return layout.root / "truth" / "scenes.json"


def load_scenes(layout: Layout, images: Sequence[int]) -> list[Scene]:
    """Load the scenes of some ids from a simulated data folder.

    Raises
    ------
    UserError
        When the folder is not simulated, or has no such image.
    """
    path = scenes_path(layout)
    if not path.is_file():
        raise UserError(
            f"{path} is missing: {layout.root} was not written by `braingen simulate`, so the"
            " content of its images is not known."
        )
    descriptions = read_json(path, "write the folder again with `braingen simulate`")
    missing = [int(image) for image in images if str(int(image)) not in descriptions]
    if missing:
        raise UserError(
            f"{path} does not describe image {missing[0]}; it has {len(descriptions)} images,"
            " counted from 0."
        )
    return [scene_from(descriptions[str(int(image))]) for image in images]
