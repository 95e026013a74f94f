"""A decoder with the responses, images and maps that the explorer shows, wherever they come from.

V voxels, R presentations, N images, F numbers of an embedding.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from torch import Tensor

from braingen.data.places import Places
from braingen.generation.pipeline import BrainDecoder
from braingen.types import Conditioning

TuningMap = Callable[[], np.ndarray]
"""Reads the map of a category: V, predicted response to its images less that to all others."""


class ShownImage(NamedTuple):
    """A test image that can be chosen."""

    image: int
    """Its id."""
    caption: str
    """Its first caption; empty where there are none."""


class GenerationSettings(NamedTuple):
    """How the run generates images, but for what the page changes."""

    steps: int
    """Denoising steps of the run's own images."""
    preview_steps: int
    """Denoising steps of the explorer."""
    guidance_scale: float
    guidance_end: float = 1.0
    ip_adapter_scale: float = 1.0
    size: int = 0
    """Side in pixels; 0 for the U-Net's own."""
    use_image: bool = True
    use_text: bool = True
    strength: float = 0.6
    """Share of the steps that are run from the coarse image, where there is a low-level path."""
    blend: float = 0.0
    negative: Conditioning | None = None
    seed: int = 0


class ExploredRun(NamedTuple):
    """One trained decoder and the data of one subject."""

    name: str
    """What the page calls it."""
    folder: str
    """How its folder is typed in commands; empty for the shipped decoder."""
    simulated: bool
    subject: int
    decoder: BrainDecoder
    generation: GenerationSettings
    images: tuple[ShownImage, ...]
    seen: Callable[[int], Image.Image]
    """Id -> the image that was shown."""
    responses: Callable[[int], np.ndarray]
    """Id -> responses to its presentations, R x V, z-scored, float32."""
    true: Callable[[int], Tensor] | None
    """Id -> true CLIP image embedding, 1 x T x D in CLIP's own units; None where it is unknown."""
    places: Places
    regions: Mapping[str, np.ndarray]
    """Name -> bool V."""
    tuning: Mapping[str, TuningMap]
    """Category -> its map; empty without an encoding model."""
    scores: Mapping[str, Mapping[str, Any]]
    """Score -> value, low, high, n; empty before `braingen evaluate`."""
    notes: tuple[str, ...] = ()
    """In what the explorer's images differ from the run's own."""

    def image_ids(self) -> list[int]:
        """Ids of the test images, in their order."""
        return [each.image for each in self.images]
