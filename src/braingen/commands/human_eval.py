"""`braingen human-eval`."""

from __future__ import annotations

from pathlib import Path

from braingen.commands.base import Command
from braingen.config import Config


def run(config: Config, which: str) -> Path | None:
    """Human evaluation: build a study for any browser, check and analyse its results."""
    from braingen.human_eval.study import study

    return study(config, which)


COMMAND = Command(
    name="human-eval",
    summary="human evaluation: build a study for any browser, check and analyse its results",
    run=run,
    group="evaluation",
    place=2,
    sections=("run", "data", "human_eval"),
    choices=("build", "check", "analyse", "simulate"),
)
