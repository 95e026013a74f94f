"""No routing: the mean or the sum over the experts of a level.

B batch, E experts of the level, T tokens, D CLIP width
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from braingen.routing.base import SpaceRouter, SpaceRouting, SpaceSettings


class MeanSpaceRouter(SpaceRouter):
    """No routing: the mean over experts (paper), or their sum (published implementation).

    Parameters
    ----------
    reduce : Literal['mean', 'sum'], optional
        Which of the two.
    """

    reads_experts = False

    def __init__(self, *, reduce: Literal["mean", "sum"] = "mean") -> None:
        super().__init__()
        self.reduce = reduce

    @classmethod
    def build(cls, settings: SpaceSettings, **options: Any) -> MeanSpaceRouter:
        """A fresh router."""
        return cls(reduce=settings.level_output)

    def forward(
        self,
        experts_BETD: Tensor,
        latents_BCHW: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> SpaceRouting:
        """Mix; latents and generator have no influence."""
        number = experts_BETD.shape[1]
        if self.reduce == "mean":
            return SpaceRouting(
                experts_BETD.mean(dim=1), torch.full_like(experts_BETD[..., 0], 1 / number)
            )
        return SpaceRouting(experts_BETD.sum(dim=1), torch.ones_like(experts_BETD[..., 0]))
