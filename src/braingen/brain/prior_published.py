"""The published diffusion prior: its settings, and its names for weights."""

from __future__ import annotations

from collections.abc import Mapping
import re
from typing import Any, NamedTuple

from torch import Tensor

from braingen.errors import UserError

PUBLISHED_PRIOR: dict[str, Any] = {
    "norm": "published",
    "relative_position": "published",
    "guidance_null": "both",
    "drop_in_eval": True,
    "sampling": "published",
}
"""Arguments of `DiffusionPrior` under which it computes what the published implementation computes."""

_LAYER = r"causal_transformer\.layers\.(\d+)\."
_NAMES = (
    (r"learned_query", r"learned_query"),
    (r"null_brain_embeds", r"null_condition"),
    (r"null_image_embed", r"null_image"),
    (r"to_time_embeds\.0\.1\.net\.0\.0\.(weight|bias)", r"time.layers.0.\1"),
    (r"to_time_embeds\.0\.1\.net\.1\.0\.(weight|bias)", r"time.layers.2.\1"),
    (r"to_time_embeds\.0\.1\.net\.2\.(weight|bias)", r"time.layers.4.\1"),
    (r"(?:causal_transformer\.)?rel_pos_bias\.relative_attention_bias\.weight", r"relative_position.table.weight"),
    (_LAYER + r"0\.norm\.g", r"layers.\1.attention.norm_in.gain"),
    (_LAYER + r"0\.null_kv", r"layers.\1.attention.null_key_value"),
    (_LAYER + r"0\.to_q\.weight", r"layers.\1.attention.queries.weight"),
    (_LAYER + r"0\.to_kv\.weight", r"layers.\1.attention.key_value.weight"),
    (_LAYER + r"0\.to_out\.0\.weight", r"layers.\1.attention.out.weight"),
    (_LAYER + r"0\.to_out\.1\.g", r"layers.\1.attention.norm_out.gain"),
    (_LAYER + r"1\.0\.g", r"layers.\1.feed_forward.norm_in.gain"),
    (_LAYER + r"1\.1\.weight", r"layers.\1.feed_forward.value_gate.weight"),
    (_LAYER + r"1\.5\.weight", r"layers.\1.feed_forward.out.weight"),
    (r"causal_transformer\.norm\.g", r"norm_out.gain"),
    (r"causal_transformer\.project_out\.weight", r"out.weight"),
)
_DERIVED = r"noise_scheduler\..*|" + _LAYER + r"0\.rotary_emb\.freqs"


class PublishedPrior(NamedTuple):
    """A published state dict under this package's names."""

    state: dict[str, Tensor]
    """Weights of `PriorNetwork`."""
    derived: list[str]
    """Published keys that hold what follows from the settings (noise tables, rotary frequencies)."""
    unknown: list[str]
    """Published keys without a counterpart."""


def network_state(published: Mapping[str, Tensor]) -> PublishedPrior:
    """Rename the weights of a published prior (keys ``prior.net.*``, or ``*`` of the bare network)."""
    found = PublishedPrior({}, [], [])
    for key, value in published.items():
        bare = re.sub(r"^(prior\.)?(net\.)?", "", key)
        for pattern, ours in _NAMES:
            if match := re.fullmatch(pattern, bare):
                found.state[match.expand(ours)] = value
                break
        else:
            (found.derived if re.fullmatch(_DERIVED, bare) else found.unknown).append(key)
    return found


def settings_of(published: Mapping[str, Tensor]) -> dict[str, Any]:
    """Constructor arguments of `DiffusionPrior` for a published prior, read off the shapes of its weights.

    Raises
    ------
    UserError
        If weights that tell the shapes are missing.
    """
    state = network_state(published).state
    try:
        (num_tokens, dim), num_tokens_target = state["null_condition"].shape, len(state["null_image"])
        heads = state["relative_position.table.weight"].shape[1]
        dim_head = state["layers.0.attention.null_key_value"].shape[1]
    except KeyError as error:
        raise UserError(f"these weights hold no diffusion prior: {error} has no counterpart among {len(published)} keys") from error
    query = len(state["learned_query"]) if "learned_query" in state else 0
    mode = {0: "none", num_tokens_target: "pos_emb"}.get(query, "all_pos_emb")
    tables = [len(value) for key, value in published.items() if key.endswith("noise_scheduler.betas")]
    return {
        "dim": dim,
        "num_tokens": num_tokens,
        "num_tokens_target": num_tokens_target,
        "depth": len({key.split(".")[1] for key in state if key.startswith("layers.")}),
        "dim_head": dim_head,
        "heads": heads,
        "timesteps": tables[0] if tables else 100,
        "learned_query_mode": mode,
        **PUBLISHED_PRIOR,
    }
