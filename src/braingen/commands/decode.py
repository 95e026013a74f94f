"""`braingen decode`."""

from __future__ import annotations

from pathlib import Path

from braingen.commands.base import Command
from braingen.config import Config


def run(config: Config) -> Path | None:
    """Decode a file of voxels: embeddings and images."""
    from braingen.generation.decode import decode

    return decode(config)


COMMAND = Command(
    name="decode",
    run=run,
    group="decoder",
    place=4,
    sections=("run", "data", "backbone", "generation", "decode"),
    own="decode",
)
