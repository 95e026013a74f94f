"""Image-to-image refinement (SDEdit): add noise to an image and denoise it again.

The condition is the decoded text. SDXL's refiner and base models both work; the U-Net's
configuration says which one it is.

B images, T tokens, D text embedding width, K added conditioning numbers, H W sides in pixels,
h w latent sides.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from diffusers import AutoencoderKL, SchedulerMixin, UNet2DConditionModel
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from braingen.config.shipped import backbone_folder
from braingen.generation.sampling import (
    decode_latents,
    denoise_from,
    seeded_generators,
    seeded_noise,
    size_ids,
)
from braingen.pretrained.sdxl import (
    add_ip_adapter,
    encode_modes,
    image_embedding_width,
    load_ip_adapter_file,
    load_plain,
    refuse_steps,
    vae_factor,
)
from braingen.routing.conditioning import ConditioningForm
from braingen.runtime.errors import UserError
from braingen.runtime.memory import give_back
from braingen.targets.clip_text import CLIPTextEncoderDual, Output
from braingen.targets.text_form import HasTextForm, TextForm
from braingen.types import Conditioning

SIZES, SCORE = 6, 5
"""Added conditioning numbers of a base model (original size, crop, target size), and of a refiner
(original size, crop, aesthetic score).
"""


class Refiner(NamedTuple):
    """The models of a refinement."""

    unet: UNet2DConditionModel
    vae: AutoencoderKL
    scheduler: SchedulerMixin
    form: ConditioningForm
    """Shapes of the U-Net's condition."""
    unconditional: Conditioning
    """Unconditional input of classifier-free guidance, one row."""
    scored: bool
    """Whether the U-Net takes an aesthetic score (SDXL's refiner) instead of a target size."""


class Refinement(NamedTuple):
    """Settings of a refinement."""

    steps: int
    """Steps of the whole noise schedule; a part of them is run."""
    strength: float
    """Share of the steps that is run (published: 0.2-0.5)."""
    guidance_scale: float
    """Classifier-free guidance; 1 for none."""
    denoising_start: float | None = None
    """Instead of the strength: the share of the schedule's time that is skipped."""
    aesthetic_score: float = 6.0
    negative_aesthetic_score: float = 2.5
    """Of the conditional and unconditional input; used by SDXL's refiner only."""


def conditioning_ids(unet: UNet2DConditionModel, pooled_width: int) -> int:
    """Count the numbers (sizes, score) that a U-Net takes beside the pooled text embedding.

    Raises
    ------
    UserError
        When it is neither six (base model) nor five (refiner).
    """
    width, each = unet.add_embedding.linear_1.in_features, unet.config.addition_time_embed_dim
    count, left = divmod(width - pooled_width, each)
    if left or count not in (SIZES, SCORE):
        raise UserError(
            f"The U-Net's added embedding is {width} wide; with a pooled text of {pooled_width} and"
            f" {each} per number it would have to be {pooled_width + SIZES * each} (a base model)"
            f" or {pooled_width + SCORE * each} (a refiner): give the folder of an SDXL model."
        )
    return count


def assemble_refiner(
    unet: UNet2DConditionModel,
    vae: AutoencoderKL,
    scheduler: SchedulerMixin,
    text_encoder: HasTextForm,
    prompts: CLIPTextEncoderDual,
    negative_prompt: str = "",
) -> Refiner:
    """Assemble a refiner from its models.

    Parameters
    ----------
    text_encoder : HasTextForm
        The encoder whose embeddings are decoded; gives the start token and widths.
    prompts : CLIPTextEncoderDual
        The encoders of the U-Net's prompts, bigG among them.
    negative_prompt : str, optional
        Unconditional input of the guidance. An empty prompt is zeros for a base model, and an empty
        text for a refiner, as they were trained (``force_zeros_for_empty_prompt``).
    """
    pooled = prompts.models["bigG"].config.projection_dim
    scored = conditioning_ids(unet, pooled) == SCORE
    image_shape = (1, image_embedding_width(unet) if unet.encoder_hid_proj is not None else 1)
    form = ConditioningForm.of(
        text_encoder,
        cross_attention_dim=unet.config.cross_attention_dim,
        pooled_dim=pooled,
        image_shape=image_shape,
    ).to(unet.device)
    unconditional = (
        form.prompt(prompts.prompt([negative_prompt]))
        if negative_prompt or scored
        else form.empty(1)
    )
    return Refiner(unet, vae, scheduler, form, unconditional, scored)


def load_refiner(
    path: str,
    *,
    text_output: Output = "bigG",
    ip_adapter: str | None = None,
    negative_prompt: str = "",
    dtype: torch.dtype = torch.float32,
) -> Refiner:
    """Load a refiner, or a base model to refine with, frozen.

    Parameters
    ----------
    path : str
        'tiny', a folder with unet/, vae/, scheduler/, text_encoder_2/ and tokenizer_2/, or a hub
        name.
    text_output : Output, optional
        The decoded embedding. A refiner uses bigG's columns only.
    ip_adapter : str | None, optional
        Path of an IP-Adapter, to condition on the image embedding too (base models only); None for
        none.
    negative_prompt : str, optional
        See :func:`assemble_refiner`.
    dtype : torch.dtype, optional
        Of the U-Net; everything else is float32.

    Raises
    ------
    UserError
        When a part is missing or does not fit.
    """
    folder = backbone_folder(path)
    unet, vae, scheduler = load_plain(path, dtype, setting="backbone.refiner")
    if ip_adapter is not None:
        add_ip_adapter(unet, load_ip_adapter_file(ip_adapter))
    prompts = CLIPTextEncoderDual.from_pretrained(folder, dtype=torch.float32)
    form = TextForm.of(prompts)
    if unet.config.cross_attention_dim > prompts.clip_emb_dim:  # it uses the first encoder too
        last: Output = "joint" if negative_prompt else "bigG"
        for output in (text_output, last):  # one after the other
            if output != prompts.output:
                del prompts
                give_back(collect=True)
                prompts = CLIPTextEncoderDual.from_pretrained(
                    folder, output=output, dtype=torch.float32
                )
            if output == text_output:
                form = TextForm.of(prompts)
    elif text_output == "L":
        raise UserError(
            f"{path} uses the second text encoder only, and backbone.text_output is L: refine with"
            " a base model."
        )
    return assemble_refiner(
        unet.requires_grad_(False).eval(), vae, scheduler, form, prompts, negative_prompt
    )


