"""Attributions: contribution of every voxel to a scalar of a decoded embedding.

Integrated gradients use one baseline: all voxels at 0, their mean over the session, because
responses are z-scored. GradientSHAP uses responses to training images as baselines. The former
come from captum. The latter follow captum, but run in pieces (captum expands all samples of an
image at once) and with samples that depend on the image only (in captum they depend on the batch).
A map is complete if its sum over voxels is the value at the image minus the value at the baseline;
the error is stored with every map.

N images, B of them at once, V voxels, F numbers of an embedding, S baselines, K draws of an image,
P points computed at once.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

from captum.attr import IntegratedGradients
import numpy as np
import torch
from torch import Tensor, nn

Method = Literal["integrated_gradients", "gradient_shap"]


class Attribution(NamedTuple):
    """Maps of a batch of images."""

    map_BV: Tensor
    """Contribution of every voxel, in units of the explained value."""
    value_B: Tensor
    """The explained value."""
    error_B: Tensor
    """Sum of the map minus (value - value at the baseline): 0 for a complete map."""


class Query(NamedTuple):
    """Images to explain, and their directions."""

    image_B: np.ndarray
    """Image ids."""
    voxels_BV: Tensor
    """Responses, averaged over presentations."""
    direction_BF: Tensor
    """Explained direction per image, of length 1."""


class PathDraws(NamedTuple):
    """Points at which GradientSHAP evaluates gradients."""

    baseline_BK: np.ndarray
    """Number of the baseline."""
    share_BK: np.ndarray
    """Position between baseline (0) and image (1)."""

    @classmethod
    def of(cls, image_B: np.ndarray, draws: int, baselines: int, seed: int) -> PathDraws:
        """Sample by image id, independent of the batch."""
        each = [np.random.default_rng((seed, int(image))) for image in image_B]
        return cls(
            np.stack([rng.integers(baselines, size=draws) for rng in each]),
            np.stack([rng.random(draws) for rng in each]),
        )


def gradient_shap(
    readout: nn.Module, query: Query, baseline_SV: Tensor, draws: PathDraws, chunk: int = 256
) -> tuple[Tensor, Tensor]:
    """Expected gradients (Erion et al. 2021).

    Mean over draws of the gradient at a point between baseline and image, times their difference.

    Parameters
    ----------
    readout : nn.Module
        voxels_PV and direction_PF to value_P.
    chunk : int, optional
        Points computed at once (one of every image at least); affects only rounding.

    Returns
    -------
    tuple[Tensor, Tensor]
        map_BV, and the mean number at the baselines (B).
    """
    images, count = draws.share_BK.shape
    at_once = max(1, chunk // images)
    map_BV, start_B = torch.zeros_like(query.voxels_BV), query.voxels_BV.new_zeros(images)
    for first in range(0, count, at_once):
        some = slice(first, first + at_once)
        chosen_P = torch.from_numpy(draws.baseline_BK[:, some].ravel()).to(baseline_SV.device)
        share_P1 = torch.from_numpy(draws.share_BK[:, some].reshape(-1, 1)).to(map_BV)
        repeats = len(chosen_P) // images
        direction_PF = query.direction_BF.repeat_interleave(repeats, dim=0)
        base_PV = baseline_SV[chosen_P]
        with torch.no_grad():
            start_B += readout(base_PV, direction_PF).view(images, repeats).sum(dim=1)
        way_PV = query.voxels_BV.repeat_interleave(repeats, dim=0).sub_(base_PV)
        point_PV = base_PV.addcmul_(share_P1, way_PV).requires_grad_()
        with torch.enable_grad():
            (slope_PV,) = torch.autograd.grad(readout(point_PV, direction_PF).sum(), point_PV)
        map_BV += way_PV.mul_(slope_PV).view(images, repeats, -1).sum(dim=1)
    return map_BV / count, start_B / count


class Explainer:
    """Explains batches by one method.

    Parameters
    ----------
    readout : nn.Module
        voxels_BV and direction_BF to value_B, such as :class:`braingen.interpret.readout.Readout`.
    method : Method
        'integrated_gradients' or 'gradient_shap'.
    baseline_SV : Tensor | None, optional
        Responses to training images for GradientSHAP; integrated gradients start from zeros.
    steps : int, optional
        Points on the way from the baseline (integrated gradients, Gauss-Legendre), or draws of a
        baseline and a point (GradientSHAP).
    chunk : int, optional
        Points computed at once.
    seed : int, optional
        Of the draws of GradientSHAP.
    """

    def __init__(
        self,
        readout: nn.Module,
        method: Method,
        baseline_SV: Tensor | None = None,
        steps: int = 16,
        chunk: int = 256,
        seed: int = 0,
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
        if self.baseline_SV is not None:
            draws = PathDraws.of(query.image_B, self.steps, len(self.baseline_SV), self.seed)
            map_BV, start_B = gradient_shap(
                self.readout, query, self.baseline_SV, draws, self.chunk
            )
            return Attribution(map_BV, value_B, map_BV.sum(dim=1) - (value_B - start_B))
        map_BV, error_B = IntegratedGradients(self.readout).attribute(
            voxels_BV,
            baselines=torch.zeros_like(voxels_BV),
            additional_forward_args=(direction_BF,),
            n_steps=self.steps,
            internal_batch_size=max(self.chunk, len(voxels_BV)),
            return_convergence_delta=True,
        )
        # captum before 0.8 returns float64 when it works in pieces
        map_BV, error_B = (x.detach().to(voxels_BV.dtype) for x in (map_BV, error_B))
        return Attribution(map_BV, value_B, error_B)


def completeness(value_N: np.ndarray, error_N: np.ndarray) -> float:
    """Mean size of the error as a share of the mean size of the explained number: 0 is complete."""
    return float(np.abs(error_N).mean() / max(np.abs(value_N).mean(), 1e-12))
