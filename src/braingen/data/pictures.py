"""Pictures made to fit: square, of one side, three colours."""

from __future__ import annotations

import numpy as np
from PIL import Image


def fit_picture(picture_HW3: np.ndarray, side: int) -> np.ndarray:
    """Cut the middle square out of a picture and resize it (Pillow's bicubic, antialiased): 3 x side x side, uint8.

    A picture that has the side already comes back as it is.
    """
    height, width = picture_HW3.shape[:2]
    least = min(height, width)
    top, left = (height - least) // 2, (width - least) // 2
    square = np.ascontiguousarray(picture_HW3[top : top + least, left : left + least])
    if least != side:
        square = np.asarray(Image.fromarray(square).resize((side, side), Image.Resampling.BICUBIC))
    return square.transpose(2, 0, 1)
