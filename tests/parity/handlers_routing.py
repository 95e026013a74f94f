"""Parity of the diffusion routers and of the noise schedule."""

from __future__ import annotations

from collections.abc import Callable
import math
import re
from typing import Any

from diffusers import DDPMScheduler
import numpy as np
import torch
from torch import Tensor, nn

from braingen.routing.base import SpaceRouting, TimeRouting
from braingen.routing.diffuse_router import DiffuseRouter, from_published
from braingen.routing.guidance import log_gaussian_levels
from braingen.routing.space.cross_attention import CrossAttentionSpaceRouter
from braingen.routing.space.gate import GateSpaceRouter
from braingen.routing.space.self_attention import SelfAttentionSpaceRouter
from braingen.routing.space.weight import WeightSpaceRouter
from braingen.routing.tensors import time_embedding
from braingen.routing.time.attention import AttentionTimeRouter
from braingen.routing.time.fixed import FixedTimeRouter
from braingen.routing.time.learned import LearnedTimeRouter
from braingen.routing.time.mlp import MLPTimeRouter
from braingen.training.diffusion_loss import (
    min_snr_weight,
    noisy_latents,
    prediction_target,
    signal_to_noise,
)

Outputs = dict[str, np.ndarray]


def _tensor(array: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array))


def _input(case: Any, name: str) -> Tensor | None:
    return _tensor(case.inputs[name]) if name in case.inputs else None


def _experts(array: np.ndarray) -> Tensor:
    """The reference puts experts first, this package the batch."""
    return _tensor(array).transpose(0, 1)


def _load(
    module: nn.Module, state: dict[str, np.ndarray], *, context_as_key: bool = False
) -> nn.Module:
    ours, _idle = from_published(
        {key: _tensor(value) for key, value in state.items()}, context_as_key=context_as_key
    )
    module.load_state_dict(ours, strict=True)
    return module.eval()


def _numpy(outputs: dict[str, Tensor], case: Any) -> Outputs:
    return {name: value.detach().numpy() for name, value in outputs.items() if name in case.outputs}


def time_simple(case: Any) -> Outputs:
    """The level of every time, for several lengths of the schedule."""
    times = _tensor(case.inputs["times"])
    out = {}
    for name in case.outputs:
        total = int(re.fullmatch(r"level_total_(\d+)", name)[1])
        out[name] = FixedTimeRouter(
            case.spec["constructor"]["num_granularity_levels"], num_train_timesteps=total
        ).level(times)
    return _numpy(out, case)


def time_mlp(case: Any) -> Outputs:
    """Probabilities and the most probable level."""
    args = case.spec["constructor"]
    router = MLPTimeRouter(
        args["num_granularity_levels"],
        embedding_dim=args["embedding_dim"],
        hidden_dim=args["hidden_dim"],
        num_layers=args["num_layers"],
        temperature=args["temperature"],
    )
    _load(router, case.state)
    t_emb = _tensor(case.inputs["t_emb"])
    probabilities = router.route(t_emb, torch.zeros(len(t_emb))).probabilities_BL
    return _numpy({"probs": probabilities, "selected": probabilities.argmax(-1)}, case)


def _attention_router(
    levels: int, args: dict[str, Any], context: Tensor | None, **settings: Any
) -> AttentionTimeRouter:
    # context added to keys has no influence, so this package does not have it
    used = bool(args.get("use_context")) and not args.get("context_as_key")
    size = tuple(context.shape[-2:]) if context is not None else 64
    return AttentionTimeRouter(levels, context=used, context_size=size, **settings)


