"""`braingen summary`."""

from __future__ import annotations

from braingen.commands.base import Command
from braingen.config import Config


def run(config: Config) -> None:
    """List encoders, priors and routers with their parameters, at the configured sizes."""
    from braingen.diagnostics.summary import models

    models(config)


COMMAND = Command(
    name="summary",
    run=run,
    group="reference",
    place=1,
    sections=("data", "backbone", "encoder", "prior", "router"),
)
