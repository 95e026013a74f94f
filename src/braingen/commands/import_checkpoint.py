"""`braingen import`."""

from __future__ import annotations

from pathlib import Path

from braingen.commands.base import Command
from braingen.config import Config


def run(config: Config, which: str) -> Path | None:
    """Import published checkpoints (MindEye2, MoRE-Brain) as run folders."""
    from braingen.compat.import_checkpoint import import_checkpoint

    return import_checkpoint(config, which)


COMMAND = Command(
    name="import",
    run=run,
    group="reference",
    place=0,
    sections=("run", "published", "data", "encoder", "prior"),
    choices=("image", "text", "finetune"),
    own="published",
)