def time_attention(case: Any) -> Outputs:
    """Weights without and with the multiplicative prior, and the prior itself."""
    args, call = case.spec["constructor"], case.spec.get("call", {})
    context, t_emb, times = (
        _input(case, "context"),
        _tensor(case.inputs["t_emb"]),
        _tensor(case.inputs["time_step"]),
    )
    levels = args["num_granularity_levels"]
    out: dict[str, Tensor] = {}
    for suffix, prior in (("", "none"), ("_prior", "published")):
        router = _attention_router(
            levels,
            args,
            context,
            embedding_dim=args["embedding_dim"],
            hidden_dim=args["hidden_dim"],
            temperature=args["temperature"],
            level_prior=prior,
            prior_sigma=float(call.get("sigma", 1.0)),
        )
        _load(
            router,
            case.state,
            context_as_key=bool(args.get("use_context") and args.get("context_as_key")),
        )
        weights = router.route(t_emb, times, context).weights_BL
        out |= {f"weights{suffix}": weights, f"selected{suffix}": weights.argmax(-1)}
    for name in case.outputs:
        if found := re.fullmatch(r"gaussian_sigma([\d.]+)", name):
            out[name] = log_gaussian_levels(
                times, levels, sigma=float(found[1]), early=0.75, late=0.25
            ).exp()
    return _numpy(out, case)


def _mixed(routing: SpaceRouting) -> dict[str, Tensor]:
    return {"out": routing.embedding_BTD, "weights": routing.weights_BET.transpose(0, 1)[..., None]}


def space_gate(case: Any) -> Outputs:
    """Mixture by gates."""
    args = case.spec["constructor"]
    router = GateSpaceRouter(
        args["num_exp"], args["n_emb"], gate=args["mode"], temperature=args["temp"], normalize=False
    )
    return _numpy(_mixed(_load(router, case.state)(_experts(case.inputs["experts"]))), case)


def clip_router(case: Any) -> Outputs:
    """Mixture by free weights, or by a score of each expert."""
    args, call = case.spec["constructor"], case.spec.get("call", {})
    router = WeightSpaceRouter(
        args["num_exp"],
        args["n_emb"],
        args["seq_len"],
        start=args["weight_type"],
        temperature=float(call.get("temp", 1.0)),
    )
    return _numpy(_mixed(_load(router, case.state)(_experts(case.inputs["experts"]))), case)


def _self_attention(width: int, args: dict[str, Any]) -> SelfAttentionSpaceRouter:
    return SelfAttentionSpaceRouter(
        width, temperature=args.get("temp", 1.0), scale_output=args.get("scale_output", False)
    )


def space_self(case: Any) -> Outputs:
    """Mixture by self-attention."""
    args = case.spec["constructor"]
    router = _load(_self_attention(args["n_emb"], args), case.state)
    return _numpy(_mixed(router(_experts(case.inputs["experts"]))), case)


def _cross_attention(
    width: int, args: dict[str, Any], state: dict[str, np.ndarray]
) -> CrossAttentionSpaceRouter:
    cells = next(value.shape[1] for key, value in state.items() if key.endswith("q_proj.weight"))
    learned = any(key.rpartition(".")[2] == "query" for key in state)
    return CrossAttentionSpaceRouter(
        width, grid=math.isqrt(cells), temperature=args.get("temp", 1.0), learned_query=learned
    )


def space_cross(case: Any) -> Outputs:
    """Mixture by cross-attention, from the latents or from the learned query."""
    args = case.spec["constructor"]
    router = _load(_cross_attention(args["n_emb"], args, case.state), case.state)
    experts, latents = _experts(case.inputs["experts"]), _input(case, "latents")
    out: dict[str, Tensor] = {}
    for suffix, seen in (("", latents), ("_learned_query", None)):
        if f"out{suffix}" in case.outputs:
            routing = router(experts, seen)
            out |= {
                f"out{suffix}": routing.embedding_BTD,
                f"weights{suffix}": routing.weights_BET.flatten(1)[:, None],
            }
    return _numpy(out, case)


