"""`braingen bottleneck`."""

from __future__ import annotations

from pathlib import Path

from braingen.commands.base import Command
from braingen.config import Config


def run(config: Config) -> Path | None:
    """Scores against the width of a bottleneck between brain and experts."""
    from braingen.experiments.bottleneck import bottleneck

    return bottleneck(config)


COMMAND = Command(
    name="bottleneck",
    summary="scores against the width of a bottleneck between brain and experts",
    run=run,
    group="experiments",
    place=3,
    sections=("run", "data", "bottleneck", "training"),
    own="bottleneck",
)
