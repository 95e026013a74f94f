"""Answers to the page: computed one after another, and kept.

K candidates, H W sides in pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from threading import Lock
from typing import NamedTuple

import numpy as np

from braingen.explorer.explored_run import ExploredRun
from braingen.explorer.generating import ExploredImage, check_image, generate_image
from braingen.explorer.maps import BrainMap, brain_map
from braingen.explorer.requests import ImageRequest, MapRequest, SpreadRequest
from braingen.runtime.errors import UserError

KEPT = 96
"""Generated images, and maps, that are kept."""


class Spread(NamedTuple):
    """How much several decoded images of one test image differ."""

    pictures: tuple[np.ndarray, ...]
    """The images; H x W x 3, uint8."""
    deviation_HW: np.ndarray
    """Standard deviation over the images in every pixel, root mean square over colours; images are
    in [0, 1].
    """

    @property
    def mean(self) -> float:
        """Mean over pixels."""
        return float(self.deviation_HW.mean())


class Session:
    """The runs that are explored.

    Parameters
    ----------
    runs : Sequence[ExploredRun]
        One, or two that are compared.
    candidates : int
        K, images from different noise whose spread is shown.
    """

    def __init__(self, runs: Sequence[ExploredRun], candidates: int) -> None:
        self.runs, self.candidates = tuple(runs), candidates
        self._lock = Lock()  # a decoder works on one image at a time
        self._image = lru_cache(maxsize=KEPT)(self._generate)
        self._map = lru_cache(maxsize=KEPT)(self._compute_map)

    def run(self, number: int) -> ExploredRun:
        """A run by its number.

        Raises
        ------
        UserError
            When there is none.
        """
        if not 0 <= number < len(self.runs):
            raise UserError(f"There is no run {number}: {len(self.runs)} are open, counted from 0.")
        return self.runs[number]

    def image(self, asked: ImageRequest) -> ExploredImage:
        """Generate an image, or return the one that was generated for the same request."""
        with self._lock:
            return self._image(asked)

    def map(self, asked: MapRequest) -> BrainMap:
        """Compute a map, or return the one that was computed for the same request."""
        with self._lock:
            return self._map(asked)

    def spread(self, asked: SpreadRequest) -> Spread:
        """Spread over candidates from different noise, or over single presentations.

        Raises
        ------
        UserError
            When the image was presented once only, so that presentations have no spread.
        """
        run = self.run(asked.run)
        check_image(run, asked.image)
        base = ImageRequest(run=asked.run, image=asked.image, steps=asked.steps)
        if asked.over == "noise":
            field, count = "sample", self.candidates
        else:
            field, count = "presentation", len(run.responses(asked.image))
            if count < 2:
                raise UserError(
                    f"Image {asked.image} was presented once, so presentations have no spread:"
                    " choose the spread over noise."
                )
        wanted = [
            base.model_copy(update={field: number})
            for number in range(min(count, asked.count or count))
        ]
        if asked.over == "noise":  # the page has shown the first one already
            wanted[0] = wanted[0].model_copy(update={"frames": True})
        pictures = tuple(self.image(each).picture_HW3 for each in wanted)
        variance_HW3 = (np.stack(pictures).astype(np.float32) / 255).var(axis=0)
        return Spread(pictures, np.sqrt(variance_HW3.mean(axis=-1)))

    def _generate(self, asked: ImageRequest) -> ExploredImage:
        return generate_image(self.run(asked.run), asked)

    def _compute_map(self, asked: MapRequest) -> BrainMap:
        return brain_map(self.run(asked.run), asked)
