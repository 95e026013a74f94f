"""`braingen decode`."""

from __future__ import annotations

from pathlib import Path

from braingen.commands.base import Command
from braingen.config import Config


def run(config: Config) -> Path | None:
    """Embeddings and pictures of a file of voxels."""
    from braingen.generation.decode import decode

    return decode(config)


COMMAND = Command(
    name="decode",
    summary="embeddings and pictures of a file of voxels",
    run=run,
    group="decoder",
    place=4,
    sections=("run", "data", "backbone", "generation", "decode"),
    own="decode",
)
