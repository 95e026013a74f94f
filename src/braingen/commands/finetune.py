"""`braingen finetune`."""

from __future__ import annotations

from pathlib import Path

from braingen.commands.base import Command
from braingen.config import Config


def run(config: Config) -> Path | None:
    """Stage 2: fine-tune the diffusion model with LoRA and routers."""
    from braingen.training.diffusion import finetune

    return finetune(config)


COMMAND = Command(
    name="finetune",
    run=run,
    group="decoder",
    place=1,
    sections=("run", "data", "backbone", "router", "lora", "finetune"),
    own="finetune",
)
