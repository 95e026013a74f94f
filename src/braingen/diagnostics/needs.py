"""The memory that every stage needs: one table, for `braingen doctor` and the documentation.

Weights are counted by the files that are loaded, in the type they are loaded in; what a pass works
with is counted on the meta device (:mod:`braingen.generation.accounting`). Nothing is allocated.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from diffusers import AutoencoderKL

from braingen.config import Config
from braingen.config.shipped import backbone_folder
from braingen.generation.accounting import (
    clip_working_bytes,
    tuning_bytes,
    unet_working_bytes,
    vae_working_bytes,
)
from braingen.generation.batch import batch_of
from braingen.generation.compatibility import adapter_file
from braingen.generation.reconstruct import reads_voxels, uses_low_level
from braingen.pretrained.files import folder_of, needed_models
from braingen.pretrained.sdxl import (
    NO_ADAPTER,
    PIXELS_AT_ONCE,
    UNREADABLE,
    own_size,
    part_config,
    unet_config,
)
from braingen.pretrained.weight_files import model_files, numbers_in
from braingen.runtime.device import device_of
from braingen.runtime.errors import UserError
from braingen.runtime.paths import LATENT_ENCODER, low_level_folder
from braingen.runtime.precision import frozen_type, generation_type
from braingen.targets.clip_image import vision_config

NUMBERS = {
    "unet": 2_567_463_684,
    "vae": 83_653_863,
    "text_encoder": 123_060_480,
    "text_encoder_2": 694_659_840,
    "image_encoder": 1_844_907_264,
    "ip_adapter": 351_285_248,
    "refiner unet": 2_259_526_660,
    "refiner vae": 83_653_863,
    "refiner text_encoder_2": 694_659_840,
}
"""Parameters of Stable Diffusion XL, its refiner, ViT-bigG/14 and the plain IP-Adapter, for when
their files are not on this machine.
"""
SDXL: dict[str, Any] = {
    "sample_size": 128,
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
"""The U-Net of Stable Diffusion XL."""
REFINER: dict[str, Any] = SDXL | {
    "block_out_channels": (384, 768, 1536, 1536),
    "down_block_types": (
        "DownBlock2D",
        "CrossAttnDownBlock2D",
        "CrossAttnDownBlock2D",
        "DownBlock2D",
    ),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": 4,
    "attention_head_dim": (6, 12, 24, 24),
    "cross_attention_dim": 1280,
    "projection_class_embeddings_input_dim": 2560,
}
"""That of its refiner."""
SDXL_VAE: dict[str, Any] = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
    "latent_channels": 4,
}
FULL_SIDE = 1024
TEXT_ENCODERS = ("text_encoder", "text_encoder_2")
TOWER_OTHER = ("text_model.", "text_projection.", "logit_scale")
"""Of a whole CLIP model, what the image tower is without."""
TRAINED_BYTES = 16
"""A float32 weight, its gradient, and the two moments of AdamW."""


class StageNeed(NamedTuple):
    """The memory of a stage at its peak, without libraries."""

    stage: str
    """What it is for, as in "memory to generate"."""
    weights: dict[str, int]
    """Bytes by part, of what is loaded at the peak."""
    working: int
    """Bytes that a pass works with."""

    @property
    def total(self) -> int:
        return sum(self.weights.values()) + self.working


def numbers_of(config: Config) -> dict[str, int]:
    """Parameters by part: from the files that are loaded, else Stable Diffusion XL's."""
    found = dict(NUMBERS)
    for model in needed_models(config):
        folder = folder_of(model)
        if folder is None:
            continue
        try:
            files = model_files(folder, model.library, model.half)
        except UserError:
            continue  # reported with the backbone
        other = TOWER_OTHER if model.part == "image_encoder" else ()
        found[model.part] = numbers_in(files, other)
    file = adapter_file(config)
    if config.backbone.ip_adapter == NO_ADAPTER:
        found["ip_adapter"] = 0
    elif file is not None:
        with suppress(OSError, ValueError, KeyError, TypeError):  # reported with the backbone
            found["ip_adapter"] = numbers_in([file])
    return found


