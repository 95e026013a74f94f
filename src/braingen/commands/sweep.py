"""`braingen sweep`."""

from __future__ import annotations

from pathlib import Path

from braingen.commands.base import Command
from braingen.config import Config


def run(config: Config) -> Path | None:
    """Run commands for every combination of some settings: one table, here or on Slurm."""
    from braingen.experiments.sweep import sweep

    return sweep(config)


COMMAND = Command(
    name="sweep",
    run=run,
    group="experiments",
    place=4,
    sections=("run", "data", "sweep", "encoder", "training"),
    own="sweep",
)
