"""`braingen bottleneck`."""

from __future__ import annotations

from pathlib import Path

from braingen.commands.base import Command
from braingen.config import Config


def run(config: Config) -> Path | None:
    """Score decoders with bottlenecks of several widths between brain and experts."""
    from braingen.experiments.bottleneck import bottleneck

    return bottleneck(config)


COMMAND = Command(
    name="bottleneck",
    run=run,
    group="experiments",
    place=3,
    sections=("run", "data", "bottleneck", "training"),
    own="bottleneck",
)
