"""`braingen demo`."""

from __future__ import annotations

from pathlib import Path

from braingen.commands.base import Command
from braingen.config import Config


def run(config: Config) -> Path | None:
    """Run the whole pipeline on a simulated subject, up to the report."""
    from braingen.demo.flow import demo

    return demo(config)


COMMAND = Command(
    name="demo",
    run=run,
    group="start",
    place=1,
    sections=("run", "data", "simulation", "encoder", "training", "generation"),
    config="simulated",
)
