"""What routers of both kinds compute with: time features, latents on a fixed grid, one choice.

B batch, F width of the time embedding, C latent channels, P cells of the context grid
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import interpolate, one_hot, pad

from braingen.encoders.sinusoids import falling_frequencies, sines_and_cosines
from braingen.routing.base import Grid


def time_embedding(t_B: Tensor, width: int) -> Tensor:
    """Sinusoidal embedding of diffusion times as SDXL's U-Net makes it, but exact: cosines, then
    sines.

    Parameters
    ----------
    t_B : Tensor
        Times on the training scale (0 to 999 for SDXL), whole or fractional.
    width : int
        F; 320 in the published sizes.

    Returns
    -------
    Tensor
        B x F, float32.
    """
    half = width // 2
    sin_BF, cos_BF = sines_and_cosines(t_B, falling_frequencies(half, half, t_B.device))
    return pad(torch.cat([cos_BF, sin_BF], dim=-1), (0, width % 2))


def latent_grid(latents_BCHW: Tensor, grid: Grid) -> Tensor:
    """Latents resized to a fixed grid, so that a router's widths do not depend on the size of the
    image.

    Parameters
    ----------
    latents_BCHW : Tensor
        Noisy latents as the U-Net reads them (after the scheduler's ``scale_model_input``).
    grid : int or (int, int)
        Its side, or its height and width. Latents of that size pass unchanged; others are resized
        bilinearly, antialiased.

    Returns
    -------
    Tensor
        B x C x P, float32.
    """
    x_BCHW = latents_BCHW.float()
    size = (grid, grid) if isinstance(grid, int) else tuple(grid)
    if x_BCHW.shape[-2:] != size:
        x_BCHW = interpolate(
            x_BCHW, size=size, mode="bilinear", antialias=True, align_corners=False
        )
    return x_BCHW.flatten(2)


def one_of(logits: Tensor, *, training: bool, generator: torch.Generator | None = None) -> Tensor:
    """One choice along the last axis as a one-hot vector: the largest, or in training a Gumbel
    sample with a straight-through gradient.

    Parameters
    ----------
    logits : Tensor
        ... x N.
    training : bool
        Sample (forward: one-hot, backward: the softmax of the perturbed logits) instead of taking
        the largest.
    generator : torch.Generator | None, optional
        torch.Generator, optional Source of the Gumbel noise; torch's global one if left out.

    Returns
    -------
    Tensor
        ... x N, like `logits`.
    """
    if not training:
        return one_hot(logits.argmax(dim=-1), logits.shape[-1]).to(logits.dtype)
    device = logits.device if generator is None else generator.device
    uniform = torch.rand(logits.shape, generator=generator, device=device).to(logits)
    tiny = torch.finfo(logits.dtype).tiny
    exponential = -uniform.clamp_min(tiny).log()
    soft = torch.softmax(logits - exponential.clamp_min(tiny).log(), dim=-1)
    hard = one_hot(soft.argmax(dim=-1), logits.shape[-1]).to(logits.dtype)
    return hard + soft - soft.detach()
