"""The machine a stage runs on."""

from __future__ import annotations

import torch

from braingen.config import Config
from braingen.errors import UserError


def device_of(config: Config) -> torch.device:
    """The device that ``run.device`` means here."""
    if config.run.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if config.run.device == "cuda" and not torch.cuda.is_available():
        raise UserError("run.device = cuda, but torch sees no GPU here: use --device cpu, or install torch for CUDA (see README).")
    return torch.device(config.run.device)


def precision_of(config: Config) -> str:
    """Accelerate's name for the number format of training: fp16 on a GPU, float32 on a CPU, unless told otherwise."""
    chosen = config.run.mixed_precision
    if chosen == "auto":
        return "fp16" if device_of(config).type == "cuda" else "no"
    return chosen
