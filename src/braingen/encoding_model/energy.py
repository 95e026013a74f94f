"""Low-level features of images: oriented contrast energy at three scales, luminance and colour.

B images, F filters, G x G cells of the grid.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, conv2d, interpolate

SIDE = 96
"""Pixels to which images are resized."""
WAVELENGTHS = (4.0, 8.0, 16.0)
"""Pixels per cycle."""
ORIENTATIONS = 4
GRID = 4
"""Cells along a side over which features are averaged."""
WIDTH = (len(WAVELENGTHS) * ORIENTATIONS + 3) * GRID**2
"""Features of an image."""


def gabor_pairs(wavelength: float) -> Tensor:
    """Filters of every orientation without a mean, cosine and sine phase: 2F x 1 x K x K."""
    sigma = 0.5 * wavelength
    reach = math.ceil(2.5 * sigma)
    axis = torch.arange(-reach, reach + 1, dtype=torch.float32)
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    window = torch.exp(-(x**2 + y**2) / (2 * sigma**2))
    filters = []
    for number in range(ORIENTATIONS):
        angle = math.pi * number / ORIENTATIONS
        phase = 2 * math.pi * (x * math.cos(angle) + y * math.sin(angle)) / wavelength
        for wave in (torch.cos(phase), torch.sin(phase)):
            filters.append(window * (wave - (window * wave).sum() / window.sum()))
    return torch.stack(filters)[:, None] / window.sum()


@torch.no_grad()
def energy_features(images_B3HW: Tensor) -> Tensor:
    """Compute the features of images in [0, 1]: B x WIDTH, float32.

    Contrast energy is the root of the summed squares of both phases; colour is red against green
    and blue against yellow.
    """
    x_B3SS = interpolate(
        images_B3HW.float(), size=(SIDE, SIDE), mode="bilinear", antialias=True, align_corners=False
    )
    red, green, blue = x_B3SS.unbind(1)
    grey_B1SS = x_B3SS.mean(1, keepdim=True)
    maps = [grey_B1SS, (red - green)[:, None], (blue - (red + green) / 2)[:, None]]
    for wavelength in WAVELENGTHS:
        filters = gabor_pairs(wavelength).to(grey_B1SS)
        margin = filters.shape[-1] // 2
        padded = torch.nn.functional.pad(grey_B1SS, (margin,) * 4, mode="reflect")
        phases_BF2 = conv2d(padded, filters).unflatten(1, (ORIENTATIONS, 2))
        maps.append(phases_BF2.square().sum(2).add(1e-12).sqrt())
    return adaptive_avg_pool2d(torch.cat(maps, 1), GRID).flatten(1)
