"""`braingen precompute`."""

from __future__ import annotations

from pathlib import Path

from braingen.commands.base import Command
from braingen.config import Config


def run(config: Config) -> Path | None:
    """Compute CLIP targets and VAE latents once, in any number of processes."""
    from braingen.diagnostics.precompute import cache

    return cache(config)


COMMAND = Command(
    name="precompute",
    run=run,
    group="data",
    place=2,
    sections=("precompute", "data", "backbone", "finetune"),
    own="precompute",
)
