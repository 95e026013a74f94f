"""`braingen train`."""

from __future__ import annotations

from pathlib import Path

from braingen.commands.base import Command
from braingen.config import Config


def run(config: Config, which: str) -> Path | None:
    """Stage 1: learn to read CLIP embeddings out of voxels."""
    from braingen.training.encoder import train

    return train(config, which)


COMMAND = Command(
    name="train",
    summary="stage 1: learn to read CLIP embeddings out of voxels",
    run=run,
    group="decoder",
    place=0,
    sections=("run", "data", "backbone", "encoder", "prior", "loss_image", "loss_text", "training"),
    choices=("image", "text"),
    own="training",
)
