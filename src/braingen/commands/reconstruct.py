"""`braingen reconstruct`."""

from __future__ import annotations

from pathlib import Path

from braingen.commands.base import Command
from braingen.config import Config


def run(config: Config) -> Path | None:
    """Stage 3: generate the test images from brain activity."""
    from braingen.generation.reconstruct import reconstruct

    return reconstruct(config)


COMMAND = Command(
    name="reconstruct",
    run=run,
    group="decoder",
    place=2,
    sections=("run", "data", "backbone", "generation"),
    own="generation",
    takes_test_sets=True,
)
