"""Floating-point operations of a pass, counted by torch on the meta device: shapes without numbers.

A multiplication and an addition are two operations; matrix products, convolutions and attention
are counted, nothing else.
"""

from __future__ import annotations

from typing import Any

from diffusers import AutoencoderKL
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import CLIPVisionConfig

from braingen.generation.accounting import (
    BIG_G,
    META,
    cached_by_settings,
    unet_on_meta,
    unet_pass,
    vae_pass,
)
from braingen.generation.lora import add_lora
from braingen.targets.clip_image import CLIPImageEncoder


@cached_by_settings
def unet_operations(settings: dict[str, Any], rows: int, side: int) -> int:
    """Operations of a forward pass of a U-Net.

    Parameters
    ----------
    settings : dict[str, Any]
        Its configuration.
    rows : int
        Of the pass: two per image under guidance.
    side : int
        Of the latents.
    """
    unet = unet_on_meta(settings, torch.float32)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        unet_pass(unet, rows, side, torch.float32)
    return counter.get_total_flops()


@cached_by_settings
def tuning_operations(
    settings: dict[str, Any], rows: int, side: int, rank: int = 16, checkpointing: bool = False
) -> int:
    """Operations of a forward and backward pass of a frozen U-Net with a LoRA.

    Parameters
    ----------
    checkpointing : bool, optional
        Blocks are computed a second time in the backward pass; counted as a whole second forward
        pass.
    """
    unet = unet_on_meta(settings, torch.float32)
    with META:
        add_lora(unet, max(1, rank))
    unet.train()
    with FlopCounterMode(display=False) as counter:
        unet_pass(unet, rows, side, torch.float32).sum().backward()
    again = unet_operations(settings, rows, side) if checkpointing else 0
    return counter.get_total_flops() + again


@cached_by_settings
def vae_operations(settings: dict[str, Any], images: int, side: int, decoding: bool = True) -> int:
    """Operations of an autoencoder.

    Parameters
    ----------
    side : int
        Of the images, in pixels.
    decoding : bool, optional
        Latents to images, or the other way.
    """
    with META:
        vae = AutoencoderKL.from_config(settings)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        vae_pass(vae, images, side, decoding)
    return counter.get_total_flops()


def clip_operations(vision: CLIPVisionConfig | None, images: int) -> int:
    """Operations of a CLIP image tower; ViT-bigG/14 for None."""
    return _tower_operations(vision.to_dict() if vision else BIG_G, images)


@cached_by_settings
def _tower_operations(settings: dict[str, Any], images: int) -> int:
    vision = CLIPVisionConfig(**settings)
    encoder = CLIPImageEncoder.on_meta(vision)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        encoder.model(
            pixel_values=torch.empty(images, 3, vision.image_size, vision.image_size, device=META)
        )
    return counter.get_total_flops()
