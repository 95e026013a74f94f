"""`braingen adaptation-curve`."""

from __future__ import annotations

from pathlib import Path

from braingen.commands.base import Command
from braingen.config import Config


def run(config: Config) -> Path | None:
    """Train for a new subject on few sessions, with and without pretraining on others."""
    from braingen.experiments.adaptation_curve import adaptation_curve

    return adaptation_curve(config)


COMMAND = Command(
    name="adaptation-curve",
    run=run,
    group="experiments",
    place=2,
    sections=("run", "data", "adaptation_curve", "training"),
    own="adaptation_curve",
)
