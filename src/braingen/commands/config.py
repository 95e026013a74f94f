"""`braingen config`."""

from __future__ import annotations

from braingen.commands.base import Command
from braingen.commands.help import section_help, show
from braingen.config import Config
from braingen.config.shipped import FOLDER, shipped_configs


def run(config: Config) -> None:
    """List every setting with its default, allowed values and meaning."""
    lines = [line for section in Config.model_fields for line in section_help(section)]
    lines += [f"configurations in {FOLDER}", f"  --config NAME: {', '.join(shipped_configs())}"]
    lines += ["  accelerate launch --config_file FILE, for several GPUs:"]
    lines += [f"      {file}" for file in sorted(FOLDER.glob("accelerate/*.yaml"))]
    show("\n".join(lines))


COMMAND = Command(name="config", run=run, group="reference", place=2)
