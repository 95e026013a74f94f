"""A mixture of regions in closed form: experts are groups of voxels, and a router estimates how
much every group's response is worth in the trial.

In region a a response is x = mu + D'e + z_a (b + k_a (mu + D'e)) + noise: e the image, z_a the
region's fluctuation in the trial (mean 0, variance 1), b what it adds, and 1 + k_a z_a the gain of
the signal. The router is linear, z's mean given the response. The experts' evidence about e is
combined under the noise's covariance, so that an expert counts by its gain. With k = 0 all of it
is one linear map. Gains that vary from trial to trial: Goris et al. 2014, Nat Neurosci 17:858.

B batch, V voxels, A regions, K directions of the signal, F directions of the noise, R outputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

LEAST_GAIN = 0.05
"""Smaller gains are taken for this one: no gain turns the sign of a response."""
DIRECTIONS = 200
"""Most directions of the signal."""
NOISE_DIRECTIONS = 512
"""Most directions of the noise."""
_PIECE = 256
"""Responses decoded at once: each has K x K numbers."""


class GatedWeights(NamedTuple):
    """What is measured of one person; float32 but for the regions."""

    region_V: np.ndarray
    """Region of every voxel, int64."""
    loading_V: np.ndarray
    """b."""
    growth_A: np.ndarray
    """k."""
    mean_V: np.ndarray
    """mu."""
    direction_KV: np.ndarray
    """D, in units in which e has unit variance."""
    diagonal_V: np.ndarray
    """The noise's covariance is diag(d) + F'F: d."""
    factor_FV: np.ndarray
    """F."""
    weights_KR: np.ndarray
    """From e to the output."""
    mean_R: np.ndarray
    """The output's mean."""
    precision: float = 1.0
    """Factor of the noise's inverse covariance."""


