"""`braingen prepare`."""

from __future__ import annotations

from pathlib import Path

from braingen.commands.base import Command
from braingen.config import Config


def run(config: Config) -> Path | None:
    """Convert raw NSD, or your own scans, to the layout that training reads."""
    from braingen.data.prepare_scans import prepare

    return prepare(config)


COMMAND = Command(
    name="prepare",
    run=run,
    group="data",
    place=1,
    sections=("prepare", "data"),
    own="prepare",
    takes_test_sets=True,
)
