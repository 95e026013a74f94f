"""Reads of training pictures made as unsure as reads of pictures that the encoders have never met.

An encoder knows its own training trials far better than it will ever know a test trial. A diffusion
model fine-tuned on such reads learns to trust them too much, and routers learn to prefer the
experts that remember best. So its condition for a training picture is drawn anew from how held-out
training pictures are read: the true embedding, shrunk toward the mean as much as theirs are, plus
an error mixed from theirs. The errors of experts, of levels and of image and text go together as
they do there.

N pictures, J held-out pictures, B batch, E all experts, T tokens, D CLIP width. Standardised units.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class DecodingError(NamedTuple):
    """How held-out pictures are read: read = slope * truth + error, expert by expert."""

    slope_E: Tensor
    """Least squares over pictures and dimensions."""
    error_JETD: Tensor
    """What is left of every held-out read."""


def decoding_error_of(reads_JETD: Tensor, truth_JTD: Tensor) -> DecodingError:
    """Compare reads of held-out pictures with what should have been read."""
    reads_JETD, truth_J1TD = reads_JETD.float(), truth_JTD.float()[:, None]
    slope_E = (reads_JETD * truth_J1TD).sum(dim=(0, 2, 3)) / truth_J1TD.square().sum().clamp_min(
        1e-12
    )
    return DecodingError(slope_E, reads_JETD - slope_E[:, None, None] * truth_J1TD)


def mixing_weights(batch: int, held_out: int, generator: torch.Generator) -> Tensor:
    """B x J standard normal weights over root J: errors mixed with them have the covariance of the
    errors.

    The same weights are used for image and text, whose errors go together.
    """
    return (
        torch.randn(batch, held_out, generator=generator, device=generator.device) / held_out**0.5
    )


def unsure(truth_BTD: Tensor, decoding_error: DecodingError, weights_BJ: Tensor) -> Tensor:
    """Outputs of the experts for pictures with these true embeddings, had the encoder never met
    them: B x E x T x D.

    Parameters
    ----------
    weights_BJ : Tensor
        Of :func:`mixing_weights`.
    """
    slope_E11, truth_B1TD = decoding_error.slope_E.to(truth_BTD)[:, None, None], truth_BTD[:, None]
    return slope_E11 * truth_B1TD + torch.einsum(
        "bj,jetd->betd", weights_BJ.to(truth_BTD), decoding_error.error_JETD.to(truth_BTD)
    )
