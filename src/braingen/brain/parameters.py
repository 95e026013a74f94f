"""Which of an encoder's parameters are trained, adapted, decayed; and which are idle by design."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn

from braingen.brain.backbone import TextBackbone
from braingen.brain.expert_router import AffinityRouter, ValueRouter
from braingen.brain.experts import MixerTrunk, StackedLinear, StackedNorm
from braingen.brain.subject_layer import SubjectLayer

Named = dict[str, nn.Parameter]


def idle_parameters(model: nn.Module) -> dict[str, str]:
    """Parameters that cannot change the output, with the reason; they are kept for published checkpoints but not trained."""
    reasons: dict[str, str] = {}
    for name, module in model.named_modules():
        if isinstance(module, MixerTrunk) and module.tokens == 1:
            for inner, _ in module.width_blocks.named_parameters():
                reasons[f"{name}.width_blocks.{inner}"] = "published trunk: with one token the width blocks never reach the output"
        elif isinstance(module, StackedNorm) and module.weight.shape[1] == 1:
            reasons.setdefault(f"{name}.weight", "gain of a norm over a single number, which is zero")
        elif isinstance(module, TextBackbone) and module.pool is not None and module.clip_seq_dim == 1:
            for inner, _ in module.pool.named_parameters():
                reasons[f"{name}.pool.{inner}"] = "a weighted mean of a single token is that token"
        elif isinstance(module, AffinityRouter) and module.affinity.shape[1] == 1:
            for inner, _ in module.named_parameters():
                reasons[f"{name}.{inner}"] = "a router with a single expert has nothing to choose"
        elif isinstance(module, ValueRouter) and module.weight.shape[1] == 1:
            reasons[f"{name}.weight"] = "a router with a single expert has nothing to choose"
    return reasons


def trainable_parameters(model: nn.Module) -> Named:
    """Parameters to hand to an optimizer: all but the idle and the frozen ones, by name."""
    idle = idle_parameters(model)
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad and name not in idle}


def _of(model: nn.Module, kinds: type | tuple[type, ...]) -> Named:
    wanted = [f"{name}." for name, module in model.named_modules() if isinstance(module, kinds)]
    return {name: parameter for name, parameter in trainable_parameters(model).items() if name.startswith(tuple(wanted))} if wanted else {}


def router_parameters(model: nn.Module) -> Named:
    """Parameters of the routers."""
    return _of(model, (AffinityRouter, ValueRouter))


def subject_parameters(model: nn.Module, subjects: Iterable[int] | None = None) -> Named:
    """Parameters of the subject layers.

    Parameters
    ----------
    subjects : of these only; of all where not given
    """
    found = _of(model, SubjectLayer)
    if subjects is None:
        return found
    marks = tuple(f".linears.{subject}." for subject in subjects)
    return {name: parameter for name, parameter in found.items() if any(mark in f".{name}" for mark in marks)}


def adapting_parameters(model: nn.Module, subject: int) -> Named:
    """What ``--train_router_only`` trains for a new subject: that subject's layer and the routers (MoRE-Brain paper section 3)."""
    return subject_parameters(model, [subject]) | router_parameters(model)


def weight_decay_groups(model: nn.Module, weight_decay: float, chosen: Named | None = None) -> list[dict[str, Any]]:
    """Optimizer groups: weights of linear maps and convolutions decay; biases, norms, affinities and embeddings do not.

    A parameter's number of axes does not tell which is which here, since experts are stacked.

    Parameters
    ----------
    chosen : parameters to train, by name; all trainable ones where not given
    """
    chosen = trainable_parameters(model) if chosen is None else chosen
    linear = {
        f"{name}.weight".lstrip(".") for name, module in model.named_modules() if isinstance(module, StackedLinear | nn.Linear | nn.Conv2d)
    }
    return [
        {"params": [parameter for name, parameter in chosen.items() if name in linear], "weight_decay": weight_decay},
        {"params": [parameter for name, parameter in chosen.items() if name not in linear], "weight_decay": 0.0},
    ]
