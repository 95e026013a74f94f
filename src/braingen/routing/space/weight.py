"""Learned weights of the experts.

B batch, E experts of the level, T tokens, D CLIP width
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from braingen.routing.base import SpaceRouter, SpaceRouting, SpaceSettings, weighted
from braingen.runtime.errors import UserError


class WeightSpaceRouter(SpaceRouter):
    """One learned weight per expert and token, or a score per expert from its own embedding.

    Parameters
    ----------
    num_exp : int
        E.
    clip_emb_dim : int
        D.
    clip_seq_dim : int
        T.
    start : Literal['mean', 'ones', 'rand', 'query'], optional
        {"mean", "ones", "rand", "query"} mean: free weights that start at 1/E. ones, rand: free
        weights that start at 1 or standard normal (published). query: softmax over experts of one
        linear score of each expert's token (published).
    temperature : float
        Divides the scores of "query".
    """

    def __init__(
        self,
        num_exp: int,
        clip_emb_dim: int,
        clip_seq_dim: int = 1,
        *,
        start: Literal["mean", "ones", "rand", "query"] = "mean",
        temperature: float = 1.0,
    ) -> None:
        super().__init__()
        if start not in ("mean", "ones", "rand", "query"):
            raise UserError(f"start is {start!r}; allowed are 'mean', 'ones', 'rand' and 'query'")
        self.temperature = temperature
        self.router: nn.Parameter | nn.Linear
        if start == "query":
            # without a bias: it would add the same to every expert's score, which softmax takes out
            # again
            self.router = nn.Linear(clip_emb_dim, 1, bias=False)
            nn.init.zeros_(self.router.weight)
        else:
            shape = (num_exp, clip_seq_dim)
            self.router = nn.Parameter(
                {
                    "mean": torch.full(shape, 1 / num_exp),
                    "ones": torch.ones(shape),
                    "rand": torch.randn(shape),
                }[start]
            )

    @classmethod
    def build(cls, settings: SpaceSettings, **options: Any) -> WeightSpaceRouter:
        """A fresh router."""
        return cls(
            settings.experts,
            settings.clip_emb_dim,
            settings.clip_seq_dim,
            temperature=settings.temperature,
            **options,
        )

    def forward(
        self,
        experts_BETD: Tensor,
        latents_BCHW: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> SpaceRouting:
        """Mix; latents and generator have no influence."""
        if isinstance(self.router, nn.Linear):
            weights_BET = torch.softmax(self.router(experts_BETD)[..., 0] / self.temperature, dim=1)
        else:
            weights_BET = self.router[None].expand(experts_BETD.shape[:3])
        return weighted(experts_BETD, weights_BET)
