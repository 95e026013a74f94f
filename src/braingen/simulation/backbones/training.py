"""The resumable training loop of the tiny backbones, with averaged weights."""

from __future__ import annotations

from collections.abc import Callable
import json
import math
from pathlib import Path
import time

import torch
from torch import Tensor, distributed, nn

from braingen.runtime.errors import UserError

Losses = dict[str, Tensor]


def cosine(step: int, steps: int, warmup: int = 100) -> float:
    """Learning-rate factor: linear warm-up, then a half cosine down to a hundredth."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.01 + 0.99 * 0.5 * (
        1 + math.cos(math.pi * min(1.0, (step - warmup) / max(1, steps - warmup)))
    )


def _average_gradients(parameters: list[nn.Parameter], processes: int) -> None:
    flat = torch.cat(
        [(p.grad if p.grad is not None else torch.zeros_like(p)).flatten() for p in parameters]
    )
    distributed.all_reduce(flat)
    flat /= processes
    for p, part in zip(parameters, flat.split([p.numel() for p in parameters])):
        p.grad = part.view_as(p)


def train(
    model: nn.Module,
    losses_of: Callable[[int, torch.Generator], Losses],
    folder: Path,
    *,
    name: str,
    steps: int,
    learning_rate: float,
    weight_decay: float = 0.0,
    ema: float = 0.0,
    gradient_clip: float = 1.0,
    save_seconds: float = 240.0,
) -> nn.Module:
    """Train until ``steps`` from ``<folder>/<name>.pt`` if it exists; sets the averaged weights.

    Parameters
    ----------
    model : nn.Module
        Holds all trained parameters.
    losses_of : Callable[[int, torch.Generator], Losses]
        Step, generator -> weighted loss terms, which are summed; the generator is seeded by the
        step, so that an interrupted run continues with the same random numbers.
    folder : Path
        Where the checkpoint and ``<name>.jsonl`` (losses every 50 steps) are kept.
    ema : float, optional
        Decay of the averaged weights; 0 for none.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path, log = folder / f"{name}.pt", folder / f"{name}.jsonl"
    decay = [p for p in model.parameters() if p.requires_grad and p.ndim > 1]
    plain = [p for p in model.parameters() if p.requires_grad and p.ndim <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": decay, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}],
        lr=learning_rate,
        betas=(0.9, 0.99),
        fused=True,
    )
    averaged = [p.detach().clone() for p in model.parameters()]
    first, spent = 0, 0.0
    if path.exists():
        state = torch.load(path, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        averaged, first, spent = state["averaged"], state["step"], state["seconds"]
    processes, rank = (
        (distributed.get_world_size(), distributed.get_rank())
        if distributed.is_initialized()
        else (1, 0)
    )
    model.train()
    started = last_saved = time.monotonic()
    for step in range(first, steps):
        generator = torch.Generator().manual_seed(1_000_003 * (step + 1) + rank)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * cosine(step, steps)
        losses = losses_of(step, generator)
        total = torch.stack(list(losses.values())).sum()
        if not torch.isfinite(total):
            terms = ", ".join(f"{term} {value.item():g}" for term, value in losses.items())
            raise UserError(
                f"The losses of {name} in {folder} became NaN or infinite in step"
                f" {step + 1}: {terms}. Lower its learning rate ({learning_rate:g}); the last saved"
                f" state is {path}, remove it to start again."
            )
        optimizer.zero_grad(set_to_none=True)
        total.backward()
        if processes > 1:
            _average_gradients([*decay, *plain], processes)
        nn.utils.clip_grad_norm_([*decay, *plain], gradient_clip)
        optimizer.step()
        rate = min(ema, (1 + step) / (10 + step))
        with torch.no_grad():
            for mean, parameter in zip(averaged, model.parameters()):
                mean.lerp_(parameter, 1 - rate)
        if rank:
            continue
        if (step + 1) % 50 == 0:
            seconds = spent + time.monotonic() - started
            with log.open("a", encoding="utf-8") as file:
                values = {name: round(value.item(), 5) for name, value in losses.items()}
                file.write(
                    json.dumps({"step": step + 1, "seconds": round(seconds, 1), **values}) + "\n"
                )
        if time.monotonic() - last_saved > save_seconds or step + 1 == steps:
            last_saved = time.monotonic()
            state = {
                "model": model.state_dict(),
                "optimizer": optimizer.state_dict(),
                "averaged": averaged,
                "step": step + 1,
            }
            torch.save({**state, "seconds": spent + last_saved - started}, path.with_suffix(".tmp"))
            path.with_suffix(".tmp").replace(path)
    with torch.no_grad():
        for mean, parameter in zip(averaged, model.parameters()):
            parameter.copy_(mean)
    return model.eval()
