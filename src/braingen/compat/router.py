"""A published diffusion router's architecture, read off the names and shapes of its weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isqrt
from typing import Any

from torch import Tensor

from braingen.routing.diffuse_router import DiffuseRouter, from_published
from braingen.runtime.errors import UserError


def router_settings(state: Mapping[str, Tensor], num_experts: Sequence[int]) -> dict[str, Any]:
    """Constructor arguments of `DiffuseRouter`.

    Parameters
    ----------
    state : Mapping[str, Tensor]
        Published name -> weight.
    num_experts : Sequence[int]
        Experts of every level, which the weights of attention do not determine.

    Raises
    ------
    UserError
        If these are not a router's weights, or its levels are not as many.
    """
    settings: dict[str, Any] = {"num_experts": list(num_experts), "time": "off", "space": "off"}
    levels = len(num_experts)
    if "time_router.granularity_embeddings" in state:
        levels, settings["time_hidden_dim"] = state["time_router.granularity_embeddings"].shape
        settings |= {
            "time": "attention",
            "time_embedding_dim": state["time_router.timestep_proj.weight"].shape[1],
        }
        if "time_router.context_proj.weight" in state:
            settings |= {
                "time_context": True,
                "time_context_size": isqrt(state["time_router.context_proj.weight"].shape[1]),
            }
    elif "time_router.output_layer.weight" in state:
        levels, settings["time_hidden_dim"] = state["time_router.output_layer.weight"].shape
        layers = [
            key
            for key in state
            if key.startswith("time_router.layers.") and key.endswith(".weight")
        ]
        embedding = state["time_router.layers.0.weight"].shape[1]
        settings |= {"time": "mlp", "time_layers": len(layers), "time_embedding_dim": embedding}
    if levels != len(num_experts):
        raise UserError(
            f"The router mixes {levels} levels, the encoder settings describe {len(num_experts)}"
            f" ({', '.join(map(str, num_experts))} experts): give --num_exp_0 and --exp_factor_list"
            " of the encoder it was made for."
        )
    cross, alike = (
        state.get("space_routers.0.q_proj.weight"),
        state.get("space_routers.0.query_linear.weight"),
    )
    if cross is not None:
        settings |= {
            "space": "cross",
            "clip_emb_dim": cross.shape[0],
            "space_grid": isqrt(cross.shape[1]),
        }
    elif alike is not None:
        settings |= {"space": "self", "clip_emb_dim": alike.shape[0]}
    if settings["time"] == settings["space"] == "off":
        raise UserError(
            f"These {len(state)} weights are of no diffusion router (first:"
            f" {', '.join(sorted(state)[:3])})."
        )
    return settings


def read_published_router(
    state: Mapping[str, Tensor], num_experts: Sequence[int]
) -> tuple[DiffuseRouter, list[str]]:
    """The router, and the names of weights without influence, which it lacks.

    Raises
    ------
    UserError
        If weights are missing, unexpected or of another shape; all are named.
    """
    router = DiffuseRouter(**router_settings(state, num_experts))
    ours, idle = from_published(dict(state))
    own = router.state_dict()
    wrong = {
        "missing": sorted(own.keys() - ours.keys()),
        "unexpected": sorted(ours.keys() - own.keys()),
        "of another shape": sorted(
            key for key in own.keys() & ours.keys() if own[key].shape != ours[key].shape
        ),
    }
    found = "; ".join(f"{kind}: {', '.join(keys)}" for kind, keys in wrong.items() if keys)
    if found:
        raise UserError(f"The router's weights do not fit what their shapes describe: {found}.")
    router.load_state_dict(ours)
    return router.eval(), idle
