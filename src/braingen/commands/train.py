"""`braingen train`."""

from __future__ import annotations

from pathlib import Path

from braingen.commands.base import Command
from braingen.config import Config


def run(config: Config, which: str) -> Path | None:
    """Stage 1: train an encoder that predicts CLIP embeddings, or VAE latents, from voxels; or fit
    an encoding model, from images to voxels.
    """
    if which == "encoding":
        from braingen.encoding_model.train import train_encoding

        return train_encoding(config)
    if which == "low_level":
        from braingen.training.low_level import train_low_level

        return train_low_level(config)
    from braingen.training.encoder import train

    return train(config, which)


COMMAND = Command(
    name="train",
    run=run,
    group="decoder",
    place=0,
    sections=(
        "run",
        "data",
        "backbone",
        "encoder",
        "prior",
        "loss_image",
        "loss_text",
        "low_level",
        "encoding",
        "training",
    ),
    choices=("image", "text", "low_level", "encoding"),
    own="training",
    own_of_choice={
        "image": ("training", "loss_image"),
        "text": ("training", "loss_text"),
        "low_level": ("low_level", "training"),
        "encoding": ("encoding",),
    },
)
