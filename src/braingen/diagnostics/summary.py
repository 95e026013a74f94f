"""Model cards: parameters by part of every encoder, prior and diffusion router."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import nn

from braingen.config import Config
from braingen.config.encoders import (
    ENCODER_CONFIGS,
    BrainEncoderConfig,
    CaptionTarget,
    settings_for,
)
from braingen.config.kinds import SPACE_ROUTERS, TIME_ROUTERS, reading_latents
from braingen.config.shipped import backbone_folder
from braingen.data import nsd
from braingen.data.betas import Betas
from braingen.encoders.base import encoder_class
from braingen.encoders.parameters import adapting_parameters, count_by_part, idle_parameters
from braingen.encoders.prior.diffusion_prior import DiffusionPrior
from braingen.pretrained.loading import load_config
from braingen.routing.diffuse_router import DiffuseRouter
from braingen.runtime.data_layout import Layout
from braingen.runtime.errors import UserError
from braingen.targets.clip_image import target_shape, vision_config
from braingen.targets.clip_text import FOLDERS, PARTS

PUBLISHED_IMAGE = {
    "pooled": (1, 1280, 1664),
    "tokens": (256, 1280, 1664),
    "both": (257, 1280, 1664),
}
"""Tokens, and width with and without projection, of ViT-bigG/14 at 224 pixels, for when its
configuration is not available.
"""
PUBLISHED_TEXT = {"L": 768, "bigG": 1280}
PUBLISHED_LENGTH = 77
LAYOUTS: dict[str, dict[str, Any]] = {
    "as configured": {},
    "published layout": {"routing": "expert_choice", "trunk": "published"},
    "linear heads": {"head": "linear"},
}
"""Settings that override the configuration's."""


class Sizes(NamedTuple):
    """Sizes of data and backbone."""

    subjects: dict[str, int]
    """Subject number -> voxels."""
    image: tuple[int, int]
    """T and D of the image embedding."""
    text: tuple[int, int]
    text_widths: dict[str, int]
    """D of SDXL's two text encoders."""
    sources: tuple[str, ...]
    """Where the sizes come from, for the reader of the summary."""


class Card(NamedTuple):
    """A model and its size."""

    name: str
    parts: dict[str, int]
    """Parameters by part."""
    idle: int
    """Parameters that cannot change the output."""
    adapting: int | None
    """Parameters trained for a new subject: its subject layer and the routers; else None."""

    @property
    def total(self) -> int:
        return sum(self.parts.values())


def card(name: str, model: nn.Module, subject: str | None = None) -> Card:
    """Make the card of a model on any device.

    Parameters
    ----------
    subject : str | None, optional
        Subject whose layer is adapted, for an encoder.
    """
    idle = sum(dict(model.named_parameters())[key].numel() for key in idle_parameters(model))
    adapting = (
        None
        if subject is None
        else sum(p.numel() for p in adapting_parameters(model, [int(subject)]).values())
    )
    return Card(name, count_by_part(model), idle, adapting)


def sizes_of(config: Config) -> Sizes:
    """Read voxels and widths from data and backbone, else use those of NSD, simulation or SDXL."""
    layout, tiny = Layout.of(config.data.root), config.backbone.path == "tiny"
    subjects, sources = {}, []
    for subject in config.data.subjects:
        if layout.betas(subject).exists():
            subjects[str(subject)] = Betas.of(layout, subject).voxels
            sources.append(f"voxels of subject {subject}: {layout.betas(subject)}")
        else:
            subjects[str(subject)] = (
                config.simulation.num_voxels
                if tiny
                else nsd.VOXELS.get(subject, config.simulation.num_voxels)
            )
            sources.append(
                f"voxels of subject {subject}: {'the simulation' if tiny else 'NSD'}"
                f" ({layout.betas(subject)} is not there)"
            )
    backbone = backbone_folder(config.backbone.path)
    choice = config.backbone
    try:
        vision = vision_config(choice.image_encoder or backbone, local_files_only=True)
        image = target_shape(vision, choice.image_output, choice.image_projected)
        sources.append(f"image embedding: configuration of {choice.image_encoder or backbone}")
    except UserError:
        tokens, projected, plain = PUBLISHED_IMAGE[choice.image_output]
        image = (tokens, projected if choice.image_projected else plain)
        sources.append("image embedding: ViT-bigG/14 (its configuration is not available)")
    try:
        towers = {
            name: load_config(backbone, subfolder=FOLDERS[name][0], local_files_only=True)
            for name in PUBLISHED_TEXT
        }
        widths = {name: tower.hidden_size for name, tower in towers.items()}
        length = towers["bigG"].max_position_embeddings
        sources.append(f"text embedding: configuration of {backbone}")
    except UserError:
        widths, length = PUBLISHED_TEXT, PUBLISHED_LENGTH
        sources.append("text embedding: SDXL's encoders (their configuration is not available)")
    text = (
        length if choice.text_tokens == "all" else 1,
        sum(widths[name] for name in PARTS[choice.text_output]),
    )
    return Sizes(subjects, image, text, widths, tuple(sources))


