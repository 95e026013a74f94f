"""Conditioning augmentation: embeddings of training images with the errors of unseen images.

An encoder fits its own training trials far better than test trials. A diffusion model fine-tuned on
embeddings decoded from training trials relies on them too much, and its routers prefer the experts
that overfit most. So the condition of a training image is sampled with the decoding error of
held-out training images: the true embedding, shrunk toward the mean as much as theirs, plus a
random mixture of their errors. Errors of experts, of levels, of image and text are mixed with the
same weights, so that their correlations remain.

N images, J held-out images, B batch, E all experts, T tokens, D CLIP width. Standardised units.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class DecodingError(NamedTuple):
    """Model of held-out images: decoded = slope * truth + error, expert by expert."""

    slope_E: Tensor
    """Least squares over images and dimensions."""
    error_JETD: Tensor
    """Residual of every held-out image."""


def decoding_error_of(decoded_JETD: Tensor, truth_JTD: Tensor) -> DecodingError:
    """Fit the decoded embeddings of held-out images to the true ones."""
    decoded_JETD, truth_J1TD = decoded_JETD.float(), truth_JTD.float()[:, None]
    slope_E = (decoded_JETD * truth_J1TD).sum(dim=(0, 2, 3)) / truth_J1TD.square().sum().clamp_min(
        1e-12
    )
    return DecodingError(slope_E, decoded_JETD - slope_E[:, None, None] * truth_J1TD)


def mixing_weights(batch: int, held_out: int, generator: torch.Generator) -> Tensor:
    """B x J standard normal weights over root J: errors mixed with them have the covariance of the
    errors.

    The same weights are used for image and text, whose errors go together.
    """
    return (
        torch.randn(batch, held_out, generator=generator, device=generator.device) / held_out**0.5
    )


def augmented(truth_BTD: Tensor, decoding_error: DecodingError, weights_BJ: Tensor) -> Tensor:
    """Outputs of the experts for images with these true embeddings, as for images that the encoder
    was not trained on: B x E x T x D.

    Parameters
    ----------
    weights_BJ : Tensor
        Of :func:`mixing_weights`.
    """
    slope_E11, truth_B1TD = decoding_error.slope_E.to(truth_BTD)[:, None, None], truth_BTD[:, None]
    return slope_E11 * truth_B1TD + torch.einsum(
        "bj,jetd->betd", weights_BJ.to(truth_BTD), decoding_error.error_JETD.to(truth_BTD)
    )