def diffuse_router(case: Any) -> Outputs:
    """Time and space together, soft and hard, and without time."""
    args, call = case.spec["constructor"], case.spec["call"]
    counts, levels, width = (
        args["num_experts_per_granularity"],
        args["num_granularity_levels"],
        args["embedding_dim"],
    )
    time_args, space_args = args["time_router_kwargs"], args["space_router_kwargs"]
    latents, t_emb, times = (
        _input(case, "latents"),
        _tensor(case.inputs["time_emb"]),
        _tensor(case.inputs["time_step"]),
    )
    context = (
        latents if "context" not in case.inputs else _input(case, "context")
    )  # of the time router
    router = DiffuseRouter(
        num_experts=counts, clip_emb_dim=width, time="off", space="off", level_output="sum"
    )
    if args["enable_space"]:
        cross = args["space_router_class"] == "DiffuseSpaceRouterCrossAttn"
        router = DiffuseRouter(
            num_experts=counts,
            clip_emb_dim=width,
            time="off",
            space="cross" if cross else "self",
            space_grid=1,
        )
        router.space_routers = nn.ModuleList(
            _cross_attention(width, space_args, case.state)
            if cross
            else _self_attention(width, space_args)
            for _ in counts
        )
    sizes = {"hidden_dim": args["time_router_hidden_dim"], "embedding_dim": t_emb.shape[-1]}
    if args["enable_time"]:
        if args["time_router_class"] == "DiffuseTimeRouterSimple":
            router.time_router = FixedTimeRouter(levels, num_train_timesteps=call["total_steps"])
        elif args["time_router_class"] == "DiffuseTimeRouterMLP":
            layers = sum(
                bool(re.fullmatch(r"time_router\.layers\.\d+\.weight", key)) for key in case.state
            )
            router.time_router = MLPTimeRouter(levels, num_layers=layers, **sizes)
        else:
            router.time_router = _attention_router(levels, time_args, context, **sizes)
    _load(
        router,
        case.state,
        context_as_key=bool(time_args.get("use_context") and time_args.get("context_as_key")),
    )
    experts = [_experts(case.inputs[f"experts_{level}"]) for level in range(levels)]
    out: dict[str, Tensor] = {"no_time": router.mix(experts, None, latents).embedding_BTD}
    if router.time_router is None:
        out["soft"] = out["no_time"]
        return _numpy(out, case)
    if isinstance(router.time_router, LearnedTimeRouter):
        weights = router.time_router.route(t_emb, times, context).weights_BL
    else:
        weights = router.time_router(times).weights_BL
    out |= {
        "soft": router.mix(experts, TimeRouting(weights, weights), latents).embedding_BTD,
        "level_weights": weights,
    }
    chosen = nn.functional.one_hot(weights.argmax(-1), levels).float()
    out |= {
        "hard": router.mix(experts, TimeRouting(chosen, weights), latents).embedding_BTD,
        "selected_level": weights.argmax(-1),
    }
    return _numpy(out, case)


def sdxl_schedule(case: Any) -> Outputs:
    """Noise schedule, noisy latents, loss weights and the routers' time embedding."""
    call = dict(case.spec["call"])
    gamma, prediction = call.pop("snr_gamma"), call.pop("prediction_type", "epsilon")
    table = DDPMScheduler(**call).alphas_cumprod
    times, latents, noise = (_tensor(case.inputs[name]) for name in ("times", "latents", "noise"))
    snr = signal_to_noise(table, times)
    out = {
        "snr": snr,
        "loss_weight": min_snr_weight(snr, gamma, prediction),
        "alphas_cumprod": table,
        "noisy": noisy_latents(table, latents, noise, times),
        "target": prediction_target(table, latents, noise, times, prediction),
        "velocity": prediction_target(table, latents, noise, times, "v_prediction"),
    }
    if "time_embedding" in case.outputs:
        out["time_embedding"] = time_embedding(times, case.outputs["time_embedding"].shape[1])
    return _numpy(out, case)


HANDLERS: dict[str, Callable[[Any], Outputs]] = {
    "DiffuseTimeRouterSimple": time_simple,
    "DiffuseTimeRouterMLP": time_mlp,
    "DiffuseTimeRouterAttn": time_attention,
    "DiffuseSpaceRouterGate": space_gate,
    "CLIPMoERouter": clip_router,
    "DiffuseSpaceRouterSelfAttn": space_self,
    "DiffuseSpaceRouterCrossAttn": space_cross,
    "DiffuseRouter": diffuse_router,
    "sdxl_schedule": sdxl_schedule,
}
