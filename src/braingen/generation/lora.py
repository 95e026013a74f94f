"""Low-rank adapters (LoRA) of the U-Net in diffusers' file format.

peft makes them through diffusers, so ``StableDiffusionXLPipeline.load_lora_weights`` loads the
files that are saved here, and vice versa.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from diffusers import StableDiffusionXLPipeline, UNet2DConditionModel
from diffusers.utils import convert_state_dict_to_diffusers
from peft import LoraConfig, get_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer
import torch
from torch import Tensor, nn

from braingen.generation.lora_files import read_lora
from braingen.runtime.errors import UserError
from braingen.runtime.weights import plain_text

TARGETS = ("to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2")
"""Adapted modules (published). The IP-Adapter's own maps (to_k_ip, to_v_ip) are not adapted."""
LORA_FILE = "pytorch_lora_weights.safetensors"
"""Diffusers' name."""
ADAPTER = "default"
"""Name of the adapter inside the U-Net, peft's own."""


def add_lora(unet: UNet2DConditionModel, rank: int, seed: int = 0) -> None:
    """Add a LoRA with alpha = rank, a Gaussian factor and a zero factor (published).

    Parameters
    ----------
    unet : UNet2DConditionModel
        With or without an IP-Adapter; its own weights are frozen.
    rank : int
        Of every pair of factors.
    seed : int, optional
        Of the Gaussian factor.

    Raises
    ------
    UserError
        If the U-Net has a LoRA already.
    """
    if has_lora(unet):
        raise UserError("the U-Net has a LoRA already; start from a backbone without one")
    unet.requires_grad_(False)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        unet.add_adapter(
            LoraConfig(
                r=rank, lora_alpha=rank, init_lora_weights="gaussian", target_modules=list(TARGETS)
            ),
            ADAPTER,
        )


def has_lora(unet: nn.Module) -> bool:
    """Whether there is a LoRA in the U-Net, merged or not."""
    return any(isinstance(module, BaseTunerLayer) for module in unet.modules())


def lora_parameters(unet: nn.Module) -> dict[str, nn.Parameter]:
    """The LoRA's parameters by name."""
    return {name: parameter for name, parameter in unet.named_parameters() if ".lora_" in name}


def lora_weights(unet: UNet2DConditionModel) -> dict[str, Tensor]:
    """The LoRA's weights under diffusers' keys, without the prefix ``unet.``."""
    return convert_state_dict_to_diffusers(get_peft_model_state_dict(unet, adapter_name=ADAPTER))


def save_lora(unet: UNet2DConditionModel, folder: Path | str) -> Path:
    """Write the LoRA for a stock Stable Diffusion XL pipeline (``load_lora_weights(folder)``)."""
    weights = {key: value.detach().contiguous() for key, value in lora_weights(unet).items()}
    StableDiffusionXLPipeline.save_lora_weights(folder, unet_lora_layers=weights)
    return Path(folder) / LORA_FILE


def load_lora(unet: UNet2DConditionModel, file: Path | str) -> None:
    """Add a saved LoRA to a U-Net that has none.

    Raises
    ------
    UserError
        If there is no such file, or it holds nothing that fits this U-Net.
    """
    path = Path(file) / LORA_FILE if Path(file).is_dir() else Path(file)
    if not path.is_file():
        raise UserError(
            f"There is no LoRA in {file}: expected {LORA_FILE}, as `braingen finetune` writes it."
        )
    weights = read_lora(path, unet).weights
    try:
        unet.load_lora_adapter(dict(weights), prefix="unet", adapter_name=ADAPTER)
    except (RuntimeError, ValueError, LookupError) as error:
        raise UserError(
            f"The LoRA in {path} was made for another U-Net: {plain_text(error, 300)}"
        ) from error
    placed = {name for name, module in unet.named_modules() if isinstance(module, BaseTunerLayer)}
    wanted = {key.removeprefix("unet.").partition(".lora_")[0] for key in weights}
    if placed != wanted:
        raise UserError(
            f"The LoRA in {path} does not fit this U-Net: {len(placed ^ wanted)} of its maps have"
            f" no counterpart (first: {sorted(placed ^ wanted)[0]})."
        )
    unet.requires_grad_(False)


def is_fused(unet: nn.Module) -> bool:
    """Whether a LoRA is part of the weights that it adapts."""
    return any(isinstance(module, BaseTunerLayer) and module.merged for module in unet.modules())


@contextmanager
def merged_lora(unet: UNet2DConditionModel) -> Iterator[None]:
    """Fuse the LoRA into the weights that it adapts (diffusers' ``fuse_lora``); take it out at the
    end.

    Routers permit it: they mix what the U-Net is conditioned on, and one LoRA serves all levels and
    steps. Training does not, since a fused LoRA has no gradient. It does nothing when nested, or
    for a U-Net without a LoRA.
    """
    if not has_lora(unet) or is_fused(unet):
        yield
        return
    unet.fuse_lora()
    try:
        yield
    finally:
        unet.unfuse_lora()
