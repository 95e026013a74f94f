"""How much memory a model works with, counted on the meta device: shapes without numbers.

Every operation of a forward or backward pass is run on tensors that have no memory; the bytes of
the tensors that live at the same time are added up. Attention counts as a fused kernel, which keeps
no matrix of weights, unless the plain one is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
import functools
import json
from typing import Any, NamedTuple, TypeVar
import weakref

from diffusers import AutoencoderKL, UNet2DConditionModel
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import CLIPVisionConfig

from braingen.generation.attention import Attention, use_attention
from braingen.generation.lora import add_lora, lora_parameters
from braingen.pretrained.hub import quiet
from braingen.targets.clip_image import CLIPImageEncoder

Found = TypeVar("Found")
META = torch.device("meta")
BIG_G = {
    "hidden_size": 1664,
    "intermediate_size": 8192,
    "num_hidden_layers": 48,
    "num_attention_heads": 16,
    "patch_size": 14,
    "projection_dim": 1280,
}
"""The image tower of ViT-bigG/14."""


class LiveBytes(TorchDispatchMode):
    """Adds up the bytes of the tensors that live at the same time.

    Parameters
    ----------
    kept : nn.Module
        Its weights are not counted: they are there before and after.
    """

    def __init__(self, kept: nn.Module) -> None:
        super().__init__()
        self._sizes: dict[int, int] = {}
        self._kept = {x.untyped_storage()._cdata for x in kept.state_dict().values()}
        self.now = self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for each in tree_leaves(out):
            if isinstance(each, Tensor):
                self._count(each)
        return out

    def _count(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._sizes or key in self._kept:
            return
        self._sizes[key] = storage.nbytes()
        self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._gone, key)

    def _gone(self, key: int) -> None:
        self.now -= self._sizes.pop(key, 0)


class _Fused(torch.autograd.Function):
    """Attention as a fused kernel: queries, keys, values and the output are kept for the backward
    pass, nothing else.
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        out = query.new_empty(*query.shape[:-1], value.shape[-1])
        ctx.save_for_backward(query, key, value, out)
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        return tuple(torch.empty_like(x) for x in ctx.saved_tensors[:3])