def picture_side(config: Config, asked: int) -> int:
    """Side of the images of a stage, in pixels."""
    try:
        return asked or own_size(config.backbone.path, local_files_only=True)
    except UserError:
        return FULL_SIDE


def _unet(path: str, otherwise: dict[str, Any]) -> dict[str, Any]:
    found = unet_config(path)
    return dict(found) if found.get("block_out_channels") else otherwise


def vae_of(config: Config) -> dict[str, Any]:
    """Configuration of the autoencoder; Stable Diffusion XL's where it is not on this machine."""
    try:
        return dict(part_config(AutoencoderKL, config.backbone.path, "vae", local_files_only=True))
    except UNREADABLE:
        return SDXL_VAE


def latent_side(config: Config, side: int) -> int:
    """Side of the latents of images of a side."""
    return -(-side // 2 ** (len(vae_of(config)["block_out_channels"]) - 1))


def _decoding(config: Config, batch: int, side: int) -> int:
    """Bytes of decoding a batch in slices, the finished images beside them."""
    count = min(batch, max(1, PIXELS_AT_ONCE // side**2))
    return vae_working_bytes(vae_of(config), count, side) + 2 * batch * 3 * side**2 * 4


def _rows(batch: int, guidance_scale: float) -> int:
    return 2 * batch if guidance_scale > 1 else batch


def _low_level(config: Config) -> int:
    """Parameters of the low-level path, where images start from its coarse image."""
    folder = low_level_folder(config) / LATENT_ENCODER
    with suppress(UserError, OSError, ValueError, KeyError, TypeError):
        return numbers_in(model_files(folder, "diffusers")) if uses_low_level(config) else 0
    return 0


def generating(config: Config, encoders: int, priors: int | None = None) -> StageNeed:
    """`reconstruct` and `decode`: encoders first, and the backbone when they are gone.

    Parameters
    ----------
    encoders : int
        Parameters of both encoders with their priors.
    priors : int | None, optional
        Of the priors among them, which stay where they are applied at every step; as many as those
        of the encoders for None.
    """
    numbers, dtype, chosen = numbers_of(config), generation_type(config), config.generation
    size = dtype.itemsize
    weights = {
        "unet": numbers["unet"] * size,
        "ip_adapter": numbers["ip_adapter"] * size,
        "vae": numbers["vae"] * 4,
    }
    before = {"low-level path": 4 * _low_level(config)}
    if reads_voxels(config):
        before["encoders"] = encoders * 4
    elif chosen.source != "oracle":  # an encoding model compares with pictures of its library
        before["image_encoder"] = numbers["image_encoder"] * 4
    side, batch = picture_side(config, chosen.size), batch_of(chosen.batch_size)
    if config.router.prior_order == "step":
        weights["priors"] = 4 * (encoders if priors is None else priors)
    if chosen.samples > 1:
        weights["image_encoder"] = numbers["image_encoder"] * 4
    rows, latents = _rows(batch, chosen.guidance_scale), latent_side(config, side)
    working = max(
        unet_working_bytes(_unet(config.backbone.path, SDXL), rows, latents, dtype),
        _decoding(config, batch, side),
    )
    moments = [StageNeed("generate", weights, working), StageNeed("generate", before, 0)]
    if chosen.negative_prompt and device_of(config).type == "cpu":  # read on the CPU, once
        texts = {part: numbers[part] * 4 for part in TEXT_ENCODERS}
        moments.append(StageNeed("generate", weights | texts, 0))
    return max(moments, key=lambda each: each.total)


def fine_tuning(config: Config, encoders: int, priors: int | None = None) -> StageNeed:
    """`finetune`, when everything that is computed once is there (see :func:`computing`).

    Parameters
    ----------
    encoders, priors : int
        As for :func:`generating`.
    """
    numbers, dtype, tune = numbers_of(config), frozen_type(config), config.finetune
    settings, side = _unet(config.backbone.path, SDXL), picture_side(config, tune.resolution)
    on_gpu = device_of(config).type == "cuda"
    attention = tune.attention if tune.attention != "auto" else ("sdpa" if on_gpu else "plain")
    working, lora = tuning_bytes(
        settings,
        tune.train_batch_size,
        latent_side(config, side),
        dtype,
        config.lora.rank,
        # auto: it is used where the other way does not fit
        bool(tune.gradient_checkpointing),
        "plain" if attention == "plain" else "sdpa",
    )
    weights = {
        "unet": numbers["unet"] * dtype.itemsize,
        "ip_adapter": numbers["ip_adapter"] * dtype.itemsize,
        "lora": lora * (TRAINED_BYTES + 4 * tune.use_ema),
    }
    if config.router.prior_order == "step":
        weights["priors"] = 4 * (encoders if priors is None else priors)
    decoding = StageNeed("fine-tune", {"encoders": encoders * 4}, 0)  # before the U-Net
    return max(StageNeed("fine-tune", weights, working), decoding, key=lambda each: each.total)


def refining(config: Config) -> StageNeed:
    """`refine`, with the refiner or the base model."""
    numbers, dtype, chosen = numbers_of(config), generation_type(config), config.refinement
    prefix = "refiner " if config.backbone.refiner else ""
    size = dtype.itemsize
    weights = {"unet": numbers[f"{prefix}unet"] * size, "vae": numbers[f"{prefix}vae"] * 4}
    if chosen.use_image:
        weights["ip_adapter"] = numbers["ip_adapter"] * size
    text = {"text_encoder_2": numbers[f"{prefix}text_encoder_2"] * 4}
    if not prefix and (chosen.negative_prompt or config.backbone.text_output == "joint"):
        text = {part: numbers[part] * 4 for part in TEXT_ENCODERS}
    side = picture_side(config, chosen.size or config.generation.size)
    path, otherwise = config.backbone.refiner or config.backbone.path, SDXL
    settings = _unet(path, REFINER if prefix else otherwise)
    rows = _rows(chosen.batch_size, chosen.guidance_scale)
    working = max(
        unet_working_bytes(settings, rows, latent_side(config, side), dtype),
        _decoding(config, chosen.batch_size, side),
    )
    need = StageNeed("refine", weights, working)
    if device_of(config).type == "cuda":  # texts are encoded on the CPU
        return need
    return max(need, StageNeed("refine", weights | text, 0), key=lambda each: each.total)


def computing(config: Config) -> StageNeed:
    """Targets and latents of the images, computed once: one model after the other."""
    numbers = numbers_of(config)
    source = config.backbone.image_encoder or backbone_folder(config.backbone.path)
    try:
        vision: Any = vision_config(source, local_files_only=True)
    except UserError:
        vision = None
    clip = clip_working_bytes(vision, config.precompute.batch_size)
    side = picture_side(config, config.finetune.resolution)
    count = max(1, PIXELS_AT_ONCE // side**2)
    encoding = vae_working_bytes(vae_of(config), count, side, decoding=False)
    found = [
        StageNeed("compute targets", {"image_encoder": numbers["image_encoder"] * 4}, clip),
        StageNeed("compute targets", {"text_encoder_2": numbers["text_encoder_2"] * 4}, 0),
        StageNeed("compute targets", {"vae": numbers["vae"] * 4}, encoding),
    ]
    return max(found, key=lambda each: each.total)


STAGES: dict[str, Callable[..., StageNeed]] = {
    "compute targets": lambda config, encoders, priors=None: computing(config),
    "fine-tune": fine_tuning,
    "generate": generating,
    "refine": lambda config, encoders, priors=None: refining(config),
}
"""The table: every stage that works with the backbone."""


def stage_needs(config: Config, encoders: int, priors: int | None = None) -> dict[str, StageNeed]:
    """The needs of every stage of a configuration, by its name.

    Parameters
    ----------
    encoders, priors : int
        As for :func:`generating`.

    Raises
    ------
    UserError
        When a configuration on this machine is not that of a model.
    """
    try:
        return {
            name: need(config, encoders, priors)
            for name, need in STAGES.items()
            if name == "compute targets" or config.backbone.ip_adapter != NO_ADAPTER
        }
    except (*UNREADABLE, ZeroDivisionError) as error:
        if isinstance(error, UserError):
            raise
        folder = Path(backbone_folder(config.backbone.path))
        raise UserError(f"The configurations in {folder} are not those of SDXL's parts.") from error
