"""Retinal channels of an image: oriented contrast energy, luminance and colour opponency.

The image (8.4 degrees wide, as in NSD's scanner) is on a grey screen. A pyramid of oriented
band-pass filters (log-Gabor, two phases) splits contrast, each scale on a grid just fine enough for
it; energy, and rectified luminance and colour differences, are averaged over cells of 0.3 degrees.
Population receptive fields pool these maps (cortex.py).

N images, C channels, P cells of a map (28 x 28).
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from scipy import fft

from braingen.simulation.scenes import STIMULUS_SIZE

FIELD_OF_VIEW = 8.4
"""Width of an image in degrees of visual angle (NSD)."""
SCALES = (0.5, 1.0, 2.0, 4.0)
"""Preferred spatial frequencies in cycles per degree."""
ORIENTATIONS = tuple(np.pi * k / 6 for k in range(6))
"""Preferred directions of change in radians: 0 is a vertical edge."""
CHANNELS = (
    *(
        f"contrast {scale:g} c/deg {round(np.degrees(angle))} deg"
        for scale in SCALES
        for angle in ORIENTATIONS
    ),
    "bright",
    "dark",
    "red",
    "green",
    "blue",
    "yellow",
)
"""Names of the channels, in order."""
CONTRAST_CHANNELS = len(SCALES) * len(ORIENTATIONS)
CELLS = 28
"""Side of a map."""
_PICTURE, _SCREEN = (
    STIMULUS_SIZE // 2,
    140,
)  # pixels: the image at half size, and with the screen around it
_GRIDS = (
    35,
    70,
    140,
    140,
)  # pixels across the screen for every scale: at least a fifth more than an octave above it
_BANDWIDTH, _ANGULAR_WIDTH = np.log(0.6), np.pi / 9
# Normalises the mean of every channel over scenes to about 1, so that weights are comparable.
_CONTRAST_GAIN, _LUMINANCE_GAIN, _COLOUR_GAIN = (310.0, 470.0, 740.0, 1500.0), 8.0, 11.0


@lru_cache(maxsize=1)
def _filters() -> list[tuple[np.ndarray, np.ndarray]]:
    """Per scale, the needed Fourier coefficients and the filters (orientations, grid, grid)."""
    degrees = FIELD_OF_VIEW * _SCREEN / _PICTURE
    out = []
    for scale, grid in zip(SCALES, _GRIDS):
        cycles = np.round(np.fft.fftfreq(grid) * grid).astype(int)
        fy, fx = np.meshgrid(cycles / degrees, cycles / degrees, indexing="ij")
        frequency = np.hypot(fx, fy)
        frequency[0, 0] = 1e-6
        band = np.exp(-(np.log(frequency / scale) ** 2) / (2 * _BANDWIDTH**2))
        angle = np.arctan2(fy, fx)
        turned = [np.angle(np.exp(1j * (angle - preferred))) for preferred in ORIENTATIONS]
        bank = np.stack([2 * band * np.exp(-(t**2) / (2 * _ANGULAR_WIDTH**2)) for t in turned])
        out.append((cycles % _SCREEN, (bank * (grid / _SCREEN) ** 2).astype(np.float32)))
    return out


def _cells(planes: np.ndarray) -> np.ndarray:
    """Average the image's part of the screen over map cells: (..., grid, grid) -> (..., C, C)."""
    per_cell = planes.shape[-1] * _PICTURE // _SCREEN // CELLS
    edge = (planes.shape[-1] - CELLS * per_cell) // 2
    inner = planes[..., edge : edge + CELLS * per_cell, edge : edge + CELLS * per_cell]
    return inner.reshape(*planes.shape[:-2], CELLS, per_cell, CELLS, per_cell).mean(axis=(-3, -1))


def channel_maps(images_N3HW: np.ndarray) -> np.ndarray:
    """Compute the retinal channels of images.

    Parameters
    ----------
    images_N3HW : np.ndarray
        RGB in [0, 1], 224 x 224 pixels, any floating-point type.

    Returns
    -------
    maps_NCP : np.ndarray
        Float32, not negative; C as CHANNELS, P = CELLS * CELLS from the upper left, row by row.

    Raises
    ------
    ValueError
        For images of another size.
    """
    if images_N3HW.shape[1:] != (3, STIMULUS_SIZE, STIMULUS_SIZE):
        raise ValueError(
            f"images of shape {images_N3HW.shape[1:]} were given, (3, {STIMULUS_SIZE},"
            f" {STIMULUS_SIZE}) is expected"
        )
    N = len(images_N3HW)
    half = images_N3HW.astype(np.float32).reshape(N, 3, _PICTURE, 2, _PICTURE, 2).mean(axis=(3, 5))
    red, green, blue = half[:, 0], half[:, 1], half[:, 2]
    luminance = 0.299 * red + 0.587 * green + 0.114 * blue
    maps = np.empty((N, len(CHANNELS), CELLS, CELLS), dtype=np.float32)
    edge = (_SCREEN - _PICTURE) // 2
    for n in range(N):
        screen = np.pad(luminance[n] - 0.5, edge)
        spectrum = fft.fft2(screen)
        channel = 0
        for (rows, bank), gain in zip(_filters(), _CONTRAST_GAIN):
            response = fft.ifft2(spectrum[np.ix_(rows, rows)] * bank)
            energy = response.real**2 + response.imag**2
            maps[n, channel : channel + len(bank)] = _cells(energy) * gain
            channel += len(bank)
    for first, difference, gain in (
        (CONTRAST_CHANNELS, luminance - 0.5, _LUMINANCE_GAIN),
        (CONTRAST_CHANNELS + 2, red - green, _COLOUR_GAIN),
        (CONTRAST_CHANNELS + 4, blue - (red + green) / 2, _COLOUR_GAIN),
    ):
        coarse = difference.reshape(N, CELLS, _PICTURE // CELLS, CELLS, _PICTURE // CELLS)
        maps[:, first] = np.maximum(coarse, 0).mean(axis=(2, 4)) * gain
        maps[:, first + 1] = np.maximum(-coarse, 0).mean(axis=(2, 4)) * gain
    return maps.reshape(N, len(CHANNELS), CELLS * CELLS)


def cell_centres() -> tuple[np.ndarray, np.ndarray]:
    """Positions of all cells in degrees right of and above the image centre: (P,), (P,)."""
    steps = ((np.arange(CELLS) + 0.5) / CELLS - 0.5) * FIELD_OF_VIEW
    y, x = np.meshgrid(-steps, steps, indexing="ij")
    return x.ravel().astype(np.float32), y.ravel().astype(np.float32)
