"""The architecture of a published encoder, read off the names and shapes of its weights.

MindEye2's checkpoints and MoRE-Brain's state dicts say nothing about settings, but shapes do: which
encoder, its widths, blocks, experts and capacities, subjects by their voxel counts. Names are those
of `published_keys.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
import re
from typing import Any, NamedTuple

from torch import Tensor

from braingen.runtime.errors import UserError

State = Mapping[str, Tensor]


class EncoderSettings(NamedTuple):
    """An encoder, ready to be built."""

    encoder_class: str
    """As in ``encoder.model``."""
    arguments: dict[str, Any]
    """Its constructor's arguments."""


def encoder_settings(
    state: State,
    subjects: Sequence[int] = (),
    subject_of: Callable[[int], int | None] = lambda voxels: None,
) -> EncoderSettings:
    """Find encoder class and arguments.

    Parameters
    ----------
    state : State
        Published name -> weight, of the encoder alone.
    subjects : Sequence[int], optional
        Subject numbers of the subject layers, in order, for voxel counts that no subject is known
        by.
    subject_of : Callable[[int], int | None], optional
        Voxel count -> subject number, None for a count that is not known.

    Raises
    ------
    UserError
        If the weights are those of no published encoder, or do not determine what is needed.
    """
    shared: dict[str, Any] = {
        "subjects": subject_counts(state, subjects, subject_of),
        "hidden_dim": _size(state, "ridge.linears.0.weight", 0),
        "trunk": "published",
    }
    if "bottleneck.ln.weight" in state:
        shared["bottleneck_dim"] = _size(state, "bottleneck.ln.weight", 0)
    units = shared.get("bottleneck_dim", shared["hidden_dim"])
    if "router_0.router.weight" in state:
        return EncoderSettings(
            "BrainMoEMulti", shared | {"routing": "expert_choice"} | _multi(state, units)
        )
    if "expert_routers.0.router.weight" in state:
        return EncoderSettings(
            "BrainMoEHier", shared | {"routing": "expert_choice"} | _side_by_side(state, units)
        )
    if "expert_router.router.weight" in state:
        return EncoderSettings(
            "BrainMoE", shared | {"routing": "expert_choice"} | _one_level(state, units)
        )
    if any(key.startswith("backbone.bn_") for key in state):
        return EncoderSettings("BrainEncoder", shared | _text(state))
    if "backbone.backbone_linear.weight" in state:
        return EncoderSettings("BrainEncoder", shared | _image(state))
    raise UserError(
        f"These {len(state)} weights are of no encoder known here (first:"
        f" {', '.join(sorted(state)[:3])}): MindEye2's begin with ridge. and backbone.,"
        " MoRE-Brain's with ridge. and router_0., expert_router. or expert_routers."
    )


def subject_counts(
    state: State, subjects: Sequence[int], subject_of: Callable[[int], int | None]
) -> dict[str, int]:
    """Subject number -> voxel count, in the order of the subject layers.

    Raises
    ------
    UserError
        If there is no subject layer, or a voxel count names no subject and none are given.
    """
    counts = [
        _size(state, f"ridge.linears.{place}.weight", 1)
        for place in range(_count(state, r"ridge\.linears\.(\d+)\.weight"))
    ]
    if not counts:
        raise UserError(
            "There is no subject layer among these weights: expected ridge.linears.0.weight."
        )
    known = [subject_of(count) for count in counts]
    found = [subject for subject in known if subject is not None]
    if len(found) == len(counts) == len(set(found)):
        return {str(subject): count for subject, count in zip(found, counts)}
    if len(subjects) != len(counts) or len(set(subjects)) != len(counts):
        raise UserError(
            f"The subject layers read {', '.join(map(str, counts))} voxels, which does not tell"
            " whose they are: name the subjects in this order, for instance --subj"
            f" {','.join(str(place + 1) for place in range(len(counts)))}."
        )
    return {str(subject): count for subject, count in zip(subjects, counts)}


def capacity_of(width: int, units: int, experts: int) -> float:
    """The capacity factor that gives an expert so many units (published rule: int(units // experts
    * capacity)).
    """
    share = units // experts
    capacity = width / share if share else 0.0
    if int(share * capacity) < width:  # the division rounded down
        capacity += 1e-9
    return int(capacity) if capacity == int(capacity) else capacity


def _size(state: State, key: str, axis: int) -> int:
    if key not in state:
        raise UserError(
            f"{key} is not among these {len(state)} weights, so the architecture is unknown."
        )
    return state[key].shape[axis]


def _count(state: State, pattern: str) -> int:
    """How many numbers a name is continued with, from 0 upward."""
    numbers = {int(match[1]) for key in state if (match := re.fullmatch(pattern, key))}
    return next(place for place in range(len(numbers) + 1) if place not in numbers)


