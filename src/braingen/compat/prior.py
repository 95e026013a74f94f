"""The published diffusion prior: its settings, and its names for weights."""

from __future__ import annotations

from collections.abc import Mapping
import re
from typing import Any, NamedTuple, get_args

import numpy as np
from torch import Tensor

from braingen.encoders.prior.schedule import BetaSchedule, betas_of
from braingen.runtime.errors import UserError

PUBLISHED_PRIOR: dict[str, Any] = {
    "norm": "published",
    "relative_position": "published",
    "guidance_null": "both",
    "drop_in_eval": True,
    "sampling": "published",
}
"""Arguments of `DiffusionPrior` under which it computes what the published implementation
computes.
"""

_LAYER = "causal_transformer.layers.{n}."
_PLACES = (
    ("learned_query", "learned_query"),
    ("null_brain_embeds", "null_condition"),
    ("null_image_embed", "null_image"),
    ("to_time_embeds.0.1.net.0.0.weight", "time.layers.0.weight"),
    ("to_time_embeds.0.1.net.0.0.bias", "time.layers.0.bias"),
    ("to_time_embeds.0.1.net.1.0.weight", "time.layers.2.weight"),
    ("to_time_embeds.0.1.net.1.0.bias", "time.layers.2.bias"),
    ("to_time_embeds.0.1.net.2.weight", "time.layers.4.weight"),
    ("to_time_embeds.0.1.net.2.bias", "time.layers.4.bias"),
    (
        "causal_transformer.rel_pos_bias.relative_attention_bias.weight",
        "relative_position.table.weight",
    ),
    (
        "rel_pos_bias.relative_attention_bias.weight",
        "relative_position.table.weight",
    ),  # of the transformer alone
    (_LAYER + "0.norm.g", "layers.{n}.attention.norm_in.gain"),
    (_LAYER + "0.null_kv", "layers.{n}.attention.null_key_value"),
    (_LAYER + "0.to_q.weight", "layers.{n}.attention.queries.weight"),
    (_LAYER + "0.to_kv.weight", "layers.{n}.attention.key_value.weight"),
    (_LAYER + "0.to_out.0.weight", "layers.{n}.attention.out.weight"),
    (_LAYER + "0.to_out.1.g", "layers.{n}.attention.norm_out.gain"),
    (_LAYER + "1.0.g", "layers.{n}.feed_forward.norm_in.gain"),
    (_LAYER + "1.1.weight", "layers.{n}.feed_forward.value_gate.weight"),
    (_LAYER + "1.5.weight", "layers.{n}.feed_forward.out.weight"),
    ("causal_transformer.norm.g", "norm_out.gain"),
    ("causal_transformer.project_out.weight", "out.weight"),
)
"""Published name and ours; n is the number of a layer."""


def _pattern(place: str) -> str:
    return re.escape(place).replace(re.escape("{n}"), r"(\d+)")


_TO_OURS = tuple((_pattern(theirs), ours.replace("{n}", r"\1")) for theirs, ours in _PLACES)
_TO_THEIRS = tuple((_pattern(ours), theirs.replace("{n}", r"\1")) for theirs, ours in _PLACES)
_DERIVED = r"noise_scheduler\..*|" + _pattern(_LAYER + "0.rotary_emb.freqs")


class PublishedPrior(NamedTuple):
    """A published state dict under this package's names."""

    state: dict[str, Tensor]
    """Weights of `PriorNetwork`."""
    derived: list[str]
    """Published keys that hold what follows from the settings (noise tables, rotary
    frequencies).
    """
    unknown: list[str]
    """Published keys without a counterpart."""


def network_state(published: Mapping[str, Tensor]) -> PublishedPrior:
    """Rename the weights of a published prior (keys ``prior.net.*``, ``diffusion_prior.net.*``, or
    ``*`` of the bare network).
    """
    found = PublishedPrior({}, [], [])
    for key, value in published.items():
        bare = re.sub(r"^((diffusion_)?prior\.)?(net\.)?", "", key)
        if ours := _renamed(bare, _TO_OURS):
            found.state[ours] = value
        else:
            (found.derived if re.fullmatch(_DERIVED, bare) else found.unknown).append(key)
    return found


def published_name(ours: str) -> str:
    """Published name, within ``net.``, of a weight of `PriorNetwork`."""
    name = _renamed(ours, _TO_THEIRS)
    assert name is not None, ours
    return name


def _renamed(name: str, table: tuple[tuple[str, str], ...]) -> str | None:
    for pattern, replacement in table:
        if match := re.fullmatch(pattern, name):
            return match.expand(replacement)
    return None


def settings_of(published: Mapping[str, Tensor]) -> dict[str, Any]:
    """Constructor arguments of `DiffusionPrior` for a published prior, read off the shapes of its
    weights.

    Raises
    ------
    UserError
        If weights that determine the shapes are missing, or its noise follows no known schedule.
    """
    state = network_state(published).state
    try:
        (num_tokens, dim), num_tokens_target = (
            state["null_condition"].shape,
            len(state["null_image"]),
        )
        heads = state["relative_position.table.weight"].shape[1]
        dim_head = state["layers.0.attention.null_key_value"].shape[1]
    except KeyError as error:
        raise UserError(
            f"these weights hold no diffusion prior: {error} has no counterpart among"
            f" {len(published)} keys"
        ) from error
    query = len(state["learned_query"]) if "learned_query" in state else 0
    mode = {0: "none", num_tokens_target: "pos_emb"}.get(query, "all_pos_emb")
    tables = [value for key, value in published.items() if key.endswith("noise_scheduler.betas")]
    timesteps = len(tables[0]) if tables else 100
    return {
        "dim": dim,
        "num_tokens": num_tokens,
        "num_tokens_target": num_tokens_target,
        "depth": len({key.split(".")[1] for key in state if key.startswith("layers.")}),
        "dim_head": dim_head,
        "heads": heads,
        "timesteps": timesteps,
        "beta_schedule": _schedule_of(tables[0]) if tables else "cosine",
        "learned_query_mode": mode,
        **PUBLISHED_PRIOR,
    }


def _schedule_of(betas_K: Tensor) -> BetaSchedule:
    """The schedule whose betas these are."""
    for schedule in get_args(BetaSchedule):
        if np.allclose(
            betas_of(schedule, len(betas_K)), betas_K.double().cpu().numpy(), rtol=1e-4, atol=1e-6
        ):
            return schedule
    raise UserError(
        f"the {len(betas_K)} betas of this prior follow none of the schedules"
        f" {', '.join(get_args(BetaSchedule))}"
    )
