"""Parts of mixtures of experts: levels of experts, and combinations of their outputs.

B batch, H shared width, P parent experts, E experts of a level, L levels, U units of a parent, K
input units of an expert, D CLIP width, T tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn

from braingen.encoders.experts import ExpertHeads, Trunk
from braingen.runtime.errors import UserError
from braingen.types import ExpertEmbeddings, ExpertStack, UnitRouting

Combine = Literal["sum", "mean"]


class LevelOutput(NamedTuple):
    """Output of a level of experts."""

    units_EBK: Tensor
    """Output units of every expert, input of the next level."""
    backbone_EBTD: Tensor
    clip_EBTD: Tensor
    routing: tuple[UnitRouting, ...]
    balance: Tensor
    """Load-balancing loss of the level, scalar."""


class ExpertLevel(nn.Module):
    """A router and its experts: trunk, CLIP tokens and projection head of each.

    Parameters
    ----------
    router, trunk, heads : nn.Module
        The parts.
    """

    def __init__(self, router: nn.Module, trunk: nn.Module, heads: ExpertHeads) -> None:
        super().__init__()
        self.router, self.trunk, self.heads = router, trunk, heads

    def forward(self, x_PBU: Tensor, noise_PBUF: Tensor | None = None) -> LevelOutput:
        routed = self.router(x_PBU, noise_PBUF)
        units_EBK = self.trunk(routed.x_EBK)
        backbone_EBTD, clip_EBTD = self.heads(units_EBK)
        return LevelOutput(units_EBK, backbone_EBTD, clip_EBTD, routed.routing, routed.balance)


class MetaExpert(nn.Module):
    """One expert with all units as input.

    Parameters
    ----------
    trunk, heads : nn.Module
        The parts, of one expert each.
    """

    def __init__(self, trunk: nn.Module, heads: ExpertHeads) -> None:
        super().__init__()
        self.trunk, self.heads = trunk, heads

    def forward(self, x_BH: Tensor) -> tuple[Tensor, Tensor]:
        """Return backbone_BTD and clip_BTD."""
        backbone_EBTD, clip_EBTD = self.heads(self.trunk(x_BH[None]))
        return backbone_EBTD[0], clip_EBTD[0]


class ExpertMix(nn.Module):
    """Learned weighted sum of the experts of a level (BrainMoEHier; no softmax).

    Parameters
    ----------
    experts, tokens : int
        E, T.
    """

    def __init__(self, experts: int, tokens: int) -> None:
        super().__init__()
        self.backbone = nn.Parameter(torch.ones(experts, tokens))
        self.clip = nn.Parameter(torch.ones(experts, tokens))

    def forward(self, level: LevelOutput) -> tuple[Tensor, Tensor]:
        """Return backbone_BTD and clip_BTD."""
        outputs = ((self.backbone, level.backbone_EBTD), (self.clip, level.clip_EBTD))
        backbone_BTD, clip_BTD = (
            torch.einsum("et,ebtd->btd", weight, out) for weight, out in outputs
        )
        return backbone_BTD, clip_BTD


class EvenMix(nn.Module):
    """Sum (published implementation) or mean (MoRE-Brain paper) of the experts of a level.

    Parameters
    ----------
    combine : Combine
        'sum' or 'mean'.
    """

    def __init__(self, combine: Combine) -> None:
        super().__init__()
        if combine not in get_args(Combine):
            raise UserError(
                f"level_combine={combine} is not possible: take level_combine=sum or"
                " level_combine=mean."
            )
        self.combine = combine

    def forward(self, level: LevelOutput) -> tuple[Tensor, Tensor]:
        """Return backbone_BTD and clip_BTD."""
        scale = 1.0 if self.combine == "sum" else 1 / len(level.backbone_EBTD)
        return level.backbone_EBTD.sum(dim=0) * scale, level.clip_EBTD.sum(dim=0) * scale

    def as_estimates(self, stack: ExpertStack) -> ExpertStack:
        """Experts as estimates of their level."""
        return stack.estimates() if self.combine == "sum" else stack

    def extra_repr(self) -> str:
        return self.combine


def start_gain(experts: int, trunk: Trunk, combine: str) -> float:
    """Factor on the initial weights of heads that gives a level the scale of one decoder."""
    if trunk == "published":
        return 1.0
    return experts ** (0.5 if combine == "mean" else -0.5)


def embeddings(
    levels: Sequence[LevelOutput],
    mixed: Sequence[tuple[Tensor, Tensor]],
    return_experts: bool,
    meta: tuple[Tensor, Tensor] | None = None,
) -> ExpertEmbeddings:
    """Build the output record; the mean over levels counts the meta expert as a level.

    Parameters
    ----------
    levels : Sequence[LevelOutput]
        Outputs of the levels.
    mixed : Sequence[tuple[Tensor, Tensor]]
        Per level backbone_BTD and clip_BTD.
    return_experts : bool
        Keep the outputs of every expert.
    meta : tuple[Tensor, Tensor] | None, optional
        Output of the meta expert.
    """
    level_backbone_BLTD, level_clip_BLTD = (
        torch.stack(parts, dim=1) for parts in zip(*mixed, *([meta] if meta else []))
    )
    return ExpertEmbeddings(
        backbone_BTD=level_backbone_BLTD.mean(dim=1),
        clip_BTD=level_clip_BLTD.mean(dim=1),
        level_backbone_BLTD=level_backbone_BLTD,
        level_clip_BLTD=level_clip_BLTD,
        expert_backbone=(
            tuple(level.backbone_EBTD.transpose(0, 1) for level in levels) if return_experts else ()
        ),
        expert_clip=(
            tuple(level.clip_EBTD.transpose(0, 1) for level in levels) if return_experts else ()
        ),
        routing=tuple(record for level in levels for record in level.routing),
        balance_loss=torch.stack([level.balance for level in levels]).mean(),
    )
