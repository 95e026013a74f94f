"""Convert shared LoRA files to one form: diffusers' names with alpha = rank.

::

    unet.A.lora_A.weight, unet.A.lora_B.weight          diffusers (what is written here)
    unet.A.lora.down.weight, unet.A.lora.up.weight      diffusers, older; a file may hold both
    base_model.model.A.lora_A.weight                    peft (adapter_model.safetensors, with
                                                        adapter_config.json beside it)
    A.processor.to_q_lora.down.weight                   diffusers, older (attention processors)
    lora_unet_A_B.lora_down.weight, lora_unet_A_B.alpha
        kohya, also with the block names of Stability's code (input_blocks_4_1)

Other adapters (DoRA, LoHa, LoKr, LoCon's middle factors, biases) are refused by kind.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
import json
from pathlib import Path
import re
from typing import Any, NamedTuple

from diffusers import UNet2DConditionModel
from safetensors import SafetensorError, safe_open
import torch
from torch import Tensor, nn

from braingen.runtime.errors import UserError
from braingen.runtime.text_files import read_json
from braingen.runtime.weights import read_tensors

GET_IT = "give a LoRA of an SDXL U-Net, as .safetensors or .bin"
OTHER_KINDS = {
    "a DoRA": ("lora_magnitude_vector", "dora_scale"),
    "a LoHa": ("hada_",),
    "a LoKr": ("lokr_",),
    "an OFT": ("oft_",),
    "a LoCon with middle factors": ("lora_mid",),
    "a LoRA with biases": (
        "lora_B.bias",
        "lora_up.bias",
        "lora_down.bias",
        "lora_A.bias",
        ".diff_b",
    ),
}
"""Adapters that are not sums of low-rank products, by parts of their keys."""
TEXT_ENCODER = re.compile(r"^(text_encoder|lora_te|te\d?_|text_model)")
_FACTOR = re.compile(
    r"^(?P<module>.+?)[._]lora[._](?P<factor>down|up|A|B)(?:\.default(?:_\d+)?)?\.weight$"
)
_PREFIX = re.compile(r"^(?:unet\.)?(?:base_model\.model\.)?(?:unet\.)?")
_PROCESSOR = re.compile(
    r"\.processor\.(to_[qkv]|to_out)(?:_lora)?$|\.processor\.(to_[qkv]|to_out)$"
)
_RESNET = {
    "in_layers_2": "conv1",
    "emb_layers_1": "time_emb_proj",
    "out_layers_3": "conv2",
    "skip_connection": "conv_shortcut",
}


class LoraFile(NamedTuple):
    """A LoRA in the common form."""

    weights: dict[str, Tensor]
    """``unet.A.lora_A.weight`` (R x inputs) and ``unet.A.lora_B.weight`` (outputs x R); R is the
    same everywhere, and alpha is R.
    """
    kind: str
    """Naming convention of the file."""
    left_out: int
    """Number of text encoder weights, which are not used."""


class _Pair(NamedTuple):
    down: Tensor
    up: Tensor


def read_lora(path: Path | str, unet: nn.Module | None) -> LoraFile:
    """Read a LoRA in any of the supported forms.

    Parameters
    ----------
    path : Path | str
        .safetensors, or a pickle of tensors (.bin, .pt).
    unet : nn.Module | None
        The U-Net it adapts, possibly on the meta device: every weight must fit it. None where it is
        not available.

    Raises
    ------
    UserError
        When it is missing, damaged, holds NaN, another kind of adapter or none, or was made for
        another U-Net.
    """
    path = Path(path)
    tensors = read_tensors(path, GET_IT)
    for kind, marks in OTHER_KINDS.items():
        found = [key for key in tensors if any(mark in key for mark in marks)]
        if found:
            raise UserError(
                f"{path} is {kind} ({found[0]}), a plain LoRA was expected: convert it, or"
                " fine-tune without it."
            )
    own = {key: value for key, value in tensors.items() if not TEXT_ENCODER.match(key)}
    kohya = any(key.startswith("lora_unet_") for key in own)
    if kohya and unet is None:
        raise UserError(
            f"{path} is named as kohya's trainer names LoRAs, which takes the U-Net to read:"
            " set backbone.path to a copy on this machine."
        )
    names = _modules_of(unet) if unet is not None else {}
    pairs, alphas, kind = _pairs(path, own, names, kohya)
    if not pairs:
        text = ""
        if len(own) < len(tensors):
            text = f" {len(tensors) - len(own)} weights are of text encoders, which are not used."
        raise UserError(
            f"{path} holds no LoRA of a U-Net (its entries: {', '.join(list(tensors)[:3])}).{text}"
            f" {GET_IT[:1].upper() + GET_IT[1:]}."
        )
    if unet is not None:
        pairs = {module: _fitting(path, module, pair, names) for module, pair in pairs.items()}
    scales = _scales(path, pairs, alphas)
    rank = max(len(pair.down) for pair in pairs.values())
    weights: dict[str, Tensor] = {}
    for module, pair in pairs.items():
        # zero rows add nothing: one rank everywhere, so that alpha is the same everywhere
        missing = rank - len(pair.down)
        down = torch.cat([pair.down, pair.down.new_zeros(missing, *pair.down.shape[1:])])
        up = pair.up * scales[module]
        up = torch.cat([up, up.new_zeros(len(up), missing, *up.shape[2:])], dim=1)
        weights[f"unet.{module}.lora_A.weight"] = down.contiguous()
        weights[f"unet.{module}.lora_B.weight"] = up.to(pair.up.dtype).contiguous()
    return LoraFile(weights, kind, len(tensors) - len(own))


def _modules_of(unet: nn.Module) -> dict[str, torch.Size]:
    """Shapes of all modules that a LoRA can adapt, by their names in the plain U-Net."""
    found = {}
    for name, parameter in unet.named_parameters():
        if ".lora_" not in name and name.endswith(".weight") and parameter.ndim in (2, 4):
            found[name.removesuffix(".weight").removesuffix(".base_layer")] = parameter.shape
    return found


def _pairs(
    path: Path, tensors: Mapping[str, Tensor], names: Mapping[str, torch.Size], kohya: bool
) -> tuple[dict[str, _Pair], dict[str, float], str]:
    """Return factors by module, the alphas in the file, and the naming convention."""
    flat = {name.replace(".", "_"): name for name in names}
    factors: dict[str, dict[str, Tensor]] = {}
    alphas: dict[str, float] = {}
    kind, strange = "diffusers'", []
    for key, value in tensors.items():
        if key.endswith(".alpha"):
            alphas[_module(key.removesuffix(".alpha"), flat, kohya)] = float(value)
            continue
        match = _FACTOR.match(key)
        if match is None:
            strange.append(key)
            continue
        kind = "kohya's" if kohya else "peft's" if "base_model." in key else kind
        which = {"A": "down", "B": "up"}.get(match["factor"], match["factor"])
        factors.setdefault(_module(match["module"], flat, kohya), {})[which] = value
    if strange and factors:
        raise UserError(
            f"{path}: {len(strange)} entries are no factors of a LoRA (first: {strange[0]});"
            f" {GET_IT}."
        )
    single = [module for module, both in factors.items() if len(both) < 2]
    if single:
        raise UserError(
            f"{path}: {len(single)} modules have one factor of two (first: {single[0]}); get the"
            " file again."
        )
    pairs = {module: _Pair(both["down"], both["up"]) for module, both in factors.items()}
    for module, pair in pairs.items():
        if pair.down.ndim < 2 or pair.up.ndim < 2 or len(pair.down) != pair.up.shape[1]:
            raise UserError(
                f"{path}: the factors of {module} are {tuple(pair.down.shape)} and"
                f" {tuple(pair.up.shape)}, of different ranks; get the file again."
            )
    return pairs, alphas, kind


def _module(key: str, flat: Mapping[str, str], kohya: bool) -> str:
    """Name of the U-Net's module, from the part of a key before the factor."""
    if kohya:
        name = key.removeprefix("lora_unet_").removesuffix(".lora").removesuffix("_lora")
        return flat.get(name) or flat.get(_of_stability(name), name)
    name = _PREFIX.sub("", key).removesuffix(".lora")
    older = _PROCESSOR.search(name)
    if older:
        part = older[1] or older[2]
        name = f"{name[: older.start()]}.{'to_out.0' if part == 'to_out' else part}"
    return name


