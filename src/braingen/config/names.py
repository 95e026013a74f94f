"""What settings are called: their paths in the tree, flags people know, and the setting that a name
means.
"""

from __future__ import annotations

import difflib
from typing import cast

from pydantic.fields import FieldInfo

from braingen.config.encoders import ENCODER_CONFIGS
from braingen.config.tree import Config
from braingen.config.values import Section
from braingen.runtime.errors import UserError

ALIASES = {
    "model_name": "run.folder",
    "data_path": "data.root",
    "subj": "data.subjects",
    "multi_subject": "data.subjects",
    "num_sessions": "data.num_sessions",
    "seed": "run.seed",
    "model_name_image": "run.image",
    "model_name_text": "run.text",
    "lr": "training.max_lr",
    "batch_size": "training.batch_size",
    "guidance_scale": "generation.guidance_scale",
    "num_inference_steps": "generation.steps",
    "num_steps": "generation.steps",
    "steps": "generation.steps",
    "num_images": "generation.num_images",
    "size": "generation.size",
    "scheduler": "generation.scheduler",
    "use_image": "generation.use_image",
    "negative_prompt": "generation.negative_prompt",
    "blurry_recon": "encoder.low_level",
    **{name: f"encoder.{name}" for name in ("hidden_dim", "n_blocks", "dropout", "voxel_dropout")},
    "num_epochs": "training.num_epochs",
    "low_level": "encoder.low_level",
    "resolution": "finetune.resolution",
    "multisubject_ckpt": "training.init_from",
    "capacity_factor": "encoder.capacity_factor_0",
    "b_size": "encoder.bottleneck_dim",
}
"""Flags people know from MindEye2 and MoRE-Brain whose field has another name or whose name stands
in several sections.
"""
OWN_ALIASES = {
    "finetune": {
        "batch_size": "train_batch_size",
        "lr": "learning_rate",
        "max_lr": "learning_rate",
        "max_grad_norm": "clip_norm",
        "weight_decay": "adam_weight_decay",
    }
}
"""Section of a command -> flag -> field: what a known flag means to a command that has it under
another name.
"""
ALL = "all"
"""Value of data.subjects on the command line: every subject of the data folder."""


def variants_of(section: str) -> dict[str, type[Section]]:
    """The classes that a section may be of, by the name that chooses one; a single one, without a
    name, for most sections.
    """
    kind = Config.model_fields[section].annotation
    return dict(ENCODER_CONFIGS) if section == "encoder" else {"": cast(type[Section], kind)}


def fields_of(section: str) -> dict[str, FieldInfo]:
    """The settings of a section, those of all variants together, in order."""
    found: dict[str, FieldInfo] = {}
    for variant in variants_of(section).values():
        for name, info in variant.model_fields.items():
            found.setdefault(name, info)
    return found


def having(section: str, field: str) -> list[str]:
    """The variants of a section that have a setting."""
    return [name for name, variant in variants_of(section).items() if field in variant.model_fields]


def field_paths() -> list[str]:
    """Every setting as ``section.field``, in the order of the tree."""
    return [f"{section}.{name}" for section in Config.model_fields for name in fields_of(section)]


def resolve(name: str) -> str:
    """Find the setting that a name on the command line means.

    Parameters
    ----------
    name : str
        ``section.field``, a field whose name stands in one section only, or a known flag, without
        dashes.

    Raises
    ------
    UserError
        When it is none of these; the message names the nearest.
    """
    paths = field_paths()
    if name in paths:
        return name
    name = name.replace("-", "_")
    if name in ALIASES:
        return ALIASES[name]
    matches = [path for path in paths if path == name or path.split(".")[1] == name]
    if len(matches) == 1:
        return matches[0]
    if matches:
        raise UserError(
            f"--{name} could mean {' or '.join(matches)}: write one of them, for instance"
            f" {matches[0]}=VALUE."
        )
    known = {path: path for path in paths} | {path.split(".")[1]: path for path in paths} | ALIASES
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f"Did you mean {near[0]}?" if near else "`braingen config` lists all settings."
    raise UserError(f"There is no setting '{name}'. {hint}")
