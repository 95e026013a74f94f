"""`braingen finetune`."""

from __future__ import annotations

from pathlib import Path

from braingen.commands.base import Command
from braingen.config import Config


def run(config: Config) -> Path | None:
    """Stage 2: teach the diffusion model to listen (image=RUN text=RUN)."""
    from braingen.training.diffusion import finetune

    return finetune(config)


COMMAND = Command(
    name="finetune",
    summary="stage 2: teach the diffusion model to listen (image=RUN text=RUN)",
    run=run,
    group="decoder",
    place=1,
    sections=("run", "data", "backbone", "router", "lora", "finetune"),
    own="finetune",
)
