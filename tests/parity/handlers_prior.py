"""Parity of the diffusion prior: its parts, its noise, its network, training, one-pass use and
sampling.
"""

from __future__ import annotations

from collections.abc import Callable
import re
from typing import Any

import numpy as np
from published import noise_in, posterior_log_variance, start_of
import torch
from torch import Tensor, nn

import braingen  # noqa: F401  (before diffusers: it guards the import of torchvision)
from braingen.compat.prior import PUBLISHED_PRIOR, network_state, settings_of
from braingen.encoders.prior.diffusion_prior import DiffusionPrior, PriorDraws
from braingen.encoders.prior.network import (
    GainNorm,
    PriorNetwork,
    PriorTime,
    RelativePosition,
    rotary_frequencies,
    rotate,
    time_table,
)
from braingen.encoders.prior.schedule import NoiseSchedule, at_times

Outputs = dict[str, Any]


def _tensors(arrays: dict[str, np.ndarray]) -> dict[str, Tensor]:
    return {name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in arrays.items()}


def _dtype(case: Any) -> torch.dtype:
    return getattr(torch, case.spec.get("dtype", "float32"))


def _load(network: nn.Module, state: dict[str, Tensor], prefix: str = "") -> None:
    """Load what belongs to a network, or to the part of it whose names begin with `prefix`; nothing
    may be missing or left over.
    """
    found = network_state(state)
    assert not found.unknown, found.unknown
    network.load_state_dict(
        {
            name.removeprefix(prefix): value
            for name, value in found.state.items()
            if name.startswith(prefix)
        }
    )


@torch.no_grad()
def prior_parts(case: Any) -> Outputs:
    """Time embedding, relative position, rotation and norms, each alone."""
    state, given = _tensors(case.state), _tensors(case.inputs)
    dim = int(case.spec["constructor"]["dim"])
    time = PriorTime(dim)
    _load(time, state, "time.")
    position = RelativePosition(
        state["rel_pos_bias.relative_attention_bias.weight"].shape[1], "published"
    )
    _load(position, state, "relative_position.")
    out: Outputs = {}
    for name in case.outputs:
        if name == "sinusoid":
            out[name] = time_table(given["times"], dim)
        elif name == "time_embed":
            out[name] = time(given["times"])
        elif found := re.fullmatch(r"rel_pos_bias_(\d+)", name):
            out[name] = position(int(found[1]))
        elif found := re.fullmatch(r"rotary_out_(\d+)", name):
            out[name] = rotate(given[f"rotary_in_{found[1]}"], int(found[1]))
        elif found := re.fullmatch(r"rotary_freqs_(\d+)", name):
            out[name] = rotary_frequencies(int(found[1]))
        elif name in ("stable_norm_out", "norm_out"):
            out[name] = GainNorm(dim, "published", by_largest=name == "stable_norm_out")(
                given["stable_norm_in"]
            )
    return out


def noise_scheduler(case: Any) -> Outputs:
    """The stored tables, and the functions built on them."""
    args = dict(case.spec["constructor"])
    gamma, k = args.pop("p2_loss_weight_gamma", 0.0), args.pop("p2_loss_weight_k", 1)
    args.pop("loss_type", None)  # how a loss would be taken; no table depends on it
    schedule = NoiseSchedule(args.pop("timesteps", 100), args.pop("beta_schedule", "cosine"))
    kept, given = schedule.kept, _tensors(case.inputs)
    tables = {
        "betas": schedule.betas,
        "alphas_cumprod": kept,
        "alphas_cumprod_prev": schedule.kept_before,
        "sqrt_alphas_cumprod": np.sqrt(kept),
        "sqrt_one_minus_alphas_cumprod": np.sqrt(1 - kept),
        "log_one_minus_alphas_cumprod": np.log(1 - kept),
        "sqrt_recip_alphas_cumprod": np.sqrt(1 / kept),
        "sqrt_recipm1_alphas_cumprod": np.sqrt(1 / kept - 1),
        "posterior_variance": schedule.posterior_variance,
        "posterior_log_variance_clipped": posterior_log_variance(schedule),
        "posterior_mean_coef1": schedule.posterior_start,
        "posterior_mean_coef2": schedule.posterior_sample,
        "p2_loss_weight": (k + kept / (1 - kept)) ** -gamma,
    }
    assert not args, args
    start, noise, times = given["x_start"], given["noise"], given["times"]
    noised, axes = schedule.noised(start, times, noise), start.ndim
    mean = (
        at_times(schedule.posterior_start, times, axes) * start
        + at_times(schedule.posterior_sample, times, axes) * noised
    )
    return {
        **{f"table/{name}": table for name, table in tables.items()},
        "q_sample": noised,
        "posterior_mean": mean,
        "posterior_variance": at_times(schedule.posterior_variance, times, axes),
        "posterior_log_variance": at_times(posterior_log_variance(schedule), times, axes),
        "predict_noise": noise_in(schedule, noised, times, start),
        "predict_start": start_of(schedule, noised, times, noise),
        "v": schedule.velocity(start, times, noise),
    }


