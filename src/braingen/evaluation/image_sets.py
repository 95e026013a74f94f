"""Sequences of images by image id, read on access, so memory does not grow with their number."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from braingen.data.stimuli import Stimuli
from braingen.generation.resumable import open_image


class PngImages(Sequence):
    """PNGs of a folder, named by image id, as uint8 arrays 3 x H x W."""

    def __init__(self, folder: Path, image_N: np.ndarray) -> None:
        self._paths = [folder / f"{image:06d}.png" for image in image_N]

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, row):  # type: ignore[no-untyped-def]
        with open_image(self._paths[row]) as image:
            return np.asarray(image.convert("RGB")).transpose(2, 0, 1)


class SeenImages(Sequence):
    """Images of a data folder, as float arrays 3 x H x W in [0, 1]."""

    def __init__(self, stimuli: Stimuli, image_N: np.ndarray) -> None:
        self._stimuli, self._image_N = stimuli, np.asarray(image_N)

    def __len__(self) -> int:
        return len(self._image_N)

    def __getitem__(self, row):  # type: ignore[no-untyped-def]
        return np.asarray(self._stimuli.images(self._image_N[row : row + 1])[0])
