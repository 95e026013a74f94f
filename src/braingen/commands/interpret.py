"""`braingen interpret`."""

from __future__ import annotations

from pathlib import Path

from braingen.commands.base import Command
from braingen.config import Config


def run(config: Config) -> Path | None:
    """Attribute decoded embeddings to voxels and experts; maps, tables and a page."""
    from braingen.interpret.run import interpret

    return interpret(config)


COMMAND = Command(
    name="interpret",
    run=run,
    group="inside",
    place=0,
    sections=("run", "data", "interpret"),
    own="interpret",
)