def _of_stability(name: str) -> str:
    """Convert a block name of Stability's code to diffusers' (two layers per block, as in SDXL)."""
    match = re.match(r"(input_blocks|output_blocks)_(\d+)_(\d+)_(.+)|middle_block_(\d+)_(.+)", name)
    if match is None:
        return name
    if match[5] is not None:
        middle, rest = int(match[5]), match[6]
        return (
            f"mid_block_attentions_0_{rest}"
            if middle == 1
            else f"mid_block_resnets_{middle // 2}_{_RESNET.get(rest, rest)}"
        )
    number, part, rest = int(match[2]), int(match[3]), match[4]
    number -= match[1] == "input_blocks"
    block, layer = divmod(number, 3)
    place = f"{'down' if match[1] == 'input_blocks' else 'up'}_blocks_{block}"
    if match[1] == "input_blocks" and layer == 2:
        return f"{place}_downsamplers_0_conv"
    if rest == "conv":
        return f"{place}_upsamplers_0_conv"
    return (
        f"{place}_attentions_{layer}_{rest}"
        if part == 1
        else f"{place}_resnets_{layer}_{_RESNET.get(rest, rest)}"
    )


def _fitting(path: Path, module: str, pair: _Pair, names: Mapping[str, torch.Size]) -> _Pair:
    """Reshape the factors to the module's shape: kohya stores linear maps as 1 x 1 convolutions."""
    shape = names.get(module)
    if shape is not None and len(shape) == 2:
        pair = _Pair(*(x.flatten(1) if x.ndim == 4 and x.shape[2:] == (1, 1) else x for x in pair))
    if shape is not None and len(shape) == 4:
        pair = _Pair(*(x[:, :, None, None] if x.ndim == 2 else x for x in pair))
    if shape is None or pair.down.shape[1:] != shape[1:] or pair.up.shape[:1] != shape[:1]:
        found = f"{pair.up.shape[0]} x {pair.down.shape[1]}"
        wanted = "which it has not" if shape is None else f"which is {shape[0]} x {shape[1]}"
        raise UserError(
            f"The LoRA in {path} does not fit this U-Net: it adapts {module} ({found}), {wanted}."
            " It was made for another U-Net: name that one with backbone.path."
        )
    return pair


