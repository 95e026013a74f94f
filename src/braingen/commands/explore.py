"""`braingen explore`."""

from __future__ import annotations

from braingen.commands.base import Command
from braingen.config import Config


def run(config: Config) -> None:
    """Explore a decoder in the browser: images, levels, ablations, brain maps, two runs."""
    from braingen.explorer.serve import explore

    explore(config)


COMMAND = Command(
    name="explore",
    run=run,
    group="inside",
    place=1,
    sections=("run", "data", "generation", "explore"),
    own="explore",
    words="explore.runs",
)