class GatedReadout(nn.Module):
    """Reads outputs out of responses; unused until it is given weights.

    Parameters
    ----------
    voxels, rank, regions : int
        V, R, A.
    """

    used: Tensor
    region_V: Tensor
    loading_V: Tensor
    growth_A: Tensor
    mean_V: Tensor
    direction_KV: Tensor
    inverse_V: Tensor
    factor_FV: Tensor
    weights_KR: Tensor
    mean_R: Tensor
    router_AV: Tensor
    overlap_AAKK: Tensor

    def __init__(self, voxels: int, rank: int, regions: int) -> None:
        super().__init__()
        kept, noise = min(DIRECTIONS, voxels), min(NOISE_DIRECTIONS, voxels)
        self.register_buffer("used", torch.zeros((), dtype=torch.bool))
        self.register_buffer("region_V", torch.zeros(voxels, dtype=torch.int64))
        shapes = {
            "loading_V": (voxels,),
            "growth_A": (regions,),
            "mean_V": (voxels,),
            "direction_KV": (kept, voxels),
            "inverse_V": (voxels,),  # the noise's inverse covariance is diag(inverse) - F'F
            "factor_FV": (noise, voxels),
            "weights_KR": (kept, rank),
            "mean_R": (rank,),
            "router_AV": (regions, voxels),
            "overlap_AAKK": (regions, regions, kept, kept),
        }
        for name, shape in shapes.items():
            self.register_buffer(name, torch.zeros(shape))

    @torch.no_grad()
    def take(self, weights: GatedWeights) -> None:
        """Use these weights from now on."""
        regions = len(self.growth_A)
        inverse_V = 1 / weights.diagonal_V.astype(np.float64)
        noise_FV = weights.factor_FV.astype(np.float64)
        if len(noise_FV) > len(self.factor_FV):
            # more directions than voxels: the same F'F
            noise_FV = np.asarray(np.linalg.qr(noise_FV, mode="r"))
        scaled_FV = noise_FV * inverse_V
        core_FF = np.eye(len(scaled_FV)) + scaled_FV @ noise_FV.T
        factor_FV = np.linalg.solve(np.linalg.cholesky(core_FF), scaled_FV)

        def whiten(rows_BV: np.ndarray) -> np.ndarray:
            return rows_BV * inverse_V - (rows_BV @ factor_FV.T) @ factor_FV

        def put(name: str, values: np.ndarray) -> None:
            buffer = getattr(self, name).zero_()
            buffer[tuple(slice(length) for length in values.shape)] = torch.from_numpy(values).to(
                buffer
            )

        direction_KV = weights.direction_KV.astype(np.float64)
        member_AV = np.eye(regions)[weights.region_V].T
        white_KV = np.zeros_like(direction_KV)
        overlap_AAKK = np.zeros((regions, regions, *[len(direction_KV)] * 2))
        members = [np.flatnonzero(weights.region_V == a) for a in range(regions)]
        for a, mine in enumerate(members):  # one region at a time: a table is K x V
            one_KV = np.zeros_like(direction_KV)
            one_KV[:, mine] = direction_KV[:, mine]
            one_KV = whiten(one_KV)
            white_KV += one_KV
            for c, other in enumerate(members):
                overlap_AAKK[a, c] = one_KV[:, other] @ direction_KV[:, other].T
        # the router: mean of z given a response at gain 1, whose covariance is noise + D'D + b b'
        loading_AV = member_AV * weights.loading_V
        white_AV = whiten(loading_AV)
        inner_KK = np.eye(len(direction_KV)) + white_KV @ direction_KV.T
        white_AV -= (loading_AV @ white_KV.T) @ np.linalg.solve(inner_KK, white_KV)
        router_AV = np.linalg.solve(np.eye(regions) + white_AV @ loading_AV.T, white_AV)
        put("inverse_V", inverse_V * weights.precision)
        put("factor_FV", factor_FV * weights.precision**0.5)
        put("overlap_AAKK", overlap_AAKK * weights.precision)
        put("router_AV", router_AV)
        for name in ("region_V", "loading_V", "growth_A", "mean_V", "weights_KR", "mean_R"):
            put(name, getattr(weights, name))
        put("direction_KV", direction_KV)
        self.used.fill_(True)

    def fluctuations(self, voxels_BV: Tensor) -> Tensor:
        """How much more every region responds than the image explains, B x A, in standard
        deviations over trials.
        """
        return (voxels_BV - self.mean_V) @ self.router_AV.T

    def gains(self, voxels_BV: Tensor) -> Tensor:
        """What the router gives every region, B x A: 1 is the mean."""
        return (1 + self.growth_A * self.fluctuations(voxels_BV)).clamp_min(LEAST_GAIN)

    def forward(self, voxels_BV: Tensor, silenced: Sequence[int] = ()) -> Tensor:
        """Decode single responses, B x R.

        Parameters
        ----------
        silenced : Sequence[int], optional
            Regions that count for nothing.
        """
        pieces = voxels_BV.split(_PIECE)
        return torch.cat([self._decode(piece, silenced) for piece in pieces])

    def _decode(self, voxels_BV: Tensor, silenced: Sequence[int]) -> Tensor:
        counts_A = torch.ones_like(self.growth_A)
        counts_A[list(silenced)] = 0
        counts_V = counts_A[self.region_V]
        voxels_BV = self.mean_V + counts_V * (voxels_BV - self.mean_V)
        gain_BA = self.gains(voxels_BV) * counts_A
        gain_BV = gain_BA[:, self.region_V]
        added_BV = self.fluctuations(voxels_BV)[:, self.region_V] * self.loading_V
        left_BV = counts_V * (voxels_BV - gain_BV * self.mean_V - added_BV)
        white_BV = left_BV * self.inverse_V - (left_BV @ self.factor_FV.T) @ self.factor_FV
        evidence_BK = (white_BV * gain_BV) @ self.direction_KV.T
        pairs_BAA = gain_BA[:, :, None] * gain_BA[:, None]
        precision_BKK = (pairs_BAA.flatten(1) @ self.overlap_AAKK.flatten(0, 1).flatten(1)).view(
            len(voxels_BV), *self.overlap_AAKK.shape[2:]
        )
        unit_KK = torch.eye(len(self.direction_KV)).to(voxels_BV)
        e_BK = torch.linalg.solve(precision_BKK + unit_KK, evidence_BK)
        return self.mean_R + e_BK @ self.weights_KR
