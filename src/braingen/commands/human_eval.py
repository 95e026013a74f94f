"""`braingen human-eval`."""

from __future__ import annotations

from pathlib import Path

from braingen.commands.base import Command
from braingen.config import Config


def run(config: Config, which: str) -> Path | None:
    """Build a study for human raters, check its result files and analyse them."""
    from braingen.human_eval.study import study

    return study(config, which)


COMMAND = Command(
    name="human-eval",
    run=run,
    group="evaluation",
    place=2,
    sections=("run", "data", "human_eval"),
    choices=("build", "check", "analyse", "simulate"),
)
