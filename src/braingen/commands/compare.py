"""`braingen compare`."""

from __future__ import annotations

from pathlib import Path

from braingen.commands.base import Command
from braingen.config import Config


def run(config: Config) -> Path | None:
    """Compare evaluated runs: paired differences with intervals, subjects and seeds summarised."""
    from braingen.evaluation.compare import compare_runs

    return compare_runs(config)


COMMAND = Command(
    name="compare",
    run=run,
    group="evaluation",
    place=1,
    sections=("run", "evaluation", "compare"),
    own="compare",
    words="compare.runs",
)
