"""`braingen report`."""

from __future__ import annotations

from pathlib import Path

from braingen.commands.base import Command
from braingen.config import Config


def run(config: Config) -> Path | None:
    """Write one HTML page of images, scores and curves."""
    from braingen.report.write import report

    return report(config)


COMMAND = Command(name="report", run=run, group="evaluation", place=3, sections=("run", "data"))
