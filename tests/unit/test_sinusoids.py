"""Tables of sines and cosines are exact; float32 angles, which the published code has, keep the
bound that docs/deviations.md states.
"""

from __future__ import annotations

from diffusers.models.embeddings import get_timestep_embedding
from mpmath import mp
import numpy as np
import pytest
import torch

from braingen.encoders.prior.network import rotary_frequencies, rotate, time_table
from braingen.encoders.sinusoids import falling_frequencies, sines_and_cosines
from braingen.routing.tensors import time_embedding

HALF_DIGIT = 2.0**-24
"""Rounding error of a float32 number below 1."""


@pytest.mark.parametrize(("count", "last"), [(6, 5), (8, 8), (160, 160)])
def test_every_value_is_the_nearest_float32(count: int, last: int) -> None:
    times = torch.tensor([0, 1, 99, 500, 999])
    found = torch.stack(sines_and_cosines(times, falling_frequencies(count, last))).numpy()
    assert found.dtype == np.float32
    places = range(0, count, max(1, count // 8))
    with mp.workdps(40):
        for row, time in enumerate(times.tolist()):
            for k in places:
                angle = time * mp.power(10000, -mp.mpf(k) / last)
                for value, exact in zip(found[:, row, k], (mp.sin(angle), mp.cos(angle))):
                    assert abs(mp.mpf(float(value)) - exact) <= HALF_DIGIT * (1 + 1e-6)


@pytest.mark.parametrize("width", [8, 320])
def test_float32_angles_are_off_by_no_more_than_stated(width: int) -> None:
    times = torch.arange(1000)
    float32 = get_timestep_embedding(
        times.float(), width, flip_sin_to_cos=True, downscale_freq_shift=0
    )
    error = (float32.double() - time_embedding(times, width).double()).abs().amax(dim=1)
    assert (error <= 3 * 2.0**-24 * times + 2 * HALF_DIGIT + 1e-7).all()
    assert error.max() > 1e-6  # float32 angles are not exact


def test_tables_have_their_order_and_width() -> None:
    times = torch.tensor([3.5, 7.0])
    angles = times.double()[:, None] * torch.tensor([1.0, 0.01, 0.0001], dtype=torch.float64)
    torch.testing.assert_close(
        time_table(times, 6).double(), torch.cat([angles.sin(), angles.cos()], 1), rtol=0, atol=1e-7
    )
    angles = times.double()[:, None] * 10000.0 ** (-torch.arange(3, dtype=torch.float64) / 3)
    embedded = time_embedding(times, 7)
    torch.testing.assert_close(
        embedded[:, :6].double(), torch.cat([angles.cos(), angles.sin()], 1), rtol=0, atol=1e-7
    )
    assert (
        embedded.shape == (2, 7) and (embedded[:, 6] == 0).all()
    )  # an odd width ends with a zero, as in diffusers


def test_a_rotation_keeps_lengths_and_turns_by_differences_of_position() -> None:
    x = (
        torch.randn(1, 400, 10, generator=torch.Generator().manual_seed(0))
        .expand(2, -1, -1)
        .double()
    )
    turned = rotate(x, 8)
    torch.testing.assert_close(turned.norm(dim=-1), x.norm(dim=-1), rtol=1e-6, atol=1e-6)
    assert torch.equal(turned[..., 8:], x[..., 8:])
    first = torch.zeros(1, 400, 8)
    first[..., 0] = 1
    angles = torch.arange(400).double()[:, None] * rotary_frequencies(8)
    torch.testing.assert_close(
        rotate(first, 8)[0, :, 0].double(), angles[:, 0].cos(), rtol=0, atol=1e-7
    )
