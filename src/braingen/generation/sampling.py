"""The denoising loop: from noise to an image, with a condition that may change at every step.

B images, T tokens, C cross-attention width, D image-embedding width, h w latent sides.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
import hashlib
import inspect
from typing import NamedTuple

from diffusers import AutoencoderKL, SchedulerMixin, UNet2DConditionModel
import torch
from torch import Tensor

from braingen.pretrained.sdxl import PIXELS_AT_ONCE, refuse_steps, vae_factor
from braingen.runtime.errors import UserError
from braingen.runtime.precision import entering, slow_on, type_of, warn_slow
from braingen.types import Conditioning

ConditionAt = Callable[[Tensor, Tensor], Conditioning]
"""(t, noisy latents) -> condition of the U-Net at this step."""


class CoarseImage(NamedTuple):
    """Coarse images from which denoising starts part-way (image-to-image)."""

    latents_B4hw: Tensor
    """Scaled latents."""
    strength: float
    """Share of the steps that are run, at least one; 1 for all of them, from pure noise."""
    blend: float = 0.0
    """Weight of the coarse image in the final one, pixel by pixel (MindEye2: 0.25)."""


OnStep = Callable[[int, Tensor, Conditioning], None]
"""Called after every step with its number, the latents and the condition."""


def seeded_generators(image_ids: Sequence[int], seed: int, purpose: str) -> list[torch.Generator]:
    """One random generator per image, seeded by image id, run seed and purpose."""
    digests = [
        hashlib.sha256(f"{purpose}/{seed}/{int(image)}".encode()).digest() for image in image_ids
    ]
    return [
        torch.Generator().manual_seed(int.from_bytes(digest[:7], "little")) for digest in digests
    ]


def seeded_noise(
    image_ids: Sequence[int], shape: tuple[int, ...], seed: int, purpose: str
) -> Tensor:
    """Standard normal noise that depends on image id, run seed and purpose, not on the batch.

    Returns
    -------
    noise : Tensor
        len(image_ids) x shape, float32 on the CPU.
    """
    return torch.stack(
        [
            torch.randn(shape, generator=generator)
            for generator in seeded_generators(image_ids, seed, purpose)
        ]
    )


def refuse_not_finite_rows(values: Tensor, names: Sequence[int] | None, what: str) -> None:
    """Refuse rows with NaN or infinity, before they become black images.

    Parameters
    ----------
    values : Tensor
        One row per image.
    names : Sequence[int] | None
        Image ids of the rows; rows are counted from 0 where they have none.
    what : str
        Name of the values; begins the message.

    Raises
    ------
    UserError
        With the image ids.
    """
    rows = torch.isfinite(values).flatten(1).all(1).logical_not().nonzero().flatten().tolist()
    if rows:
        ids = [int(names[row]) if names is not None else row for row in rows]
        listed = ", ".join(map(str, ids[:4])) + (
            f" and {len(ids) - 4} more" if len(ids) > 4 else ""
        )
        raise UserError(
            f"{what} of image {listed} became NaN or infinite, so no image is generated: check its"
            " voxels (are they z-scored?), the weights of encoder, LoRA and backbone, and, in half"
            " precision, try generation.precision=bfloat16 or float32."
        )


def predict(
    unet: UNet2DConditionModel,
    latents_B4hw: Tensor,
    t: Tensor,
    condition: Conditioning,
    time_ids_B6: Tensor,
) -> Tensor:
    """Call the U-Net under a condition; used in fine-tuning and sampling.

    Latents and condition take the U-Net's type here, and its output takes that of the latents:
    outside of the U-Net everything is float32. Sizes stay as they are: as bfloat16, 1023 is 1024.
    """
    dtype = type_of(unet, latents_B4hw.dtype)
    output = unet(
        entering(latents_B4hw, dtype),
        t,
        encoder_hidden_states=entering(condition.tokens_BTC, dtype),
        added_cond_kwargs={
            "text_embeds": entering(condition.pooled_BD, dtype),
            "time_ids": time_ids_B6,
            "image_embeds": [entering(condition.image_embeds_BTD, dtype)],
        },
    ).sample
    return entering(output, latents_B4hw.dtype)


def size_ids(size: int, batch: int, like: Tensor) -> Tensor:
    """SDXL's size conditioning (original size, crop, target) of an uncropped square: B x 6."""
    return torch.tensor(
        [[size, size, 0, 0, size, size]], dtype=like.dtype, device=like.device
    ).expand(batch, -1)


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
    coarse: CoarseImage | None = None,
) -> Tensor:
    """Denoise noise to latents with the given number of steps.

    Parameters
    ----------
    noise_B4hw : Tensor
        Standard normal, one row per image.
    size : int
        Side of the image in pixels, for SDXL's size conditioning.
    steps : int
        Number of steps, at most the times of the noise schedule. Schedulers of second order (Heun)
        call the U-Net twice for all but the last.
    coarse : CoarseImage | None, optional
        Noise of the first time that is run is added to it, instead of starting from noise alone.
    condition_at, unconditional, guidance_scale, guidance_end, on_step, generators, names :
    ConditionAt
        As for :func:`denoise_from`.

    Returns
    -------
    latents_B4hw : Tensor
        Scaled latents, ready for the VAE.
    """
    refuse_steps(steps, scheduler)
    scheduler.set_timesteps(steps, device=noise_B4hw.device)
    times = scheduler.timesteps
    if coarse is None or coarse.strength == 1:
        latents = noise_B4hw * scheduler.init_noise_sigma
    else:
        first = first_step(steps, coarse.strength) * scheduler.order
        if hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(first)
        times = times[first:]
        start = coarse.latents_B4hw.to(noise_B4hw)
        latents = scheduler.add_noise(start, noise_B4hw, times[:1].expand(len(start)))
    ids_B6 = size_ids(size, len(latents), latents)
    return denoise_from(
        unet,
        scheduler,
        latents,
        times,
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


def first_step(steps: int, strength: float) -> int:
    """Number of the first step that is run at a strength, as in diffusers' image-to-image; at least
    one step is run.
    """
    return steps - min(max(1, int(steps * strength + 1e-9)), steps)


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
    """Run the denoising loop from latents with the noise level of the first of `times`.

    Parameters
    ----------
    times : Tensor
        The scheduler's times, or the last ones.
    condition_at : ConditionAt
        Called at every step.
    unconditional : Conditioning
        Unconditional input of classifier-free guidance, one row per image.
    ids_BK, unconditional_ids_BK : Tensor
        Added conditioning numbers: sizes, or an aesthetic score.
    guidance_scale : float
        1 for no guidance (Ho & Salimans 2022); the U-Net is then called on B rows instead of 2 B.
    guidance_end : float, optional
        Share of the steps, from the first, that use guidance. At low noise guidance changes
        contrast and details, not the content (Kynkaanniemi et al. 2024).
    on_step : OnStep | None, optional
        Called after every step with its number, the latents and the condition.
    generators : list[torch.Generator] | None, optional
        Per image, for schedulers that add noise at every step.
    names : Sequence[int] | None, optional
        Image ids, for messages about NaN.

    Returns
    -------
    latents_B4hw : Tensor
        Scaled latents, ready for the VAE.

    Raises
    ------
    UserError
        When the latents of an image become NaN or infinite.
    """
    latents = latents_B4hw
    if slow_on(type_of(unet, latents.dtype), latents.device):
        warn_slow()
    guided_steps = guidance_end * len(times) if guidance_scale > 1 else 0
    both_ids = torch.cat([unconditional_ids_BK, ids_BK])
    noisy = (
        {"generator": generators}
        if generators and "generator" in inspect.signature(scheduler.step).parameters
        else {}
    )
    for step, t in enumerate(times):
        scaled = scheduler.scale_model_input(latents, t)
        condition = condition_at(t, scaled)
        if step < guided_steps:
            output = predict(
                unet, torch.cat([scaled, scaled]), t, _stacked(unconditional, condition), both_ids
            )
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
def decode_latents(
    vae: AutoencoderKL, latents_B4hw: Tensor, names: Sequence[int] | None = None
) -> Tensor:
    """Decode scaled latents to images: B x 3 x H x W in [0, 1], float32.

    In slices of :data:`PIXELS_AT_ONCE`, so that memory does not grow with the batch.

    Raises
    ------
    UserError
        When the autoencoder's output is NaN, infinite or the same in every pixel, with the image
        ids in `names`.
    """
    latents = entering(latents_B4hw, type_of(vae, latents_B4hw.dtype)) / vae.config.scaling_factor
    side = latents.shape[-1] * vae_factor(vae)
    images = torch.cat(
        [vae.decode(some).sample for some in latents.split(max(1, PIXELS_AT_ONCE // side**2))]
    ).float()
    refuse_not_finite_rows(images, names, "The autoencoder's output")
    images = (images / 2 + 0.5).clamp(0, 1)
    refuse_blank(images, names)
    return images


def refuse_blank(images_B3HW: Tensor, names: Sequence[int] | None) -> None:
    """Refuse images of one value in all pixels: black, as from an overflow, or white.

    Raises
    ------
    UserError
        With the first image id.
    """
    low_B, high_B = images_B3HW.flatten(1).aminmax(dim=1)
    rows = (low_B == high_B).nonzero().flatten().tolist()
    if rows:
        name = int(names[rows[0]]) if names is not None else rows[0]
        raise UserError(
            f"Image {name} came out blank, all pixels are {float(low_B[rows[0]]):g}"
            f" ({len(rows)} of {len(images_B3HW)}): check the weights of encoder, LoRA and"
            " backbone, lower generation.guidance_scale, and, in half precision, try"
            " generation.precision=float32."
        )


def latent_shape(unet: UNet2DConditionModel, vae: AutoencoderKL, size: int) -> tuple[int, int, int]:
    """Latent shape (channels, height, width) of a square image; sides are rounded up."""
    side = -(-size // vae_factor(vae))
    return (unet.config.in_channels, side, side)
