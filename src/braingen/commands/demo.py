"""`braingen demo`."""

from __future__ import annotations

from pathlib import Path

from braingen.commands.base import Command
from braingen.config import Config


def run(config: Config) -> Path | None:
    """The whole flow on a simulated subject, ending in a page of pictures."""
    from braingen.demo.flow import demo

    return demo(config)


COMMAND = Command(
    name="demo",
    summary="the whole flow on a simulated subject, ending in a page of pictures",
    run=run,
    group="start",
    place=1,
    sections=("run", "data", "simulation", "encoder", "training", "generation"),
    config="simulated",
)
