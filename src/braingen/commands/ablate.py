"""`braingen ablate`."""

from __future__ import annotations

from pathlib import Path

from braingen.commands.base import Command
from braingen.config import Config


def run(config: Config) -> Path | None:
    """The paper"s table 2: what text, image, time and space routing each add."""
    from braingen.experiments.ablation_table import ablate

    return ablate(config)


COMMAND = Command(
    name="ablate",
    summary="the paper's table 2: what text, image, time and space routing each add",
    run=run,
    group="experiments",
    place=1,
    sections=("run", "data", "router", "lora", "finetune", "generation"),
)