def last_times(scheduler: SchedulerMixin, how: Refinement) -> tuple[Tensor, int]:
    """Return the scheduler times that a refinement runs, and the index of the first of them.

    Raises
    ------
    UserError
        When none is left.
    """
    times = scheduler.timesteps
    if how.denoising_start is None:
        first = (how.steps - min(int(how.steps * how.strength), how.steps)) * scheduler.order
        setting = f"strength {how.strength:g} of {how.steps} steps"
    else:
        total = scheduler.config.num_train_timesteps
        left = int((times < round(total * (1 - how.denoising_start))).sum())
        if scheduler.order == 2 and left % 2 == 0 and left < len(times):
            left += 1  # all times but the first are listed twice; do not split a step
        first = len(times) - left
        setting = f"denoising_start {how.denoising_start:g} with {how.steps} steps"
    if first >= len(times):
        raise UserError(
            f"{setting} leaves no step to refine with: use more steps, a larger strength or an"
            " earlier denoising_start."
        )
    return times[first:], first


def steps_run(scheduler: SchedulerMixin, how: Refinement) -> int:
    """Count the steps that a refinement runs, given strength or denoising_start.

    Raises
    ------
    UserError
        When there are more steps than the noise schedule has times, or none is left.
    """
    refuse_steps(how.steps, scheduler, "refinement.steps")
    scheduler.set_timesteps(how.steps)
    times, _ = last_times(scheduler, how)
    # schedulers of second order list every time but one twice
    return len(times) if scheduler.order == 1 else (len(times) + 1) // 2


@torch.no_grad()
def refine_images(
    refiner: Refiner,
    images_B3HW: Tensor,
    text_BTD: Tensor | None,
    image_ids: Sequence[int],
    how: Refinement,
    *,
    seed: int = 0,
    image_BTD: Tensor | None = None,
    size: int = 0,
) -> Tensor:
    """Refine a batch of images.

    Parameters
    ----------
    images_B3HW : Tensor
        Square, in [0, 1].
    text_BTD : Tensor | None
        Decoded text embeddings in the text encoder's own units; None for no text.
    image_ids : Sequence[int]
        Determine the noise, together with the seed.
    image_BTD : Tensor | None, optional
        Decoded image embeddings, for a U-Net with an IP-Adapter.
    size : int, optional
        Side of the refined images in pixels; 0 for that of the input images.

    Returns
    -------
    images_B3HW : Tensor
        Float32 in [0, 1].

    Raises
    ------
    UserError
        When images are not square, their side does not fit the autoencoder, or no step is left.
    """
    side = size or images_B3HW.shape[-1]
    factor = vae_factor(refiner.vae)
    if images_B3HW.shape[-2] != images_B3HW.shape[-1] or side % factor:
        shape = tuple(images_B3HW.shape[-2:])
        raise UserError(
            f"images are {shape} pixels, refined at {side}: give square ones, their side a"
            f" multiple of {factor}."
        )
    if side != images_B3HW.shape[-1]:
        resized = interpolate(
            images_B3HW.float(),
            size=(side, side),
            mode="bicubic",
            antialias=True,
            align_corners=False,
        )
        images_B3HW = resized.clamp(0, 1)
    unet, scheduler, form, batch = refiner.unet, refiner.scheduler, refiner.form, len(images_B3HW)
    clean = encode_modes(refiner.vae, images_B3HW)
    refuse_steps(how.steps, scheduler, "refinement.steps")
    scheduler.set_timesteps(how.steps, device=clean.device)
    times, first = last_times(scheduler, how)
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(first)
    noise = seeded_noise(image_ids, tuple(clean.shape[1:]), seed, "refinement").to(clean)
    latents = scheduler.add_noise(clean, noise, times[:1].expand(batch))
    begin, end = form.text_columns
    condition = form.empty(batch)
    if text_BTD is not None:
        # a refiner uses only bigG's columns, the last ones
        text = form.text(text_BTD[..., begin - end :].to(form.start_C))
        condition = condition._replace(tokens_BTC=text)
    if image_BTD is not None:
        condition = condition._replace(image_embeds_BTD=image_BTD.to(form.start_C))
    tokens, image, pooled = (
        x.expand(batch, *x.shape[1:]) for x in refiner.unconditional[:3] if isinstance(x, Tensor)
    )
    given, without = size_ids(side, batch, latents), size_ids(side, batch, latents)
    if refiner.scored:
        given, without = (
            torch.cat([sizes[:, :4], torch.full_like(sizes[:, :1], score)], dim=1)
            for sizes, score in (
                (given, how.aesthetic_score),
                (without, how.negative_aesthetic_score),
            )
        )
    latents = denoise_from(
        unet,
        scheduler,
        latents,
        times,
        lambda t, noisy: condition,
        Conditioning(tokens, image, pooled),
        given,
        without,
        guidance_scale=how.guidance_scale,
        generators=seeded_generators(image_ids, seed, "steps of refinement"),
        names=image_ids,
    )
    return decode_latents(refiner.vae, latents, image_ids)
