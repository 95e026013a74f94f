"""`braingen simulate`."""

from __future__ import annotations

from pathlib import Path

from braingen.commands.base import Command
from braingen.config import Config


def run(config: Config) -> Path | None:
    """Write a simulated NSD with known truth, in NSD's file layout."""
    from braingen.simulation.dataset import simulate

    return simulate(config)


COMMAND = Command(
    name="simulate",
    run=run,
    group="data",
    place=0,
    sections=("data", "simulation"),
    own="simulation",
)
