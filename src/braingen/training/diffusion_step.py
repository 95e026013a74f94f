"""One pass of fine-tuning: its random numbers, its losses, and the validation.

B batch, E all experts, T tokens, D CLIP width, C h w latent sides.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from braingen.config import Config
from braingen.generation.conditioned_unet import ConditionedUNet
from braingen.routing.guidance import kl_guidance
from braingen.runtime.seeds import hash_seed
from braingen.training.conditioning_augmentation import augmented, mixing_weights
from braingen.training.diffusion_data import DiffusionData, pieces
from braingen.training.diffusion_loss import (
    denoising_loss,
    min_snr_weight,
    noisy_latents,
    offset_noise,
    prediction_target,
    signal_to_noise,
)
from braingen.training.steps import StepLosses


class DiffusionParts(NamedTuple):
    """Everything a fine-tuning needs."""

    model: ConditionedUNet
    data: DiffusionData
    alphas_cumprod: Tensor
    """The noise schedule."""
    prediction_type: str


class StepDraws(NamedTuple):
    """Random numbers of a pass, on the CPU."""

    t_B: Tensor
    noise_BChw: Tensor
    no_image_B: Tensor
    no_text_B: Tensor
    weights_BJ: Tensor
    """How decoding errors of held-out images are mixed."""


def draw(
    config: Config,
    batch: int,
    latent_shape: tuple[int, ...],
    times: int,
    held_out: int,
    generator: torch.Generator,
) -> StepDraws:
    """Random numbers of a pass: times (one in each of B equal parts of the schedule), noise,
    dropped conditions, how errors are mixed.
    """
    order = torch.randperm(batch, generator=generator)
    t_B = (
        ((order + torch.rand(batch, generator=generator)) * (times / batch))
        .long()
        .clamp(max=times - 1)
    )
    noise = torch.randn(batch, *latent_shape, generator=generator)
    noise = offset_noise(noise, config.finetune.noise_offset, generator)
    chance_B = torch.rand(batch, generator=generator)
    both, image = config.finetune.drop_both, config.finetune.drop_both + config.finetune.drop_image
    text = image + config.finetune.drop_text
    no_image_B, no_text_B = (
        chance_B < image,
        (chance_B < both) | ((chance_B >= image) & (chance_B < text)),
    )
    return StepDraws(t_B, noise, no_image_B, no_text_B, mixing_weights(batch, held_out, generator))


def step(
    model: nn.Module,
    rows: np.ndarray,
    parts: DiffusionParts,
    config: Config,
    generator: torch.Generator,
) -> StepLosses:
    """The losses of one pass: weighted error of the prediction, and the pull on the time routers.

    Parameters
    ----------
    model : nn.Module
        The conditioned U-Net, wrapped for several processes or not.
    rows : np.ndarray
        Images of the pass.
    generator : torch.Generator
        Of all random numbers of the pass.
    """
    train, device = parts.data.train, parts.alphas_cumprod.device
    latents = train.latents_of(rows).to(device)
    drawn = draw(
        config,
        len(rows),
        tuple(latents.shape[1:]),
        len(parts.alphas_cumprod),
        _errors(parts),
        generator,
    )
    if config.finetune.conditioning == "as_held_out":
        decoded = {
            name: augmented(
                train.truth[name][rows], parts.data.decoding_error[name], drawn.weights_BJ
            )
            for name in train.decoded
        }
    else:
        decoded = {name: train.decoded_of(name, rows) for name in train.decoded}
    return _losses(model, latents, decoded, drawn, parts, config, generator)


def _errors(parts: DiffusionParts) -> int:
    return len(parts.data.decoding_error["image"].error_JETD)


def _losses(
    model: nn.Module,
    latents_BChw: Tensor,
    decoded: dict[str, Tensor],
    drawn: StepDraws,
    parts: DiffusionParts,
    config: Config,
    generator: torch.Generator,
) -> StepLosses:
    device, alphas = latents_BChw.device, parts.alphas_cumprod
    t_B, noise_BChw = drawn.t_B.to(device), drawn.noise_BChw.to(device)
    embeddings = (
        decoded[name].to(device) if name in decoded else None for name in ("image", "text")
    )
    noisy_BChw = noisy_latents(alphas, latents_BChw, noise_BChw, t_B)
    guess_BChw, routings = model(
        noisy_BChw,
        t_B,
        *embeddings,
        drawn.no_image_B.to(device),
        drawn.no_text_B.to(device),
        generator,
    )
    target_BChw = prediction_target(alphas, latents_BChw, noise_BChw, t_B, parts.prediction_type)
    weight_B = min_snr_weight(
        signal_to_noise(alphas, t_B), config.finetune.snr_gamma or None, parts.prediction_type
    )
    terms = {"denoising": denoising_loss(guess_BChw, target_BChw, weight_B).mean()}
    learned = [each for each in routings if each.levels_are_learned]
    if config.router.kl_scale and learned:
        sigma, times = config.router.kl_sigma, len(alphas)
        pulls = [
            kl_guidance(each.level_probabilities_BL, t_B, sigma=sigma, num_train_timesteps=times)
            for each in learned
        ]
        terms["guidance"] = config.router.kl_scale * torch.stack(pulls).mean()
    return StepLosses.of(terms)


@torch.no_grad()
def validate(parts: DiffusionParts, config: Config) -> dict[str, float]:
    """The objective on held-out training images, and its denoising loss: their own
    decoded embeddings, the
    same noise and times, nothing left out.

    ``denoising`` chooses the checkpoint. ``loss`` is what is minimised, guidance of the time
    routers included; guidance describes the routers and nothing about images.
    """
    parts.model.eval()
    held_out, device = parts.data.held_out, parts.alphas_cumprod.device
    sums = {"loss": 0.0, "denoising": 0.0}
    for number, rows in enumerate(pieces(len(held_out.rows), 32)):
        generator = torch.Generator().manual_seed(hash_seed(config.run.seed, "validation", number))
        latents = held_out.latents_of(rows).to(device)
        drawn = draw(
            config, len(rows), tuple(latents.shape[1:]), len(parts.alphas_cumprod), 1, generator
        )
        whole = drawn._replace(
            no_image_B=torch.zeros_like(drawn.no_image_B),
            no_text_B=torch.zeros_like(drawn.no_text_B),
        )
        decoded = {name: held_out.decoded_of(name, rows) for name in held_out.decoded}
        found = _losses(parts.model, latents, decoded, whole, parts, config, generator)
        sums["loss"] += len(rows) * found.total.item()
        sums["denoising"] += len(rows) * found.terms["denoising"].item()
    parts.model.train()
    return {name: value / len(held_out.rows) for name, value in sums.items()}
