"""The denoising loop: from noise to a picture, listening to a condition that may change with every step.

B pictures, T tokens, C cross-attention width, D image-embedding width, h w latent sides.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
import hashlib
import inspect

from diffusers import AutoencoderKL, SchedulerMixin, UNet2DConditionModel
import torch
from torch import Tensor

from braingen.diffusion.sdxl import refuse_steps, vae_factor
from braingen.errors import UserError
from braingen.records import Conditioning

ConditionAt = Callable[[Tensor, Tensor], Conditioning]
"""(t, noisy latents) -> what the U-Net listens to at this step."""

OnStep = Callable[[int, Tensor, Conditioning], None]
"""Called after every step with its number, the latents and the condition."""


def seeded_generators(image_ids: Sequence[int], seed: int, purpose: str) -> list[torch.Generator]:
    """A source of noise per picture that depends on its id, the run's seed and what it is for."""
    digests = [hashlib.sha256(f"{purpose}/{seed}/{int(image)}".encode()).digest() for image in image_ids]
    return [torch.Generator().manual_seed(int.from_bytes(digest[:7], "little")) for digest in digests]


def seeded_noise(image_ids: Sequence[int], shape: tuple[int, ...], seed: int, purpose: str) -> Tensor:
    """Noise that depends on the image id, the run's seed and what it is for, never on the batch a picture happens to be in.

    Returns
    -------
    noise : Tensor, len(image_ids) x shape, float32 on the CPU
    """
    return torch.stack([torch.randn(shape, generator=generator) for generator in seeded_generators(image_ids, seed, purpose)])


def refuse_not_finite_rows(values: Tensor, names: Sequence[int] | None, what: str) -> None:
    """Stop where something computed for a picture has become NaN or infinite, before it is drawn as a black one.

    Parameters
    ----------
    values : one row per picture
    names : image ids of the rows; rows are counted from 0 where they have none
    what : what has become so; begins the sentence

    Raises
    ------
    UserError
        With the pictures' ids.
    """
    rows = torch.isfinite(values).flatten(1).all(1).logical_not().nonzero().flatten().tolist()
    if rows:
        ids = [int(names[row]) if names is not None else row for row in rows]
        pictures = ", ".join(map(str, ids[:4])) + (f" and {len(ids) - 4} more" if len(ids) > 4 else "")
        raise UserError(
            f"{what} of picture {pictures} became NaN or infinite, so nothing is drawn of it: look at its voxels (are they z-scored?),"
            " at the weights of encoder, LoRA and backbone, and, in half precision, try float32."
        )


def predict(unet: UNet2DConditionModel, latents_B4hw: Tensor, t: Tensor, condition: Conditioning, time_ids_B6: Tensor) -> Tensor:
    """One call of the U-Net under a condition; used while fine-tuning and while sampling."""
    return unet(
        latents_B4hw,
        t,
        encoder_hidden_states=condition.tokens_BTC,
        added_cond_kwargs={
            "text_embeds": condition.pooled_BD,
            "time_ids": time_ids_B6,
            "image_embeds": [condition.image_embeds_BTD],
        },
    ).sample


def size_ids(size: int, batch: int, like: Tensor) -> Tensor:
    """SDXL's size conditioning (original size, crop, target size) of a square, uncropped picture: B x 6."""
    return torch.tensor([[size, size, 0, 0, size, size]], dtype=like.dtype, device=like.device).expand(batch, -1)


@torch.no_grad()
def denoise(
    unet: UNet2DConditionModel,
    scheduler: SchedulerMixin,
    noise_B4hw: Tensor,
    condition_at: ConditionAt,
    unconditional: Conditioning,
    *,
    size: int,
    steps: int,
    guidance_scale: float,
    guidance_end: float = 1.0,
    on_step: OnStep | None = None,
    generators: list[torch.Generator] | None = None,
    names: Sequence[int] | None = None,
) -> Tensor:
    """Turn noise into latents.

    Parameters
    ----------
    noise_B4hw : standard normal, one row per picture
    size : side of the picture in pixels, for SDXL's size conditioning
    steps : of the scheduler, at most as many as its noise schedule has times
        One of second order (Heun) calls the U-Net twice for all but the last
    condition_at, unconditional, guidance_scale, guidance_end, on_step, generators, names : as for :func:`denoise_from`

    Returns
    -------
    latents_B4hw : scaled latents, ready for the VAE
    """
    refuse_steps(steps, scheduler)
    scheduler.set_timesteps(steps, device=noise_B4hw.device)
    latents = noise_B4hw * scheduler.init_noise_sigma
    ids_B6 = size_ids(size, len(latents), latents)
    return denoise_from(
        unet,
        scheduler,
        latents,
        scheduler.timesteps,
        condition_at,
        unconditional,
        ids_B6,
        ids_B6,
        guidance_scale=guidance_scale,
        guidance_end=guidance_end,
        on_step=on_step,
        generators=generators,
        names=names,
    )


