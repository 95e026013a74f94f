"""Gates from the mean over experts.

B batch, E experts of the level, T tokens, D CLIP width
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from braingen.routing.base import SpaceRouter, SpaceRouting, SpaceSettings, weighted
from braingen.routing.tensors import one_of
from braingen.runtime.errors import UserError


class GateSpaceRouter(SpaceRouter):
    """Gates from the mean over experts.

    Parameters
    ----------
    num_exp : int
        E.
    clip_emb_dim : int
        D.
    gate : Literal['softmax', 'sigmoid', 'gumbel'], optional
        How scores become weights. gumbel: one expert per token, in
        training a Gumbel sample with a straight-through gradient.
    temperature : float
        Scores are divided by it.
    normalize : bool
        Divide sigmoid gates by their sum, so that the level keeps its scale (published: not).
    """

    def __init__(
        self,
        num_exp: int,
        clip_emb_dim: int,
        *,
        gate: Literal["softmax", "sigmoid", "gumbel"] = "softmax",
        temperature: float = 1.0,
        normalize: bool = True,
    ) -> None:
        super().__init__()
        if gate not in ("softmax", "sigmoid", "gumbel"):
            raise UserError(f"gate is {gate!r}; allowed are 'softmax', 'sigmoid' and 'gumbel'")
        self.kind = gate
        self.temperature = temperature
        self.normalize = normalize
        self.gate = nn.Linear(clip_emb_dim, num_exp, bias=False)
        nn.init.constant_(self.gate.weight, 1 / num_exp)  # as published: all experts alike

    @classmethod
    def build(cls, settings: SpaceSettings, **options: Any) -> GateSpaceRouter:
        """A fresh router."""
        return cls(
            settings.experts, settings.clip_emb_dim, temperature=settings.temperature, **options
        )

    def forward(
        self,
        experts_BETD: Tensor,
        latents_BCHW: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> SpaceRouting:
        """Mix; latents have no influence."""
        scores_BTE = self.gate(experts_BETD.mean(dim=1)) / self.temperature
        if self.kind == "softmax":
            weights_BTE = torch.softmax(scores_BTE, dim=-1)
        elif self.kind == "sigmoid":
            weights_BTE = torch.sigmoid(scores_BTE)
            if self.normalize:
                weights_BTE = weights_BTE / weights_BTE.sum(dim=-1, keepdim=True)
        else:
            weights_BTE = one_of(scores_BTE, training=self.training, generator=generator)
        return weighted(experts_BETD, weights_BTE.transpose(1, 2))
