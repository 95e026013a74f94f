"""Check that the frozen models fit each other, from configurations and file headers alone.

T tokens, D embedding width, C cross-attention columns of the U-Net.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

from diffusers import AutoencoderKL
from huggingface_hub import try_to_load_from_cache
from safetensors import SafetensorError, safe_open

from braingen.config import Config
from braingen.config.shipped import backbone_folder
from braingen.encoders.embedding_decoder import EmbeddingDecoder
from braingen.pretrained.hub import is_hub_name, located
from braingen.pretrained.loading import load_config
from braingen.pretrained.sdxl import (
    IP_ADAPTER_FILE,
    NO_ADAPTER,
    UNREADABLE,
    part_config,
    unet_config,
)
from braingen.routing.conditioning import ConditioningForm
from braingen.runtime.errors import UserError
from braingen.runtime.weights import read_tensors
from braingen.targets.clip_image import target_shape, vision_config
from braingen.targets.clip_text import FOLDERS, PARTS
from braingen.targets.text_form import HasTextForm

Part = Literal["image", "text", "other"]
PUBLISHED_ADAPTER = ("h94/IP-Adapter", 1280)
"""The IP-Adapter in the shipped configurations, and its width, for when it is not downloaded."""


class Incompatibility(NamedTuple):
    """Two parts whose widths do not fit."""

    part: Part
    """The encoder that it concerns."""
    sentence: str


class Adapter(NamedTuple):
    """Widths of an IP-Adapter."""

    embedding: int
    """D of the image embedding that it takes; T is 1."""
    columns: int | None
    """C of its U-Net; None where that is not known."""


def adapter_file(config: Config) -> Path | None:
    """Find the IP-Adapter's file, on this machine or in the hub's cache."""
    source = config.backbone.ip_adapter
    path = Path(source or Path(backbone_folder(config.backbone.path)) / "ip_adapter")
    for candidate in (path, path / "ip-adapter.safetensors", path / IP_ADAPTER_FILE):
        if candidate.is_file():
            return candidate
    if not is_hub_name(source):
        return None
    name, hub = located(source)
    try:
        cached = try_to_load_from_cache(name, IP_ADAPTER_FILE, **hub)
    except ValueError:  # not the name of a hub repository
        return None
    return Path(cached) if isinstance(cached, str) else None


def adapter_of(config: Config) -> Adapter | None:
    """Read the widths of the IP-Adapter; None without its file, or for another kind of adapter."""
    file = adapter_file(config)
    if file is None:
        name, width = PUBLISHED_ADAPTER
        return Adapter(width, None) if located(config.backbone.ip_adapter)[0] == name else None
    names = ("image_proj.proj.weight", "image_proj.norm.weight")
    try:
        if file.suffix == ".safetensors":
            with safe_open(file, framework="pt") as opened:
                shapes = [tuple(opened.get_slice(name).get_shape()) for name in names]
        else:
            found = read_tensors(file, "get it again")
            shapes = [tuple(found[name].shape) for name in names]
        return Adapter(shapes[0][1], shapes[1][0])
    except (SafetensorError, OSError, LookupError, UserError):
        return None  # faults of the file are reported where it is loaded


def incompatibilities(config: Config, local_files_only: bool = True) -> Iterator[Incompatibility]:
    """Yield every pair of parts that does not fit; parts without a configuration are skipped.

    Parameters
    ----------
    local_files_only : bool, optional
        Do not request the image encoder's configuration from the hub.
    """
    choice = config.backbone
    unet = unet_config(choice.path)
    columns = unet.get("cross_attention_dim")
    adapter = adapter_of(config) if choice.ip_adapter != NO_ADAPTER else None
    source = choice.image_encoder or backbone_folder(choice.path)
    if adapter is not None:
        try:
            vision = vision_config(source, local_files_only=local_files_only)
            tokens, width = target_shape(vision, choice.image_output, choice.image_projected)
            if (tokens, width) != (1, adapter.embedding):
                yield Incompatibility(
                    "image",
                    f"The image embedding of {source} is {tokens} x {width} (tokens x width;"
                    f" image_output={choice.image_output},"
                    f" image_projected={str(choice.image_projected).lower()}), and the IP-Adapter"
                    f" takes 1 x {adapter.embedding}: choose the image encoder the IP-Adapter was"
                    " made for, another backbone.ip_adapter, or, to train an encoder without"
                    f" generating images, backbone.ip_adapter={NO_ADAPTER}.",
                )
        except UserError:
            pass
        if columns and adapter.columns not in (None, columns):
            yield Incompatibility(
                "other",
                f"The IP-Adapter was made for a U-Net of {adapter.columns} cross-attention columns,"
                f" {choice.path} has {columns}: choose the one that was made for it,"
                " backbone.ip_adapter=PATH.",
            )
    yield from _text_misfits(config, unet)
    if choice.refiner:
        yield from _refiner_misfits(config)


def _text_misfits(config: Config, unet: dict[str, Any]) -> Iterator[Incompatibility]:
    choice, folder = config.backbone, backbone_folder(config.backbone.path)
    columns = unet.get("cross_attention_dim")
    try:
        towers = {
            name: load_config(folder, subfolder=FOLDERS[name][0], local_files_only=True)
            for name in PARTS[choice.text_output]
        }
    except UserError:
        towers = {}
    if towers and columns:
        width = sum(tower.hidden_size for tower in towers.values())
        if width > columns or (choice.text_output == "joint" and width != columns):
            yield Incompatibility(
                "text",
                f"The text embedding of {choice.path} is {width} wide"
                f" (text_output={choice.text_output}), its U-Net takes {columns} columns: choose"
                " another backbone.text_output, or text encoders that were made for this U-Net.",
            )
    try:
        vae = part_config(AutoencoderKL, choice.path, "vae", local_files_only=True)
    except UNREADABLE:
        vae = {}
    if vae and unet and vae.get("latent_channels") != unet.get("in_channels"):
        yield Incompatibility(
            "other",
            f"The autoencoder of {choice.path} makes latents of {vae.get('latent_channels')}"
            f" channels, its U-Net takes {unet.get('in_channels')}: give parts of one model.",
        )


def _refiner_misfits(config: Config) -> Iterator[Incompatibility]:
    """Yield a refiner that is narrower than the second text encoder, the only one it uses."""
    choice = config.backbone
    columns = unet_config(choice.refiner).get("cross_attention_dim")
    try:
        width = load_config(
            backbone_folder(choice.path), subfolder=FOLDERS["bigG"][0], local_files_only=True
        ).hidden_size
    except UserError:
        return
    if columns and columns < width:
        yield Incompatibility(
            "other",
            f"The decoded text embedding is {width} wide, the U-Net of"
            f" backbone.refiner={choice.refiner} takes {columns} columns: choose the refiner that"
            " was made for this base model.",
        )


def refuse_incompatible(
    config: Config, parts: tuple[Part, ...] = ("image", "text", "other"), fetch: bool = False
) -> None:
    """Refuse models that do not fit each other, before any computation.

    Parameters
    ----------
    parts : tuple[Part, ...], optional
        Parts that will be used.
    fetch : bool, optional
        Download the image encoder's configuration from the hub.

    Raises
    ------
    UserError
        With both widths of the first misfit.
    """
    for misfit in incompatibilities(config, local_files_only=not fetch):
        if misfit.part in parts:
            raise UserError(misfit.sentence)


def form_of_files(config: Config, text: HasTextForm) -> ConditioningForm | None:
    """The form of the U-Net's condition by its configuration and the IP-Adapter's file; None where
    they are not on this machine.
    """
    unet, adapter = unet_config(config.backbone.path), adapter_of(config)
    needed = (
        "cross_attention_dim",
        "projection_class_embeddings_input_dim",
        "addition_time_embed_dim",
    )
    if adapter is None or any(not isinstance(unet.get(name), int) for name in needed):
        return None
    columns, added, each = (unet[name] for name in needed)
    return ConditioningForm.of(
        text,
        cross_attention_dim=columns,
        pooled_dim=added - 6 * each,
        image_shape=(1, adapter.embedding),
    )


def refuse_other_widths(
    form: ConditioningForm, image: EmbeddingDecoder | None, text: EmbeddingDecoder | None
) -> None:
    """Refuse encoders whose embeddings have other widths than the U-Net and its IP-Adapter take.

    Raises
    ------
    UserError
        With both widths.
    """
    first, last = form.text_columns
    for name, embedding_decoder, tokens, width in (
        ("image", image, (form.image_shape[0],), form.image_shape[1]),
        ("text", text, (1, form.text_length), last - first),
    ):
        if embedding_decoder is None:
            continue
        found = embedding_decoder.mean_TD.shape
        if found[0] not in tokens or found[1] != width:
            allowed = " or ".join(f"{count} x {width}" for count in tokens)
            raise UserError(
                f"The {name} encoder predicts {found[0]} x {found[1]} (tokens x width), and the"
                f" U-Net is conditioned on {allowed}: name the run that was trained on this"
                f" backbone's {name} embedding, or the backbone it was trained on."
            )
