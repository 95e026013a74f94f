"""`braingen quickstart`."""

from __future__ import annotations

from pathlib import Path

from braingen.commands.base import Command
from braingen.config import Config


def run(config: Config) -> Path | None:
    """Decode a dozen simulated test brains with the shipped decoder, in seconds."""
    from braingen.demo.quickstart import quickstart

    return quickstart(config)


COMMAND = Command(
    name="quickstart", run=run, group="start", place=0, sections=("quickstart",), own="quickstart"
)
