"""How long the stages of a configuration take on a GPU: an estimate by counted operations.

Operations are counted (:mod:`braingen.generation.operations`); the share of a GPU's peak that is
reached is an assumption.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from braingen.config import Config
from braingen.diagnostics.needs import REFINER, SDXL, SDXL_VAE
from braingen.generation.operations import (
    clip_operations,
    tuning_operations,
    unet_operations,
    vae_operations,
)

PER_PARAMETER = 6
"""Operations of a weight that is used once per trial: two forward, four backward."""


class Load(NamedTuple):
    """What the stages work on."""

    images: int
    """Images whose targets are computed, training and test."""
    trials: int
    """Training trials of an epoch."""
    test_images: int
    parameters: int
    """Of both encoders with their priors."""


def operations_of(
    config: Config,
    load: Load,
    side: int = 512,
    unet: dict[str, Any] = SDXL,
    refiner: dict[str, Any] = REFINER,
    vae: dict[str, Any] = SDXL_VAE,
) -> dict[str, int]:
    """Operations of every stage, by its name.

    Schedulers of second order, validations and the routers are not counted.

    Parameters
    ----------
    side : int, optional
        Of the images in pixels, where the configuration leaves it to the U-Net.
    unet, refiner, vae : dict[str, Any], optional
        Configurations of the models.
    """
    factor = 2 ** (len(vae["block_out_channels"]) - 1)
    chosen, tune, again = config.generation, config.finetune, config.refinement

    def latents(pixels: int) -> int:
        return (pixels or side) // factor

    guided = chosen.steps * (chosen.guidance_end if chosen.guidance_scale > 1 else 0)
    rows = chosen.steps + guided
    one = unet_operations(unet, 1, latents(chosen.size))
    decoding = vae_operations(vae, 1, chosen.size or side)
    refined = int(again.steps * again.strength) * (2 if again.guidance_scale > 1 else 1)
    refining = unet_operations(refiner, 1, latents(again.size or chosen.size))
    passes = tune.max_train_steps * tune.gradient_accumulation_steps * tune.train_batch_size
    tuned = tuning_operations(
        unet, 1, latents(tune.resolution), config.lora.rank, bool(tune.gradient_checkpointing)
    )
    encoding = vae_operations(vae, 1, tune.resolution or side, decoding=False)
    return {
        "compute targets": load.images * (clip_operations(None, 1) + encoding),
        "train": PER_PARAMETER * load.parameters * load.trials * config.training.num_epochs,
        "fine-tune": passes * tuned,
        "generate": round(load.test_images * chosen.samples * (rows * one + decoding)),
        "refine": load.test_images * (refined * refining + decoding),
    }


def hours(operations: float, tflops: float, share: float) -> float:
    """Hours on a GPU of a peak, of which a share is reached."""
    return operations / (tflops * 1e12 * share) / 3600
