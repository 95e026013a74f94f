"""`braingen doctor`."""

from __future__ import annotations

from braingen.commands.base import Command
from braingen.config import Config


def run(config: Config) -> None:
    """Check data, backbones and machine: what is ready, what is missing, what to type."""
    from braingen.diagnostics.doctor import doctor

    doctor(config)


COMMAND = Command(
    name="doctor",
    run=run,
    group="start",
    place=2,
    sections=("doctor", "run", "data", "prepare", "backbone"),
    own="doctor",
)
