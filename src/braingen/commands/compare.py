"""`braingen compare`."""

from __future__ import annotations

from pathlib import Path

from braingen.commands.base import Command
from braingen.config import Config


def run(config: Config) -> Path | None:
    """Evaluated runs beside each other: differences with intervals and tests, subjects and seeds
    summarised.
    """
    from braingen.evaluation.compare import compare_runs

    return compare_runs(config)


COMMAND = Command(
    name="compare",
    summary=(
        "evaluated runs beside each other: differences with intervals and tests, subjects and seeds"
        " summarised"
    ),
    run=run,
    group="evaluation",
    place=1,
    sections=("run", "evaluation", "compare"),
    own="compare",
    words="compare.runs",
)