@torch.no_grad()
def denoise_from(
    unet: UNet2DConditionModel,
    scheduler: SchedulerMixin,
    latents_B4hw: Tensor,
    times: Tensor,
    condition_at: ConditionAt,
    unconditional: Conditioning,
    ids_BK: Tensor,
    unconditional_ids_BK: Tensor,
    *,
    guidance_scale: float,
    guidance_end: float = 1.0,
    on_step: OnStep | None = None,
    generators: list[torch.Generator] | None = None,
    names: Sequence[int] | None = None,
) -> Tensor:
    """The loop itself, from latents as noisy as they are at the first of `times`.

    Parameters
    ----------
    times : the scheduler's times, or the last of them
    condition_at : asked anew at every step
    unconditional : the condition that guidance leads away from, one row per picture
    ids_BK, unconditional_ids_BK : what the U-Net is told beside it: sizes, or an aesthetic score
    guidance_scale : 1 for no guidance (Ho & Salimans 2022); the U-Net is then called on B rows instead of 2 B
    guidance_end : share of the steps, from the first, that guidance acts in. At low noise it changes contrast
        and details and no longer what is drawn (Kynkaanniemi et al. 2024)
    on_step : called after every step with its number, the latents and the condition
    generators : per picture, for schedulers that add noise at every step
    names : image ids, to name pictures whose latents are no numbers any more

    Returns
    -------
    latents_B4hw : scaled latents, ready for the VAE

    Raises
    ------
    UserError
        When the latents of a picture become NaN or infinite.
    """
    latents = latents_B4hw
    guided_steps = guidance_end * len(times) if guidance_scale > 1 else 0
    both_ids = torch.cat([unconditional_ids_BK, ids_BK])
    noisy = {"generator": generators} if generators and "generator" in inspect.signature(scheduler.step).parameters else {}
    for step, t in enumerate(times):
        scaled = scheduler.scale_model_input(latents, t)
        condition = condition_at(t, scaled)
        if step < guided_steps:
            output = predict(unet, torch.cat([scaled, scaled]), t, _stacked(unconditional, condition), both_ids)
            without, given = output.chunk(2)
            output = without + guidance_scale * (given - without)
        else:
            output = predict(unet, scaled, t, condition, ids_BK)
        latents = scheduler.step(output, t, latents, return_dict=False, **noisy)[0]
        refuse_not_finite_rows(latents, names, f"At step {step + 1} of {len(times)} the latents")
        if on_step is not None:
            on_step(step, latents, condition)
    return latents


def _stacked(first: Conditioning, second: Conditioning) -> Conditioning:
    return Conditioning(
        torch.cat([first.tokens_BTC, second.tokens_BTC]),
        torch.cat([first.image_embeds_BTD, second.image_embeds_BTD]),
        torch.cat([first.pooled_BD, second.pooled_BD]),
    )


@torch.no_grad()
def decode_latents(vae: AutoencoderKL, latents_B4hw: Tensor, names: Sequence[int] | None = None) -> Tensor:
    """Scaled latents to pictures: B x 3 x H x W in [0, 1], float32.

    Raises
    ------
    UserError
        When the autoencoder's output is NaN or infinite, with the image ids in `names`.
    """
    pictures = vae.decode(latents_B4hw / vae.config.scaling_factor).sample
    refuse_not_finite_rows(pictures, names, "The autoencoder's output")
    return (pictures.float() / 2 + 0.5).clamp(0, 1)


def latent_shape(unet: UNet2DConditionModel, vae: AutoencoderKL, size: int) -> tuple[int, int, int]:
    """Channels, height and width of the latents of a square picture of ``size`` pixels, the last latent perhaps used in part."""
    side = -(-size // vae_factor(vae))
    return (unet.config.in_channels, side, side)
