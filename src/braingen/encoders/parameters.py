"""Trained, adapted, decayed and idle parameters of an encoder."""

from __future__ import annotations

from collections.abc import Iterable
import re
from typing import Any, NamedTuple

from torch import nn

from braingen.encoders.dense import TextBackbone
from braingen.encoders.experts import MixerTrunk, StackedLinear, StackedNorm
from braingen.encoders.feature_router import ExpertChoiceRouter, StaticRouter
from braingen.encoders.subject_layer import SubjectLayer

Named = dict[str, nn.Parameter]


PARTS = (
    (r"(^|\.)subject_layer\.", "subject layer"),
    (r"(^|\.)bottleneck\.", "bottleneck"),
    (r"(^|\.)meta_expert\.", "meta expert"),
    (r"(^|\.)router\.", "routers"),
    (r"(^|\.)(log_temper|into)\b", "estimates of experts"),
    (r"(^|\.)mixes\.", "mixing of experts"),
    (r"(^|\.)low_level\.", "low-level branch"),
    (r"(^|\.)intermediate\.", "intermediate heads"),
    (r"(^|\.)fusion_linears\.", "fusion"),
    (r"(^|\.)pool\.", "pooling"),
    (r"(^|\.)trunks?\.", "trunk"),
    (r"(^|\.)heads\.(\w+\.)?backbone\.", "CLIP tokens"),
    (r"(^|\.)heads\.(\w+\.)?clip\.", "projection heads"),
    (r"(^|\.)time_router\.", "time router"),
    (r"(^|\.)space_routers\.", "space routers"),
    (r"(^|\.)network\.(layers|relative_position|norm_out|out)\b", "transformer"),
    (r"(^|\.)network\.time\.", "time embedding"),
    (r"(^|\.)network\.", "positions and null tokens"),
    (r"(^|\.)levels\.\d+\.(queries|key|value|out)\b", "read-out of experts"),
    (r"(^|\.)(blocks|norm)\.", "attention among experts"),
    (r"(^|\.)project\.", "projection heads"),
)
"""Pattern of a parameter name and its part; the first match counts."""


def part_of(name: str) -> str:
    """Part of a parameter in encoder, prior or diffusion router; first and further levels apart."""
    part = next((part for pattern, part in PARTS if re.search(pattern, name)), "other")
    level = re.search(r"(^|\.)levels\.(\d+)\.", name)
    if level is None or part in ("subject layer", "other"):
        return part
    return f"{part}, {'first level' if level[2] == '0' else 'further levels'}"


def count_by_part(model: nn.Module) -> dict[str, int]:
    """Parameters of a model by part, in the order of the model; on the meta device, too."""
    counts: dict[str, int] = {}
    for name, parameter in model.named_parameters():
        part = part_of(name)
        counts[part] = counts.get(part, 0) + parameter.numel()
    return counts


def idle_parameters(model: nn.Module) -> dict[str, str]:
    """Parameters without effect on the output, with the reason; kept for published checkpoints."""
    reasons: dict[str, str] = {}
    for name, module in model.named_modules():
        if isinstance(module, MixerTrunk) and module.tokens == 1:
            for inner, _ in module.width_blocks.named_parameters():
                reasons[f"{name}.width_blocks.{inner}"] = (
                    "published trunk: with one token the width blocks never reach the output"
                )
        elif isinstance(module, StackedNorm) and module.weight.shape[1] == 1:
            reasons.setdefault(
                f"{name}.weight", "gain of a norm over a single number, which is zero"
            )
        elif isinstance(module, TextBackbone):
            if module.pool is not None and module.clip_seq_dim == 1:
                for inner, _ in module.pool.named_parameters():
                    reasons[f"{name}.pool.{inner}"] = (
                        "a weighted mean of a single token is that token"
                    )
            if any(isinstance(trunk, MixerTrunk) for trunk in module.trunks.values()):
                for inner, _ in module.fusion_linears[:-1].named_parameters():
                    reasons[f"{name}.fusion_linears.{inner}"] = (
                        "published trunk: residuals pass by all fusion maps but the last"
                    )
        elif isinstance(module, StaticRouter) and module.affinity.shape[1] == 1:
            for inner, _ in module.named_parameters():
                reasons[f"{name}.{inner}"] = "a router with a single expert has no choice"
        elif isinstance(module, ExpertChoiceRouter) and module.weight.shape[1] == 1:
            reasons[f"{name}.weight"] = "a router with a single expert has no choice"
    return reasons


def trainable_parameters(model: nn.Module) -> Named:
    """Parameters for an optimizer by name: all except idle and frozen ones."""
    idle = idle_parameters(model)
    return {
        name: parameter
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and name not in idle
    }


def _of(model: nn.Module, kinds: type | tuple[type, ...]) -> Named:
    wanted = [f"{name}." for name, module in model.named_modules() if isinstance(module, kinds)]
    return (
        {
            name: parameter
            for name, parameter in trainable_parameters(model).items()
            if name.startswith(tuple(wanted))
        }
        if wanted
        else {}
    )


def router_parameters(model: nn.Module) -> Named:
    """Parameters of the routers."""
    return _of(model, (StaticRouter, ExpertChoiceRouter))


def subject_parameters(model: nn.Module, subjects: Iterable[int] | None = None) -> Named:
    """Parameters of the subject layers.

    Parameters
    ----------
    subjects : Iterable[int] | None, optional
        Subjects; all by default.
    """
    found = _of(model, SubjectLayer)
    if subjects is None:
        return found
    marks = tuple(f".linears.{subject}." for subject in subjects)
    return {
        name: parameter
        for name, parameter in found.items()
        if any(mark in f".{name}" for mark in marks)
    }


def adapting_parameters(model: nn.Module, subjects: Iterable[int]) -> Named:
    """Parameters of ``--train_router_only`` for new subjects: their layers and the routers."""
    return subject_parameters(model, subjects) | router_parameters(model)


def train_only(model: nn.Module, chosen: Named) -> None:
    """Freeze all other parameters."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in chosen)


class Trained(NamedTuple):
    """Number of trained parameters of a model."""

    trained: int
    """Trained parameters."""
    total: int
    """All parameters."""

    @property
    def share(self) -> float:
        """Share of trained parameters."""
        return self.trained / self.total


def trained_share(model: nn.Module) -> Trained:
    """Count trainable parameters; idle and frozen ones count in the total only."""
    return Trained(
        sum(parameter.numel() for parameter in trainable_parameters(model).values()),
        sum(parameter.numel() for parameter in model.parameters()),
    )


def weight_decay_groups(
    model: nn.Module, weight_decay: float, chosen: Named | None = None
) -> list[dict[str, Any]]:
    """Optimizer groups: only weights of linear maps and convolutions decay.

    The number of axes does not identify them, because experts are stacked.

    Parameters
    ----------
    chosen : Named | None, optional
        Parameters to train, by name; all trainable ones by default.
    """
    chosen = trainable_parameters(model) if chosen is None else chosen
    linear = {
        f"{name}.weight".lstrip(".")
        for name, module in model.named_modules()
        if isinstance(module, StackedLinear | nn.Linear | nn.Conv2d)
    }
    return [
        {
            "params": [parameter for name, parameter in chosen.items() if name in linear],
            "weight_decay": weight_decay,
        },
        {
            "params": [parameter for name, parameter in chosen.items() if name not in linear],
            "weight_decay": 0.0,
        },
    ]
