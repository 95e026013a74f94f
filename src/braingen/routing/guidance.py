"""The pull of time routers toward coarse levels early and fine ones late (paper eq. 5).

B batch, L levels; level 0 is the coarsest
"""

from __future__ import annotations

import torch
from torch import Tensor


def log_gaussian_levels(
    t_B: Tensor,
    levels: int,
    *,
    sigma: float = 1.0,
    num_train_timesteps: int = 1000,
    early: float = 1.0,
    late: float = 0.0,
) -> Tensor:
    """Logarithm of a Gaussian over levels whose centre moves from the coarsest to the finest while
    the image forms (paper eq. 5).

    Parameters
    ----------
    t_B : Tensor
        Diffusion times.
    levels : int
        L.
    sigma : float
        Width, in levels (paper: 1).
    num_train_timesteps : int
        Length of the schedule.
    early, late : float
        Shares of the schedule at which the centre leaves the coarsest and reaches the finest level.
        The published implementation lets it move between 0.75 and 0.25 only; here it moves all the
        time.

    Returns
    -------
    Tensor
        B x L; the exponentials of a row sum to 1.
    """
    start, end = early * num_train_timesteps, late * num_train_timesteps
    centre_B1 = (levels - 1) * (start - t_B.float().clamp(end, start)[:, None]) / (start - end)
    distance_BL = torch.arange(levels, device=t_B.device) - centre_B1
    return torch.log_softmax(-distance_BL.square() / (2 * sigma**2), dim=-1)


def kl_guidance(
    probabilities_BL: Tensor, t_B: Tensor, *, sigma: float = 1.0, num_train_timesteps: int = 1000
) -> Tensor:
    """KL divergence of a time router's probabilities from the moving Gaussian, averaged over the
    batch (paper eq. 5).

    The published code has no such term; its Gaussian is a multiplicative prior that no script
    switches on.

    Parameters
    ----------
    probabilities_BL : Tensor
        `TimeRouting.probabilities_BL`.
    t_B : Tensor
        The times they belong to.
    sigma, num_train_timesteps : float, optional
        As for `log_gaussian_levels`.

    Returns
    -------
    Tensor
        Scalar, in nats; zero only where the router follows the Gaussian.
    """
    target_BL = log_gaussian_levels(
        t_B, probabilities_BL.shape[-1], sigma=sigma, num_train_timesteps=num_train_timesteps
    )
    p_BL = probabilities_BL.float()
    return (torch.xlogy(p_BL, p_BL) - p_BL * target_BL).sum(dim=-1).mean()