def _scales(
    path: Path, pairs: Mapping[str, _Pair], alphas: Mapping[str, float]
) -> dict[str, float]:
    """Return alpha / rank of every module, 1 where no alpha is given.

    The alpha is in the file, its header, or peft's adapter_config.json.
    """
    stated = _header(path)
    general, rooted = stated.get("lora_alpha"), bool(stated.get("use_rslora"))
    patterns = {name: float(value) for name, value in (stated.get("alpha_pattern") or {}).items()}
    if stated.get("use_dora"):
        raise UserError(f"{path} is a DoRA by its settings, a plain LoRA was expected.")

    def one(module: str, rank: int) -> float:
        by_pattern = next(
            (
                value
                for name, value in patterns.items()
                if module == name or module.endswith(f".{name}")
            ),
            general,
        )
        alpha = alphas.get(module, by_pattern)
        return 1.0 if alpha is None else float(alpha) / (rank**0.5 if rooted else rank)

    return {module: one(module, len(pair.down)) for module, pair in pairs.items()}


def _header(path: Path) -> dict[str, Any]:
    """Read the adapter's settings: diffusers' in the file's header, peft's beside it."""
    beside = path.with_name("adapter_config.json")
    if beside.is_file():
        found = read_json(beside, "restore it")
        return found if isinstance(found, dict) else {}
    if path.suffix != ".safetensors":
        return {}
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get("lora_adapter_metadata")
        found = json.loads(text) if text else {}
    except (SafetensorError, ValueError, OSError, RecursionError):
        return {}
    return (
        {
            key.removeprefix("unet."): value
            for key, value in found.items()
            if key.startswith("unet.")
        }
        if isinstance(found, dict)
        else {}
    )


def unet_on_meta(settings: Mapping[str, Any]) -> UNet2DConditionModel:
    """Build a U-Net on the meta device, for the names and shapes of its modules."""
    with torch.device("meta"):
        return UNet2DConditionModel.from_config(dict(settings))


def left_out(file: LoraFile) -> Iterator[str]:
    """Yield remarks on the file that was read."""
    yield f"LoRA in {file.kind} names: {len(file.weights) // 2} adapted maps"
    if file.left_out:
        yield (
            f"{file.left_out} weights of text encoders are ignored: images are generated from"
            " decoded embeddings, not from prompts"
        )
