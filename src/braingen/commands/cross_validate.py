"""`braingen cross-validate`."""

from __future__ import annotations

from pathlib import Path

from braingen.commands.base import Command
from braingen.config import Config


def run(config: Config) -> Path | None:
    """Own scans too few for a test set: leave every picture out once, decode and score it."""
    from braingen.experiments.cross_validation import cross_validate

    return cross_validate(config)


COMMAND = Command(
    name="cross-validate",
    summary="own scans too few for a test set: leave every picture out once, decode and score it",
    run=run,
    group="experiments",
    place=0,
    sections=("run", "data", "prepare", "cross_validation", "encoder", "training"),
    own="cross_validation",
    config="own_scans",
)
