"""`braingen ablate`."""

from __future__ import annotations

from pathlib import Path

from braingen.commands.base import Command
from braingen.config import Config


def run(config: Config) -> Path | None:
    """Measure what text, image, time and space routing each add (MoRE-Brain's table 2)."""
    from braingen.experiments.ablation_table import ablate

    return ablate(config)


COMMAND = Command(
    name="ablate",
    run=run,
    group="experiments",
    place=1,
    sections=("run", "data", "router", "lora", "finetune", "generation"),
)
