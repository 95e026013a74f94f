"""How many images are generated at once where ``generation.batch_size`` is auto."""

from __future__ import annotations

from typing import Literal

from diffusers import AutoencoderKL, UNet2DConditionModel
import torch

from braingen.generation.accounting import unet_working_bytes, vae_working_bytes
from braingen.pretrained.sdxl import PIXELS_AT_ONCE, vae_factor

USUAL, MOST = 8, 64
"""Images on a CPU; images on a GPU, at most: more are no faster."""
KEPT_FREE = 0.25
"""Share of the free memory that is left to the caches of kernels and to fragments."""


def batch_of(asked: int | Literal["auto"]) -> int:
    """The number that was asked for; the usual one for auto."""
    return USUAL if asked == "auto" else asked


def batch_that_fits(
    asked: int | Literal["auto"],
    unet: UNet2DConditionModel,
    vae: AutoencoderKL,
    size: int,
    free: int | None = None,
) -> int:
    """As many images as the free memory of the GPU allows, a power of two.

    Parameters
    ----------
    asked : int | Literal["auto"]
        ``generation.batch_size``.
    size : int
        Side of the images in pixels.
    free : int | None, optional
        Free bytes; None for those of the U-Net's GPU. On a CPU the usual number is returned.
    """
    if asked != "auto":
        return asked
    if free is None:
        if unet.device.type != "cuda":
            return USUAL
        free = torch.cuda.mem_get_info(unet.device)[0]
    side = -(-size // vae_factor(vae))
    one = unet_working_bytes(dict(unet.config), 2, side, unet.dtype)
    count = max(1, PIXELS_AT_ONCE // size**2)
    # decoding works in slices, after the U-Net, and has all of its batch's images beside it
    left = (1 - KEPT_FREE) * free - vae_working_bytes(dict(vae.config), count, size)
    each = max(one, 2 * 3 * size**2 * 4)
    fits, batch = int(left // each), 1
    while 2 * batch <= min(fits, MOST):
        batch *= 2
    return batch