def _blocks(state: State, prefix: str) -> int:
    return _count(state, re.escape(prefix) + r"mixer_blocks1\.(\d+)\.0\.weight")


def _head(state: State, name: str) -> tuple[str, int]:
    """Kind of a projection head, and D."""
    if f"{name}.weight" in state:
        return "linear", _size(state, f"{name}.weight", 0)
    return "projector", _size(state, f"{name}.0.weight", 0)


def _image(state: State) -> dict[str, Any]:
    head, width = _head(state, "backbone.clip_proj")
    tokens_inside = _size(state, "backbone.mixer_blocks2.0.0.weight", 0)
    if tokens_inside != 1:
        raise UserError(
            f"This encoder mixes {tokens_inside} tokens inside its trunk; encoders here, and all"
            " published ones, have 1."
        )
    return {
        "n_blocks": _blocks(state, "backbone."),
        "clip_emb_dim": width,
        "clip_seq_dim": _size(state, "backbone.backbone_linear.weight", 0) // width,
        "head": head,
        "low_level": "backbone.blin1.weight" in state,
        "interm_out": "backbone.interm_linear.0.weight" in state,
    }


def _text(state: State) -> dict[str, Any]:
    names = [name for name in "LG" if f"backbone.backbone_linear_{name}.weight" in state]
    heads = {name: _head(state, f"backbone.clip_proj_{name}") for name in names}
    widths = {name: width for name, (_, width) in heads.items()}
    some = names[0]
    blocks = _blocks(state, f"backbone.bn_{some}.")
    maps = _count(state, r"backbone\.fusion_linears\.(\d+)\.weight")
    numbered = (
        "early" if maps == blocks else "mid"
    )  # a map after every block, or after those of the later half
    return {
        "n_blocks": blocks,
        "clip_emb_dim": sum(widths.values()),
        "clip_seq_dim": _size(state, f"backbone.backbone_linear_{some}.weight", 0) // widths[some],
        "head": heads[some][0],
        "text_output": {"LG": "joint", "L": "L", "G": "bigG"}["".join(names)],
        "text_emb_dims": [widths.get("L", widths[some]), widths.get("G", widths[some])],
        "fusion": (
            "late" if "backbone.fusion_linears.weight" in state else numbered if maps else "none"
        ),
        "train_pool": "backbone.pool_attn.weight" in state,
    }


def _multi(state: State, units: int) -> dict[str, Any]:
    head, width = _head(state, "clip_proj_0.0")
    factors = [_size(state, "router_0.router.weight", 0)]
    widths = [_size(state, "experts_0.0.mixer_blocks1.0.0.weight", 0)]
    for level in range(_count(state, r"router_list\.(\d+)\.0\.router\.weight")):
        factors.append(_size(state, f"router_list.{level}.0.router.weight", 0))
        widths.append(_size(state, f"expert_list.{level}.0.weight", 1))
    capacities = [
        capacity_of(k, whole, factor) for k, whole, factor in zip(widths, [units, *widths], factors)
    ]
    return {
        "n_blocks": _blocks(state, "experts_0.0."),
        "clip_emb_dim": width,
        "clip_seq_dim": _size(state, "backbone_proj_0.0.weight", 0) // width,
        "head": head,
        "num_exp_0": factors[0],
        "exp_factor_list": factors[1:],
        "capacity_factor_0": capacities[0],
        "cap_fac_list": capacities[1:],
    }


def _whole_backbones(state: State, prefix: str) -> dict[str, Any]:
    head, width = _head(state, f"{prefix}clip_proj")
    return {
        "n_blocks": _blocks(state, prefix),
        "clip_emb_dim": width,
        "clip_seq_dim": _size(state, f"{prefix}backbone_linear.weight", 0) // width,
        "head": head,
        "meta": any(key.startswith("meta_exp.") for key in state),
    }


def _one_level(state: State, units: int) -> dict[str, Any]:
    experts = _size(state, "expert_router.router.weight", 0)
    width = _size(state, "experts.0.mixer_blocks1.0.0.weight", 0)
    return _whole_backbones(state, "experts.0.") | {
        "num_exp": experts,
        "capacity_factor": capacity_of(width, units, experts),
    }


def _side_by_side(state: State, units: int) -> dict[str, Any]:
    levels = range(_count(state, r"expert_routers\.(\d+)\.router\.weight"))
    experts = [_size(state, f"expert_routers.{level}.router.weight", 0) for level in levels]
    widths = [_size(state, f"experts.{level}.0.mixer_blocks1.0.0.weight", 0) for level in levels]
    return _whole_backbones(state, "experts.0.0.") | {
        "num_exps": experts,
        "capacity_factors": [capacity_of(k, units, number) for k, number in zip(widths, experts)],
    }