def encoder_cards(config: Config, sizes: Sizes) -> Iterator[Card]:
    """Yield cards of every encoder in every layout, and of the dense one for captions."""
    subject = next(iter(sizes.subjects))
    tokens, width = sizes.image

    def build(kind: str, target: tuple[int, int], arguments: dict[str, Any]) -> nn.Module:
        return encoder_class(kind)(
            subjects=sizes.subjects, clip_seq_dim=target[0], clip_emb_dim=target[1], **arguments
        )

    seen = set()
    for kind, known in ENCODER_CONFIGS.items():
        for layout, changes in LAYOUTS.items():
            published = layout == "published layout"
            if published and not known.published_head:
                continue
            if published:
                changes = {**changes, "head": known.published_head}
            changes = {name: value for name, value in changes.items() if name in known.model_fields}
            variants = [("", changes)]
            for name, part in known.optional_parts.items():
                if not getattr(config.encoder, name, False):
                    variants.append((f", {part}", {**changes, name: True}))
            for note, options in variants:
                arguments = settings_for(kind, config.encoder, **options).arguments()
                built = f"{kind} {arguments}"
                if built not in seen:  # the configuration may equal one of the layouts
                    seen.add(built)
                    yield card(
                        f"{kind}, {layout}{note}: image {tokens} x {width}",
                        build(kind, sizes.image, arguments),
                        subject,
                    )
    for output, names in PARTS.items():
        for fusion in ("none", "early", "mid", "late") if output == "joint" else ("none",):
            target = (sizes.text[0], sum(sizes.text_widths[name] for name in names))
            settings = BrainEncoderConfig.model_validate(
                settings_for("BrainEncoder", config.encoder).model_dump()
                | {"fusion": fusion, "train_pool": False}
            )
            arguments = settings.arguments(CaptionTarget(output, list(sizes.text_widths.values())))
            note = f", {fusion} fusion" if fusion != "none" else ""
            yield card(
                f"BrainEncoder: text {output} {target[0]} x {target[1]}{note}",
                build("BrainEncoder", target, arguments),
                subject,
            )


def other_cards(config: Config, sizes: Sizes) -> Iterator[Card]:
    """Yield cards of both priors, and of every diffusion router."""
    prior = config.prior.model_dump(exclude={"use_prior", "use", "sample_steps", "guidance_scale"})
    for name, (tokens, width) in (("image", sizes.image), ("text", sizes.text)):
        yield card(
            f"DiffusionPrior: {name} {tokens} x {width}", DiffusionPrior(width, tokens, **prior)
        )
    levels = config.encoder.experts
    tokens, width = sizes.image
    wanted = config.router
    shared: dict[str, Any] = {"num_experts": levels, "clip_emb_dim": width, "clip_seq_dim": tokens}
    shared |= {"time_hidden_dim": wanted.time_hidden_dim}
    shared |= {"space_grid": wanted.space_grid or 64, "time_context_size": wanted.space_grid or 64}
    for time, context in [
        *((time, False) for time in TIME_ROUTERS if time != "off"),
        *((time, True) for time in reading_latents(TIME_ROUTERS, "optional")),
    ]:
        note = " with context" if context else ""
        yield card(
            f"DiffuseRouter: time {time}{note}, space off",
            DiffuseRouter(time=time, space="off", time_context=context, **shared),
        )
    for space in SPACE_ROUTERS:
        if space != "off":
            yield card(
                f"DiffuseRouter: time off, space {space}",
                DiffuseRouter(time="off", space=space, **shared),
            )
    own = f"DiffuseRouter as configured: time {wanted.time}, space {wanted.space}"
    yield card(
        own,
        DiffuseRouter(
            time=wanted.time, space=wanted.space, time_context=wanted.time_context, **shared
        ),
    )


def cards_of(config: Config) -> list[Card]:
    """Make all cards on the meta device."""
    sizes = sizes_of(config)
    with torch.device("meta"):
        return [*encoder_cards(config, sizes), *other_cards(config, sizes)]


def text_of(card: Card) -> str:
    """Format a card."""
    lines = [f"{card.total:>15,}  {card.name}"]
    lines += [f"{count:>15,}      {part}" for part, count in card.parts.items()]
    if card.idle:
        lines.append(
            f"{card.idle:>15,}      of these idle: without influence on the output, kept for"
            " published checkpoints, not trained"
        )
    if card.adapting is not None:
        lines.append(
            f"{card.adapting:>15,}      trained for a new subject, its layer and the routers:"
            f" {card.adapting / card.total:.1%}"
        )
    return "\n".join(lines)


def models(config: Config) -> None:
    """Print the cards."""
    sizes = sizes_of(config)
    print("\n".join(sizes.sources), end="\n\n")
    print("\n\n".join(text_of(one) for one in cards_of(config)))
    print(
        "\nPublished counts of a prior hold its 16 rotary frequencies as well; they are constants"
        " here."
    )
