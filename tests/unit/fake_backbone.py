"""A backbone of random weights in the layout of an SDXL pipeline, the smallest of the real classes:
quick, and of no particular quality.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from functools import cache, wraps
from pathlib import Path
import shutil
import tempfile
from typing import ParamSpec, TypeVar

from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.schedulers import EulerDiscreteScheduler
from safetensors.torch import save_file
import torch
from torch import Tensor

from braingen.config.shipped import TINY
from braingen.pretrained.sdxl import Backbone, add_ip_adapter

TEXT_WIDTH, POOLED_WIDTH, IMAGE_WIDTH, IMAGE_TOKENS = 224, 128, 128, 4
"""Widths of the shipped CLIP encoders, so that these can stand beside a fake U-Net; tokens per
image as in every plain IP-Adapter.
"""


Arguments = ParamSpec("Arguments")
Made = TypeVar("Made")


def made_once(make: Callable[Arguments, Made]) -> Callable[Arguments, Made]:
    """Build once and hand out copies, which takes a fraction of the time; random numbers go on as
    after building.
    """

    @cache
    def first(*given: object, **named: object) -> tuple[Made, Tensor]:
        return make(*given, **named), torch.get_rng_state()  # type: ignore[call-arg]

    @wraps(make)
    def copy(*given: Arguments.args, **named: Arguments.kwargs) -> Made:
        made, state = first(*given, **named)
        torch.set_rng_state(state)
        return deepcopy(made)

    return copy


def random_adapter(
    unet: UNet2DConditionModel, image_width: int = IMAGE_WIDTH, seed: int = 5
) -> dict[str, Tensor]:
    """Weights of an IP-Adapter for a U-Net, all different, under the keys of the files people
    share.
    """
    generator = torch.Generator().manual_seed(seed)
    width = unet.config.cross_attention_dim

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator) / shape[-1] ** 0.5

    weights = {
        "image_proj.proj.weight": draw(IMAGE_TOKENS * width, image_width),
        "image_proj.proj.bias": draw(IMAGE_TOKENS * width),
    }
    weights |= {"image_proj.norm.weight": 1 + draw(width), "image_proj.norm.bias": draw(width)}
    modules = dict(unet.named_modules())
    cross = [name.removesuffix(".processor") for name in unet.attn_processors if "attn2" in name]
    for order, name in enumerate(cross):
        for part in ("to_k_ip", "to_v_ip"):
            weights[f"ip_adapter.{2 * order + 1}.{part}.weight"] = draw(
                modules[name].inner_dim, width
            )
    return weights


@made_once
def plain_unet(
    seed: int = 0, pooled_width: int = POOLED_WIDTH, text_width: int = TEXT_WIDTH, told: int = 6
) -> UNet2DConditionModel:
    """An SDXL-shaped U-Net of random weights, without an IP-Adapter; a refiner is told five numbers
    and has the second encoder's width.
    """
    torch.manual_seed(seed)
    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(16, 32),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        attention_head_dim=(1, 2),
        cross_attention_dim=text_width,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=told * 8 + pooled_width,
        norm_num_groups=8,
    )


@made_once
def small_vae(seed: int = 1) -> AutoencoderKL:
    """An autoencoder of factor 4."""
    torch.manual_seed(seed)
    return AutoencoderKL(
        block_out_channels=(8, 8, 16),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        layers_per_block=1,
        norm_num_groups=4,
        latent_channels=4,
        mid_block_add_attention=False,
        force_upcast=False,
        sample_size=32,
        scaling_factor=0.7,
    )


def sdxl_scheduler() -> EulerDiscreteScheduler:
    """The settings that Stable Diffusion XL ships."""
    return EulerDiscreteScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="epsilon",
        timestep_spacing="leading",
        steps_offset=1,
    )


@made_once
def fake_backbone() -> Backbone:
    """U-Net with IP-Adapter, autoencoder and scheduler, frozen, as `load_backbone` gives them."""
    unet = plain_unet()
    add_ip_adapter(unet, random_adapter(unet))
    return Backbone(
        unet.requires_grad_(False).eval(),
        small_vae().requires_grad_(False).eval(),
        sdxl_scheduler(),
    )


@cache
def _written() -> tempfile.TemporaryDirectory:
    """A folder with what `write_fake_backbone` writes of its own, for as long as the process."""
    kept = tempfile.TemporaryDirectory(prefix="braingen-tests-")
    folder, unet = Path(kept.name), plain_unet()
    unet.save_pretrained(folder / "unet")
    small_vae().save_pretrained(folder / "vae")
    sdxl_scheduler().save_pretrained(folder / "scheduler")
    (folder / "ip_adapter").mkdir()
    save_file(random_adapter(unet), folder / "ip_adapter" / "ip-adapter.safetensors")
    return kept


def write_fake_backbone(folder: Path, with_clip: bool = False) -> Path:
    """Write one; ``with_clip`` puts the shipped CLIP encoders beside it, so that a whole run can
    use it.
    """
    shutil.copytree(_written().name, folder, dirs_exist_ok=True)
    for name in (
        ("image_encoder", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")
        if with_clip
        else ()
    ):
        shutil.copytree(TINY / name, folder / name)
    return folder


def write_fake_refiner(folder: Path) -> Path:
    """A folder of the structure of SDXL's refiner: one text encoder, five numbers beside
    the text.
    """
    plain_unet(seed=3, text_width=POOLED_WIDTH, told=5).save_pretrained(folder / "unet")
    small_vae().save_pretrained(folder / "vae")
    sdxl_scheduler().save_pretrained(folder / "scheduler")
    for name in ("text_encoder_2", "tokenizer_2"):
        shutil.copytree(TINY / name, folder / name)
    return folder
