"""`braingen evaluate`."""

from __future__ import annotations

from pathlib import Path

from braingen.commands.base import Command
from braingen.config import Config


def run(config: Config) -> Path | None:
    """Score the reconstructions, beside random voxels, an oracle and ridge, with intervals."""
    from braingen.evaluation.evaluate import evaluate

    return evaluate(config)


COMMAND = Command(
    name="evaluate",
    run=run,
    group="evaluation",
    place=0,
    sections=("run", "data", "evaluation"),
    own="evaluation",
    takes_test_sets=True,
)
