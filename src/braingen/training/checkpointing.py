"""Whether activations are computed again in the backward pass of fine-tuning."""

from __future__ import annotations

from diffusers import UNet2DConditionModel
import psutil
import torch

from braingen.config import Config
from braingen.generation.accounting import tuning_bytes
from braingen.generation.batch import KEPT_FREE

BYTES_OF_TRAINED = 16
"""A float32 weight, its gradient, and the two moments of AdamW."""


def uses_checkpointing(
    config: Config, unet: UNet2DConditionModel, latent_side: int, free: int | None = None
) -> bool:
    """Whether gradient checkpointing is used; it changes memory and time, and no result.

    Parameters
    ----------
    config : Config
        ``finetune.gradient_checkpointing`` decides; with auto, what a pass works with without it is
        counted, and has to fit into three quarters of the memory that is free.
    unet : UNet2DConditionModel
        On its device, without a LoRA.
    latent_side : int
        Side of the training latents.
    free : int | None, optional
        Free bytes; None for those of the U-Net's device.
    """
    tune = config.finetune
    if tune.gradient_checkpointing != "auto":
        return tune.gradient_checkpointing
    on_gpu = unet.device.type == "cuda"
    if free is None:
        free = (
            torch.cuda.mem_get_info(unet.device)[0] if on_gpu else psutil.virtual_memory().available
        )
    plain = tune.attention == "plain" or (tune.attention == "auto" and not on_gpu)
    working, lora = tuning_bytes(
        dict(unet.config),
        tune.train_batch_size,
        latent_side,
        unet.dtype,
        config.lora.rank,
        False,
        "plain" if plain else "sdpa",
    )
    trained = lora * (BYTES_OF_TRAINED + 4 * tune.use_ema)
    return working + trained > (1 - KEPT_FREE) * free
