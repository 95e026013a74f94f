"""Sines and cosines of times and positions, exact in float32 on every processor.

In float32 the angle t * w is off by up to 3 * 2**-24 * t (rounded exponent, exponential and
product), 1.8e-4 at t = 999, and processors round differently. Angles are therefore float64 here
(docs/deviations.md, row 3.13).
"""

from __future__ import annotations

import torch
from torch import Tensor


def falling_frequencies(count: int, last: float, device: torch.device | None = None) -> Tensor:
    """Angles per unit of time or position, 10 000 ** -(k / last) for k < count: float64.

    Parameters
    ----------
    last : float
        The k whose frequency is 1 / 10 000.
    """
    exponents = torch.arange(count, device=_exact(device), dtype=torch.float64) / last
    return 10000.0**-exponents


def sines_and_cosines(places_B: Tensor, frequencies_F: Tensor) -> tuple[Tensor, Tensor]:
    """Sines and cosines of all places and frequencies: float32, B x F, on the device of places."""
    angles_BF = places_B.to(frequencies_F)[:, None] * frequencies_F
    return tuple(
        wave.to(places_B.device, torch.float32) for wave in (angles_BF.sin(), angles_BF.cos())
    )  # type: ignore[return-value]


def _exact(device: torch.device | None) -> torch.device | None:
    """The device, or the CPU if the device has no float64 (Apple GPUs)."""
    return torch.device("cpu") if device is not None and device.type == "mps" else device
