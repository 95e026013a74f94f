"""`braingen refine`."""

from __future__ import annotations

from pathlib import Path

from braingen.commands.base import Command
from braingen.config import Config


def run(config: Config) -> Path | None:
    """Stage 4: refine finished reconstructions, image to image."""
    from braingen.generation.refine import refine

    return refine(config)


COMMAND = Command(
    name="refine",
    run=run,
    group="decoder",
    place=3,
    sections=("run", "backbone", "refinement"),
    own="refinement",
)
