"""A batch shared by two processes: what each of them runs, and the same batch in one. Importable,
so that a new process finds it.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from braingen.encoders.gather import gather_rows
from braingen.encoders.losses import MixDraws, draw_mix, mix, mixco_nce, soft_clip, unit_rows


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def global_loss(
    model: torch.nn.Module,
    voxels: torch.Tensor,
    targets: torch.Tensor,
    draws: MixDraws,
    gather=None,
) -> torch.Tensor:
    preds = unit_rows(model(mix(voxels, draws)))
    targets = unit_rows(targets)
    return mixco_nce(preds, targets, 0.1, draws, gather=gather) + soft_clip(
        preds, targets, 0.1, gather=gather
    )


def problem(processes: int):
    torch.manual_seed(0)
    model = torch.nn.Linear(6, 8)
    voxels, targets = (
        torch.randn(processes, 4, 6, generator=generator(1)),
        torch.randn(processes, 4, 8, generator=generator(2)),
    )
    return (
        model,
        voxels,
        targets,
        [draw_mix(4, generator(3 + rank), share=1.0) for rank in range(processes)],
    )


def two_processes(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    # lets go of the wrapped model, which must not be the last to hold the group
    one_step(rank, folder)
    # a process that leaves while the other still talks to it takes that one's threads down
    dist.barrier()
    dist.destroy_process_group()


def one_step(rank: int, folder: str) -> None:
    model, voxels, targets, draws = problem(2)
    wrapped = DistributedDataParallel(model)
    loss = global_loss(wrapped, voxels[rank], targets[rank], draws[rank], gather_rows)
    loss.backward()
    torch.save(
        {"loss": loss.detach(), "weight": model.weight.grad, "bias": model.bias.grad},
        f"{folder}/{rank}.pt",
    )
