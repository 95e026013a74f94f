"""The objective of fine-tuning: noise prediction with min-SNR weights.

B batch, C latent channels, h w latent sides
"""

from __future__ import annotations

import torch
from torch import Tensor

from braingen.runtime.errors import UserError


def signal_to_noise(alphas_cumprod: Tensor, t_B: Tensor) -> Tensor:
    """Ratio of the variances of signal and noise in noisy latents.

    Parameters
    ----------
    alphas_cumprod : Tensor
        The scheduler's table.
    t_B : Tensor
        Times, int64.

    Returns
    -------
    Tensor
        B, float32.
    """
    alpha_B = alphas_cumprod.to(t_B.device, torch.float32)[t_B]
    return alpha_B / (1 - alpha_B)


def min_snr_weight(snr_B: Tensor, gamma: float | None, prediction_type: str = "epsilon") -> Tensor:
    """Weight of a sample's squared error such that errors of the clean image count min(SNR,
    gamma) (Hang et al. 2023).

    Parameters
    ----------
    snr_B : Tensor
        Signal-to-noise ratios.
    gamma : float or None
        Limit (MoRE-Brain: 1.5); None weighs all samples alike.
    prediction_type : str, optional
        What the U-Net predicts. An error of the noise is 1/SNR, one of
        the velocity 1/(SNR + 1) of the same error of the image.

    Returns
    -------
    Tensor
        B.

    Raises
    ------
    UserError
        For another kind of prediction, or a limit that is not positive.
    """
    if prediction_type not in ("epsilon", "v_prediction"):
        raise UserError(
            f"the scheduler's prediction_type is {prediction_type!r}; fine-tuning knows 'epsilon'"
            " and 'v_prediction'"
        )
    if gamma is None:
        return torch.ones_like(snr_B)
    if gamma <= 0:
        raise UserError(
            f"snr_gamma is {gamma}; it has to be above 0 (MoRE-Brain: 1.5), or null for no"
            " weighting"
        )
    if prediction_type == "v_prediction":
        return snr_B.clamp(max=gamma) / (snr_B + 1)
    return (gamma / snr_B).clamp(
        max=1
    )  # min(SNR, gamma) / SNR, and 1 where a schedule ends in pure noise


def offset_noise(
    noise_BChw: Tensor, offset: float, generator: torch.Generator | None = None
) -> Tensor:
    """Noise whose mean varies by channel, so that brightness is learned too; the identity for an
    offset of 0.

    Parameters
    ----------
    noise_BChw : Tensor
        Standard normal.
    offset : float
        Standard deviation of the shift.
    generator : torch.Generator | None, optional
        torch.Generator, optional Source of the shift.
    """
    if offset == 0:
        return noise_BChw
    device = noise_BChw.device if generator is None else generator.device
    shift = torch.randn(*noise_BChw.shape[:2], 1, 1, generator=generator, device=device)
    return noise_BChw + offset * shift.to(noise_BChw)


def noisy_latents(
    alphas_cumprod: Tensor, latents_BChw: Tensor, noise_BChw: Tensor, t_B: Tensor
) -> Tensor:
    """Latents with the noise that belongs to times `t_B`.

    Written out rather than asked of the scheduler, because schedulers made for sampling (Euler)
    scale their noisy latents differently; this is what the U-Net reads in training and, after
    ``scale_model_input``, in sampling.
    """
    alpha = alphas_cumprod.to(latents_BChw)[t_B].view(-1, 1, 1, 1)
    return alpha.sqrt() * latents_BChw + (1 - alpha).sqrt() * noise_BChw


def prediction_target(
    alphas_cumprod: Tensor,
    latents_BChw: Tensor,
    noise_BChw: Tensor,
    t_B: Tensor,
    prediction_type: str = "epsilon",
) -> Tensor:
    """What the U-Net is to predict: the noise, or the velocity sqrt(a) noise - sqrt(1 - a) latents.

    Parameters
    ----------
    alphas_cumprod : Tensor
        The scheduler's table.
    latents_BChw, noise_BChw : Tensor
        What was mixed.
    t_B : Tensor
        Times, int64.
    prediction_type : str, optional
        The scheduler's setting.

    Raises
    ------
    UserError
        For another kind of prediction.
    """
    if prediction_type == "epsilon":
        return noise_BChw
    if prediction_type == "v_prediction":
        alpha = alphas_cumprod.to(latents_BChw)[t_B].view(-1, 1, 1, 1)
        return alpha.sqrt() * noise_BChw - (1 - alpha).sqrt() * latents_BChw
    raise UserError(
        f"the scheduler's prediction_type is {prediction_type!r}; fine-tuning knows 'epsilon' and"
        " 'v_prediction'"
    )


def denoising_loss(prediction_BChw: Tensor, target_BChw: Tensor, weight_B: Tensor) -> Tensor:
    """Weighted squared error of every sample, B, float32; its mean is the objective."""
    error_B = (prediction_BChw.float() - target_BChw.float()).square().flatten(1).mean(dim=1)
    return weight_B * error_B
