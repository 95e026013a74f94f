"""Rows of every process as one batch, so that a contrastive loss sees all of them.

B batch of one process, G samples of all processes
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
import torch.distributed as dist


class _GatherRows(torch.autograd.Function):
    """All-gather whose gradient is the sum of the gradients of all processes."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        parts = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, rows.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        gradient_GF = gradients[0].contiguous()
        dist.all_reduce(gradient_GF)
        return gradient_GF.chunk(dist.get_world_size())[dist.get_rank()]


def gather_rows(rows: Tensor) -> Tensor:
    """Rows of all processes in order of rank; the rows themselves with one process.

    A loss of the gathered rows is the loss of the global batch, in every process. Its gradients,
    averaged over processes as DDP does, are those of one process with the global batch: the
    share of every process returns through the sum over processes.

    Parameters
    ----------
    rows : Tensor
        B x ..., of the same shape in every process.

    Returns
    -------
    Tensor
        G x ..., with gradient to this process's rows.
    """
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return rows
    if rows.dtype == torch.bool:  # not every backend supports bool
        return gather_rows(rows.to(torch.uint8)).bool()
    return _GatherRows.apply(rows) if rows.is_floating_point() else _GatherRows.forward(None, rows)
