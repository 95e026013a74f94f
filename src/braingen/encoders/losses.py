"""Losses of the brain encoders: contrastive losses, mixing of trials, and their temperatures.

B batch (of one process, or of all together), V voxels, F features (tokens x CLIP width, flattened),
G samples of all processes

Every loss takes rows of unit length (`unit_rows`) and a `gather` that turns rows of this process
into rows of all; what it returns is then the loss of the global batch, the same in every process.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import log_softmax, normalize

from braingen.runtime.errors import UserError

Gather = Callable[[Tensor], Tensor]
"""Rows of this process -> rows of all processes in order of rank, with gradient to this
process's.
"""


class MixDraws(NamedTuple):
    """Mixing of a batch: sample i becomes weight_i * itself + (1 - weight_i) * its partner."""

    partner_B: Tensor
    """Row of the partner in the batch, int64."""
    weight_B: Tensor
    """Weight of the sample itself; 1 if not mixed."""
    mixed_B: Tensor
    """Bool, whether the sample is mixed."""


def draw_mix(
    batch: int, generator: torch.Generator, *, beta: float = 0.15, share: float = 0.5
) -> MixDraws:
    """Draw partners and weights for MixCo (Kim et al. 2020; MindEye2).

    Parameters
    ----------
    batch : int
        Trials of one subject: voxels of different subjects cannot be mixed.
    generator : torch.Generator
        On a CPU or GPU; the draws are on its device.
    beta : float
        Weights are from Beta(beta, beta) (published: 0.15).
    share : float
        About this share of the batch is mixed (published: 0.5).
    """
    device = generator.device
    partner_B = torch.randperm(batch, generator=generator, device=device)
    weight_B = _beta_draws(batch, beta, generator)
    return choose_mixed(
        partner_B, weight_B, torch.rand(batch, generator=generator, device=device), share
    )


def choose_mixed(
    partner_B: Tensor, weight_B: Tensor, uniform_B: Tensor, share: float = 0.5
) -> MixDraws:
    """Mix samples whose uniform draw is at most `share`; others get weight 1."""
    mixed_B = uniform_B <= share
    return MixDraws(partner_B, torch.where(mixed_B, weight_B, 1.0), mixed_B)


def _beta_draws(count: int, beta: float, generator: torch.Generator) -> Tensor:
    """Beta(beta, beta) samples from uniforms (Johnk 1964); no library function takes a generator.

    Of pairs of uniforms u, v, those with u^(1/beta) + v^(1/beta) <= 1 give u^(1/beta) / (u^(1/beta)
    + v^(1/beta)). Computed in logarithms.
    """
    if not 0 < beta <= 2:
        raise UserError(
            f"beta of MixCo is {beta}; allowed are values above 0, up to 2 (published: 0.15)"
        )
    samples: list[Tensor] = []
    missing = count
    while missing > 0:
        uniform = torch.rand(
            2, 4 * missing, generator=generator, device=generator.device, dtype=torch.float64
        )
        log_uv = uniform.clamp(min=1e-300).log() / beta
        accepted = torch.logsumexp(log_uv, 0) <= 0
        samples.append(torch.sigmoid(log_uv[0] - log_uv[1])[accepted][:missing])
        missing -= len(samples[-1])
    return torch.cat(samples).float()


def mix(rows: Tensor, draws: MixDraws) -> Tensor:
    """Mix voxels or targets into a new tensor (the published implementation works in place).

    Parameters
    ----------
    rows : Tensor
        B x ..., of one subject if they are voxels.

    Raises
    ------
    UserError
        If there are not as many rows as draws.
    """
    if len(rows) != len(draws.partner_B):
        raise UserError(
            f"{len(rows)} rows cannot be mixed by {len(draws.partner_B)} draws; draw one per row"
        )
    partner_B, weight_B = draws.partner_B.to(rows.device), draws.weight_B.to(rows)
    weight_B1 = weight_B.reshape(-1, *[1] * (rows.ndim - 1))
    return weight_B1 * rows + (1 - weight_B1) * rows[partner_B]


def join_mixes(parts: Sequence[MixDraws]) -> MixDraws:
    """Concatenate draws of several subjects; partners get the offset of their subject.

    The published implementation omits the offsets, so that partners are wrong for every subject
    except the first.
    """
    starts = [sum(len(part.partner_B) for part in parts[:place]) for place in range(len(parts))]
    return MixDraws(
        torch.cat([part.partner_B + start for part, start in zip(parts, starts, strict=True)]),
        torch.cat([part.weight_B for part in parts]),
        torch.cat([part.mixed_B for part in parts]),
    )


def gather_mix(draws: MixDraws, gather: Gather) -> MixDraws:
    """Draws of the global batch; every process has as many samples."""
    partner_G = gather(draws.partner_B)
    here = len(draws.partner_B)
    start_G = torch.arange(len(partner_G), device=partner_G.device) // here * here
    return MixDraws(partner_G + start_G, gather(draws.weight_B), gather(draws.mixed_B))


def unit_rows(embedding_BTD: Tensor) -> Tensor:
    """Flatten tokens and scale to length 1 in float32: B x F, for the contrastive losses."""
    return normalize(embedding_BTD.flatten(1).float(), dim=-1)


def mixco_nce(
    preds_BF: Tensor,
    targets_BF: Tensor,
    temperature: float,
    draws: MixDraws | None = None,
    *,
    both_ways: bool = True,
    own_partner: str = "kept",
    gather: Gather | None = None,
) -> Tensor:
    """Contrastive loss of mixed trials against unmixed targets (MixCo; MoRE-Brain and MindEye2).

    Parameters
    ----------
    preds_BF, targets_BF : Tensor
        Rows of length 1.
    temperature : float
        Divides cosines (published: 0.006 * temp_coeff).
    draws : MixDraws | None, optional
        Mixing of the trials; the plain contrastive loss by default.
    both_ways : bool
        Also from targets to predictions, the mean of both.
    own_partner : str, optional
        A sample that is its own partner counts fully; published: its weight
        is overwritten by that of the partner, 0 if it is unmixed.
    gather : callable, optional
        See the module.

    Returns
    -------
    Tensor
        Scalar.

    Raises
    ------
    UserError
        If shapes differ, or a name is unknown.
    """
    if own_partner not in ("kept", "published"):
        raise UserError(f"own_partner is {own_partner!r}; allowed are 'kept' and 'published'")
    if gather is not None:
        preds_BF, targets_BF = gather(preds_BF), gather(targets_BF)
        draws = (
            None
            if draws is None
            else gather_mix(MixDraws(*(draw.to(preds_BF.device) for draw in draws)), gather)
        )
    logits_BB = _similarities(preds_BF, targets_BF) / temperature
    wanted_BB = torch.eye(len(logits_BB), device=logits_BB.device, dtype=logits_BB.dtype)
    if draws is not None:
        weight_B, partner_B1 = (
            draws.weight_B.to(logits_BB),
            draws.partner_B.to(logits_BB.device)[:, None],
        )
        wanted_BB = wanted_BB * weight_B
        if own_partner == "kept":
            wanted_BB = wanted_BB.scatter_add(1, partner_B1, 1 - weight_B[:, None])
        else:
            wanted_BB = wanted_BB.scatter(1, partner_B1, 1 - weight_B[:, None])
    forth = _cross_entropy(logits_BB, wanted_BB)
    return (forth + _cross_entropy(logits_BB.T, wanted_BB.T)) / 2 if both_ways else forth


def soft_clip(
    preds_BF: Tensor, targets_BF: Tensor, temperature: float, *, gather: Gather | None = None
) -> Tensor:
    """Symmetric contrastive loss with similarities of the targets as labels (SoftCLIP; MindEye2).

    Parameters
    ----------
    preds_BF, targets_BF : Tensor
        Rows of length 1.
    temperature : float
        Divides cosines of predictions and of labels (published: annealed from 0.004 to 0.0075,
        times temp_coeff).
    gather : callable, optional
        See the module.

    Raises
    ------
    UserError
        If shapes differ.
    """
    if gather is not None:
        preds_BF, targets_BF = gather(preds_BF), gather(targets_BF)
    logits_BB = _similarities(preds_BF, targets_BF) / temperature
    wanted_BB = (_similarities(targets_BF, targets_BF) / temperature).softmax(-1)
    return (_cross_entropy(logits_BB, wanted_BB) + _cross_entropy(logits_BB.T, wanted_BB)) / 2


def _similarities(left_BF: Tensor, right_BF: Tensor) -> Tensor:
    if left_BF.ndim != 2 or left_BF.shape != right_BF.shape:
        raise UserError(
            f"a contrastive loss was given rows of shapes {tuple(left_BF.shape)} and"
            f" {tuple(right_BF.shape)}; they must be equal, batch x features (see unit_rows)"
        )
    with torch.autocast(
        left_BF.device.type, enabled=False
    ):  # temperatures of 0.01 amplify rounding errors
        return left_BF.float() @ right_BF.float().T


def _cross_entropy(logits_BB: Tensor, wanted_BB: Tensor) -> Tensor:
    return -(log_softmax(logits_BB, dim=-1) * wanted_BB).sum(-1).mean()
