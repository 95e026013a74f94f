"""Attributions: how much every voxel contributed to a number read off a decoded embedding.

Integrated gradients start from one baseline: all voxels at 0, which is every voxel's mean over its session, since responses are z-scored.
GradientSHAP starts from many: responses to training images, so that a voxel is credited for what is unusual about it. Both come from
captum. A map is complete when its sum over voxels is the difference between the number at the image and at the baseline; how far it is
from that is kept beside every map.

N images, B of them at once, V voxels, F numbers of an embedding, S baselines.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Literal, NamedTuple

from captum.attr import GradientShap, IntegratedGradients
import numpy as np
import torch
from torch import Tensor, nn

Method = Literal["integrated_gradients", "gradient_shap"]


class Attribution(NamedTuple):
    """Maps of a batch of images."""

    map_BV: Tensor
    """Contribution of every voxel, in the unit of what is explained."""
    value_B: Tensor
    """The number that is explained."""
    error_B: Tensor
    """Sum of the map less (value - value at the baseline): 0 for a complete map."""


class Query(NamedTuple):
    """Images to explain, and what about them."""

    image_B: np.ndarray
    """Image ids."""
    voxels_BV: Tensor
    """Responses, averaged over presentations."""
    direction_BF: Tensor
    """Per image the direction whose share is explained, of length 1."""


class Explainer:
    """Explains batches by one method.

    Parameters
    ----------
    readout : voxels_BV and direction_BF to value_B, such as :class:`braingen.explain.readout.ReadOut`
    method : 'integrated_gradients' or 'gradient_shap'
    baseline_SV : responses to training images for GradientSHAP; integrated gradients start from zeros
    steps : points on the way from the baseline (integrated gradients, Gauss-Legendre), or draws of a baseline and a point (GradientSHAP)
    chunk : points computed at once
    seed : of the draws of GradientSHAP; each batch draws by its first image's id, so a resumed run draws the same
    """

    def __init__(
        self, readout: nn.Module, method: Method, baseline_SV: Tensor | None = None, steps: int = 16, chunk: int = 512, seed: int = 0
    ) -> None:
        if method == "gradient_shap" and baseline_SV is None:
            raise ValueError("GradientSHAP needs baselines")
        self.readout, self.method, self.baseline_SV = readout, method, baseline_SV
        self.steps, self.chunk, self.seed = steps, chunk, seed

    def __call__(self, query: Query) -> Attribution:
        """Explain a batch."""
        voxels_BV, direction_BF = query.voxels_BV, query.direction_BF
        with torch.no_grad():
            value_B = self.readout(voxels_BV, direction_BF)
        if self.method == "integrated_gradients":
            found = IntegratedGradients(self.readout).attribute(
                voxels_BV,
                baselines=torch.zeros_like(voxels_BV),
                additional_forward_args=(direction_BF,),
                n_steps=self.steps,
                internal_batch_size=max(self.chunk, len(voxels_BV)),
                return_convergence_delta=True,
            )
        else:
            with _seeded(self.seed, int(query.image_B[0])):
                found = GradientShap(self.readout).attribute(
                    voxels_BV,
                    baselines=self.baseline_SV,
                    n_samples=self.steps,
                    additional_forward_args=(direction_BF,),
                    return_convergence_delta=True,
                )
        map_BV, error = found
        error_B = error.detach().view(len(voxels_BV), -1).mean(dim=1)  # GradientSHAP: one per draw
        return Attribution(map_BV.detach(), value_B, error_B)

    def batches(self, queries: Iterable[Query]) -> Iterator[tuple[Query, Attribution]]:
        """Explain one batch after the other; nothing is kept."""
        for query in queries:
            yield query, self(query)


@contextmanager
def _seeded(seed: int, image: int) -> Iterator[None]:
    """Let captum draw from a seed of our own (it uses the global generators), and leave the generators as they were."""
    before = np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed * 1_000_003 + image)
        np.random.seed((seed * 1_000_003 + image) % 2**32)
        try:
            yield
        finally:
            np.random.set_state(before)


def completeness(value_N: np.ndarray, error_N: np.ndarray) -> float:
    """Mean size of the error as a share of the mean size of the explained number: 0 is complete."""
    return float(np.abs(error_N).mean() / max(np.abs(value_N).mean(), 1e-12))
