"""`braingen cross-validate`."""

from __future__ import annotations

from pathlib import Path

from braingen.commands.base import Command
from braingen.config import Config


def run(config: Config) -> Path | None:
    """Leave every image out once: scores of scans too few for a test set."""
    from braingen.experiments.cross_validation import cross_validate

    return cross_validate(config)


COMMAND = Command(
    name="cross-validate",
    run=run,
    group="experiments",
    place=0,
    sections=("run", "data", "prepare", "cross_validation", "encoder", "training"),
    own="cross_validation",
    config="own_scans",
)