@torch.no_grad()
def prior_network(case: Any) -> Outputs:
    """One network call with nothing, condition, image or both dropped, dropped at random, and
    guided.
    """
    args, given = dict(case.spec["constructor"]), _tensors(case.inputs)
    network = PriorNetwork(args.pop("dim"), **args, norm="published", relative_position="published")
    _load(network, _tensors(case.state))
    network.to(_dtype(case))
    noisy, times, condition = given["image_embed"], given["times"], given["condition"]
    none = torch.zeros(len(noisy), dtype=torch.bool)
    kept = {
        "keep_all": (None, None),
        "drop_condition": (none, None),
        "drop_image": (None, none),
        "drop_both": (none, none),
    }
    out: Outputs = {}
    for name in case.outputs:
        if name in kept:
            out[name] = network(noisy, times, condition, *kept[name])
        elif name == "drop_some":
            share = _share_kept(case)
            out[name] = network(
                noisy,
                times,
                condition,
                given["uniform_condition"] < share,
                given["uniform_image"] < share,
            )
        elif found := re.fullmatch(r"cond_scale_([\d.]+)", name):
            out[name] = network.guided(noisy, times, condition, float(found[1]), "both")
    return out


def _share_kept(case: Any) -> float:
    """1 - drop probability of the case with random dropping, which the entry tells in words."""
    meaning = case.spec["in"]["uniform_condition"]["meaning"]
    found = re.search(r"below 1 - ([\d.]*\d)", meaning)
    assert found is not None, f"{case.name}: the drop probability cannot be read from {meaning!r}"
    return 1 - float(found[1])


@torch.no_grad()
def prior_full(case: Any) -> Outputs:
    """Training loss, one-pass use, and sampling with every recorded draw."""
    args, state, given = dict(case.spec["constructor"]), _tensors(case.state), _tensors(case.inputs)
    drop = float(args.pop("cond_drop_prob", 0.2))
    settings = {
        "dim": args.pop("out_dim"),
        "num_tokens": args.pop("clip_seq_dim"),
        **{
            name: args.pop(name)
            for name in ("depth", "dim_head", "heads", "timesteps")
            if name in args
        },
        **PUBLISHED_PRIOR,
        "condition_drop_prob": drop,
        "image_drop_prob": drop,
    }
    assert not args, args
    read_off = settings_of(state)
    assert {name: read_off[name] for name in settings if name in read_off} == {
        name: settings[name] for name in settings if name in read_off
    }
    prior = DiffusionPrior(**settings)
    _load(prior.network, state)
    prior.eval().to(_dtype(case))
    condition, image = given["condition"], given["image_embed"]

    def drawn(group: str) -> PriorDraws:
        everything = torch.zeros(len(condition))  # below any share: nothing dropped
        uniform = (
            given.get(f"{group}/uniform_{what}", everything) for what in ("condition", "image")
        )
        return PriorDraws(given[f"{group}/times"], given[f"{group}/noise"], *uniform)

    out: Outputs = {}
    for group, target in (("train", image), ("fixed", image), ("onestep", torch.zeros_like(image))):
        if f"{group}/times" in given:
            found = prior(condition, target, draws=drawn(group))
            out |= {f"{group}/loss": found.loss, f"{group}/pred": found.prediction_BTD}
    for name in case.outputs:
        if match := re.fullmatch(r"(sample_T(\d+))_scale([\d.]+)", name):
            group, steps, scale = match[1], int(match[2]), float(match[3])
            noise = torch.cat([given[f"{group}/initial"][None], given[f"{group}/steps"]]).transpose(
                0, 1
            )
            assert [step.time for step in prior.plan(steps)] == given[f"{group}/times"].tolist()
            out[name] = prior.sample(condition, steps, scale, noise=noise)
            if f"{name}/x" in case.outputs:
                out |= {
                    f"{name}/{part}": value
                    for part, value in _chain(prior, condition, steps, scale, noise).items()
                }
    return out


def _chain(
    prior: DiffusionPrior, condition: Tensor, steps: int, scale: float, noise: Tensor
) -> dict[str, Tensor]:
    """Input and prediction of every step: what the network was called with and returned while
    sampling.
    """
    asked, answered = [], []

    def record(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        rows = len(condition)  # with guidance: the full branch, then the null branch
        asked.append(inputs[0][:rows])
        answered.append(
            output if scale == 1 else output[rows:] + (output[:rows] - output[rows:]) * scale
        )

    hook = prior.network.register_forward_hook(record)
    prior.sample(condition, steps, scale, noise=noise)
    hook.remove()
    return {"x": torch.stack(asked), "x_start": torch.stack(answered)}


HANDLERS: dict[str, Callable[[Any], Outputs]] = {
    "prior_parts": prior_parts,
    "NoiseScheduler": noise_scheduler,
    "PriorNetwork": prior_network,
    "BrainDiffusionPriorEncoder": prior_full,
}
