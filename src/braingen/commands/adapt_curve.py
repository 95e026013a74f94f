"""`braingen adapt-curve`."""

from __future__ import annotations

from pathlib import Path

from braingen.commands.base import Command
from braingen.config import Config


def run(config: Config) -> Path | None:
    """How well a new person is read from few sessions, after training on others or not."""
    from braingen.experiments.adaptation_curve import adapt_curve

    return adapt_curve(config)


COMMAND = Command(
    name="adapt-curve",
    summary="how well a new person is read from few sessions, after training on others or not",
    run=run,
    group="experiments",
    place=2,
    sections=("run", "data", "curve", "optim"),
    own="curve",
)
