"""What to lower when a command ran out of memory."""

from __future__ import annotations

from braingen.config import Config
from braingen.diagnostics.lowering import LOWER, advice
from braingen.diagnostics.needs import STAGES
from braingen.diagnostics.needs_by_data import DATA_STAGES, amounts_of
from braingen.diagnostics.resources import encoder_parameters, training_bytes
from braingen.diagnostics.summary import sizes_of
from braingen.runtime.errors import UserError
from braingen.runtime.weights import first_line

STAGE_OF = {
    "finetune": "fine-tune",
    "reconstruct": "generate",
    "decode": "generate",
    "refine": "refine",
    "precompute": "compute targets",
    "train low_level": "train low_level",
    "train encoding": "train encoding",
    "evaluate": "evaluate",
}
"""Stages of the tables by the commands that run them."""
TRAINING = (
    "train image",
    "train text",
    "cross-validate",
    "ablate",
    "adaptation-curve",
    "bottleneck",
    "demo",
)


def sentence(config: Config, command: str, error: BaseException) -> str:
    """Why a command ended, and what to lower."""
    reason = first_line(error)[:160].rstrip(".")
    return (
        f"There is not enough memory for `braingen {command}` ({reason}): {_what(config, command)}."
    )


def _what(config: Config, command: str) -> str:
    modalities = ("image", "text")
    try:
        sizes = sizes_of(config)
        if command in TRAINING:
            return advice(
                config,
                "train",
                lambda other: max(training_bytes(other, each, sizes)[0] for each in modalities),
            )
        if (stage := STAGE_OF.get(command)) in DATA_STAGES:
            count, amounts = DATA_STAGES[stage], amounts_of(config)
            image = encoder_parameters(config, sizes)
            return advice(
                config, stage, lambda other: count(other, sizes_of(other), amounts, image).total
            )
        if stage is not None:
            encoders = sum(encoder_parameters(config, sizes, each) for each in modalities)
            return advice(config, stage, lambda other: STAGES[stage](other, encoders).total)
    except (UserError, OSError, ValueError):
        names = LOWER.get("train" if command in TRAINING else STAGE_OF.get(command, ""))
        if names is not None and names(config):
            return f"lower {', '.join(names(config))}, or use a machine with more"
    return "use smaller batches, or a machine with more (`braingen doctor` lists what is needed)"
