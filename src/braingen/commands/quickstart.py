"""`braingen quickstart`."""

from __future__ import annotations

from pathlib import Path

from braingen.commands.base import Command
from braingen.config import Config


def run(config: Config) -> Path | None:
    """Decode a dozen simulated test brains with the decoder that is installed with the package;
    seconds.
    """
    from braingen.demo.quickstart import quickstart

    return quickstart(config)


COMMAND = Command(
    name="quickstart",
    summary=(
        "decode a dozen simulated test brains with the decoder that is installed with the package;"
        " seconds"
    ),
    run=run,
    group="start",
    place=0,
    sections=("quickstart",),
    own="quickstart",
)
