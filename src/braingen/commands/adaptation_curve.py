"""`braingen adaptation-curve`."""

from __future__ import annotations

from pathlib import Path

from braingen.commands.base import Command
from braingen.config import Config


def run(config: Config) -> Path | None:
    """How well a new person is read from few sessions, after training on others or not."""
    from braingen.experiments.adaptation_curve import adaptation_curve

    return adaptation_curve(config)


COMMAND = Command(
    name="adaptation-curve",
    summary="how well a new person is read from few sessions, after training on others or not",
    run=run,
    group="experiments",
    place=2,
    sections=("run", "data", "adaptation_curve", "training"),
    own="adaptation_curve",
)
