"""Pictures made to fit: square, of one side, three colours."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from braingen.runtime.errors import as_sentence
from braingen.runtime.files import refuse_stand_in


def fit_picture(picture_HW3: np.ndarray, side: int) -> np.ndarray:
    """Cut the middle square out of a picture and resize it (Pillow's bicubic, antialiased): 3 x
    side x side, uint8.

    A picture that has the side already comes back as it is.
    """
    height, width = picture_HW3.shape[:2]
    least = min(height, width)
    top, left = (height - least) // 2, (width - least) // 2
    square = np.ascontiguousarray(picture_HW3[top : top + least, left : left + least])
    if least != side:
        square = np.asarray(Image.fromarray(square).resize((side, side), Image.Resampling.BICUBIC))
    return square.transpose(2, 0, 1)


def load_picture(path: Path, side: int, get_it: str) -> np.ndarray:
    """Read a picture file and make it fit: 3 x side x side, uint8.

    Raises
    ------
    UserError
        When it is missing, cut short or no picture.
    """
    refuse_stand_in(path, get_it)
    with as_sentence(f"{path} is not a readable picture", get_it), Image.open(path) as image:
        return fit_picture(np.asarray(image.convert("RGB")), side)