def _fused(query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> Tensor:
    return _Fused.apply(query, key, value)


@contextmanager
def counted(kept: nn.Module) -> Iterator[LiveBytes]:
    """Count what lives within the block, beside the weights of a model."""
    plain = nn.functional.scaled_dot_product_attention
    # by its name: a mode of torch would not be there when activations are computed again
    nn.functional.scaled_dot_product_attention = _fused  # type: ignore[assignment]
    try:
        with LiveBytes(kept) as live:
            yield live
    finally:
        nn.functional.scaled_dot_product_attention = plain


def cached_by_settings(function: Callable[..., Found]) -> Callable[..., Found]:
    """Cache by settings, which are given as dictionaries."""

    known: dict[Any, Found] = {}

    @functools.wraps(function)
    def wrapped(settings: dict[str, Any], *args: Any, **kwargs: Any) -> Found:
        plain = {key: value for key, value in settings.items() if not key.startswith("_")}
        text = json.dumps(plain, sort_keys=True)
        key = (text, args, tuple(sorted(kwargs.items())))
        if key not in known:
            known[key] = function(plain, *args, **kwargs)
        return known[key]

    return wrapped


def unet_on_meta(settings: dict[str, Any], dtype: torch.dtype) -> UNet2DConditionModel:
    """A U-Net by its configuration, without an IP-Adapter and without memory."""
    with META:
        unet = UNet2DConditionModel.from_config({**settings, "encoder_hid_dim_type": None})
    with quiet():
        return unet.to(dtype).requires_grad_(False).eval()


def unet_pass(unet: UNet2DConditionModel, rows: int, side: int, dtype: torch.dtype) -> Tensor:
    """A forward pass on the meta device, of latents of a side; its output."""
    settings, linear = unet.config, unet.add_embedding.linear_1
    # six numbers, or a refiner's five with a wider text: the shapes add up in either way
    width, each = linear.in_features, settings.addition_time_embed_dim  # type: ignore[union-attr]
    count = min(6, (width - 1) // each)  # type: ignore[operator]
    pooled = width - count * each  # type: ignore[operator]

    def empty(*shape: int, kind: torch.dtype = dtype) -> Tensor:
        return torch.empty(shape, device=META, dtype=kind)

    return unet(
        empty(rows, settings.in_channels, side, side),
        empty(kind=torch.float32),
        encoder_hidden_states=empty(rows, 77, settings.cross_attention_dim),
        added_cond_kwargs={
            "text_embeds": empty(rows, pooled),
            "time_ids": empty(rows, count, kind=torch.float32),
        },
    ).sample


@cached_by_settings
def unet_working_bytes(
    settings: dict[str, Any], rows: int, side: int, dtype: torch.dtype = torch.float32
) -> int:
    """Bytes that a forward pass of a U-Net works with.

    Parameters
    ----------
    settings : dict[str, Any]
        Its configuration.
    rows : int
        Of the pass: two per image under guidance.
    side : int
        Of the latents.
    """
    unet = unet_on_meta(settings, dtype)
    with torch.no_grad(), counted(unet) as live:
        unet_pass(unet, rows, side, dtype)
    return live.peak


class Tuning(NamedTuple):
    """What a fine-tuning works with."""

    working: int
    """Bytes of activations that are kept and of gradients of the LoRA, at the peak of a pass."""
    lora: int
    """Parameters of the LoRA."""


@cached_by_settings
def tuning_bytes(
    settings: dict[str, Any],
    rows: int,
    side: int,
    dtype: torch.dtype = torch.float32,
    rank: int = 16,
    checkpointing: bool = False,
    attention: Attention = "sdpa",
) -> Tuning:
    """What a forward and backward pass of a U-Net with a LoRA works with.

    A rank of 0, with which routers alone are trained, counts as a LoRA of rank 1.
    """
    unet = unet_on_meta(settings, dtype)
    use_attention(unet, attention)
    with META:
        add_lora(unet, max(1, rank))
    for parameter in lora_parameters(unet).values():
        parameter.data = parameter.data.float()
    numbers = sum(parameter.numel() for parameter in lora_parameters(unet).values())
    if checkpointing:
        unet.enable_gradient_checkpointing()
    unet.train()
    with counted(unet) as live:
        unet_pass(unet, rows, side, dtype).float().sum().backward()
    return Tuning(live.peak, numbers if rank else 0)


def vae_pass(vae: AutoencoderKL, images: int, side: int, decoding: bool) -> None:
    """Decode latents to images of a side, or encode images, on the meta device."""
    if not decoding:
        vae.encode(torch.empty(images, 3, side, side, device=META))
        return
    side = -(-side // 2 ** (len(vae.config.block_out_channels) - 1))
    vae.decode(torch.empty(images, vae.config.latent_channels, side, side, device=META))


@cached_by_settings
def vae_working_bytes(
    settings: dict[str, Any], images: int, side: int, decoding: bool = True
) -> int:
    """Bytes that an autoencoder in float32 works with.

    Parameters
    ----------
    images : int
        At once.
    side : int
        In pixels.
    decoding : bool, optional
        Latents to images, or the other way.
    """
    with META:
        vae = AutoencoderKL.from_config(settings)
    with torch.no_grad(), counted(vae) as live:
        vae_pass(vae, images, side, decoding)
    return live.peak


def clip_working_bytes(vision: CLIPVisionConfig | None, images: int) -> int:
    """Bytes that a CLIP image tower in float32 works with; ViT-bigG/14 for None."""
    vision = vision or CLIPVisionConfig(**BIG_G)  # type: ignore[arg-type]
    encoder = CLIPImageEncoder.on_meta(vision)
    with torch.no_grad(), counted(encoder) as live:
        encoder.model(
            pixel_values=torch.empty(images, 3, vision.image_size, vision.image_size, device=META)
        )
    return live.peak
