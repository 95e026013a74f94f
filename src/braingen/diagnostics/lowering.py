"""What may be lowered where a stage needs more memory than there is, and what that saves."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from braingen.config import Config, with_settings
from braingen.runtime.errors import UserError


def what_saves(
    config: Config, changes: Mapping[str, Any], total: Callable[[Config], int]
) -> list[tuple[str, int]]:
    """Settings that would lower a need by a twentieth or more, the largest saving first.

    Parameters
    ----------
    changes : Mapping[str, Any]
        Other values, by ``section.field``.
    total : Callable[[Config], int]
        The need of a configuration.
    """
    now, found = total(config), []
    for path, value in changes.items():
        section, _, field = path.partition(".")
        if getattr(getattr(config, section), field, None) in (None, value):
            continue
        try:
            saved = now - total(with_settings(config, section, {field: value}))
        except UserError:
            continue
        if saved > now / 20:
            shown = str(value).lower() if isinstance(value, bool) else value
            found.append((f"{path}={shown}", saved))
    return sorted(found, key=lambda each: -each[1])


LOWER: dict[str, Callable[[Config], dict[str, Any]]] = {
    "generate": lambda config: {
        "generation.batch_size": 1,
        "generation.size": 512,
        "generation.precision": "bfloat16",
        "generation.samples": 1,
    },
    "refine": lambda config: {
        "refinement.batch_size": 1,
        "refinement.size": 512,
        "generation.precision": "bfloat16",
    },
    "compute targets": lambda config: {"precompute.batch_size": 8},
    "train low_level": lambda config: {
        "low_level.hidden_dim": max(1, config.low_level.hidden_dim // 2),
        "low_level.resolution": 256,
        "training.batch_size": 1,
    },
    "train encoding": lambda config: {
        "encoding.library_size": 1000,
        "encoding.left_out_images": 500,
        "encoding.feature_width": 256,
    },
    "evaluate": lambda config: {},
    "train": lambda config: {
        "encoder.hidden_dim": max(1, config.encoder.hidden_dim // 2),
        "encoder.n_blocks": max(1, getattr(config.encoder, "n_blocks", 1) // 2),
        "encoder.head": "linear",
        "training.batch_size": 1,
    },
}
"""What may be lowered, by stage."""


CHECKPOINTING = ", set finetune.gradient_checkpointing=auto"


def advice(config: Config, stage: str, total: Callable[[Config], int]) -> str:
    """What helps a stage that does not fit, with what it saves; ends a sentence."""
    if stage == "fine-tune":  # a pass on the meta device takes seconds: none are compared
        checkpointing = "" if config.finetune.gradient_checkpointing else CHECKPOINTING
        return (
            f"lower finetune.train_batch_size (now {config.finetune.train_batch_size}, with more"
            f" finetune.gradient_accumulation_steps){checkpointing}, or use a machine with more"
        )
    saving = what_saves(config, LOWER[stage](config), total)
    if not saving:
        return "use a machine with more"
    named = ", ".join(f"{name} ({saved / 1e9:.1f} GB less)" for name, saved in saving[:3])
    return f"lower {named}, or use a machine with more"
