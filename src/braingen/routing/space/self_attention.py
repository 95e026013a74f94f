"""Self-attention among the experts of a level.

B batch, E experts of the level, T tokens, D CLIP width
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from braingen.routing.base import SpaceRouter, SpaceRouting, SpaceSettings, weighted


class SelfAttentionSpaceRouter(SpaceRouter):
    """Experts weighted by how well their key answers the query of the mean over experts.

    Parameters
    ----------
    clip_emb_dim : int
        D.
    temperature : float
        Scores are divided by it (and by sqrt(D)).
    scale_output : bool
        Multiply the weights by E (published option, for levels that are sums).
    """

    def __init__(
        self, clip_emb_dim: int, *, temperature: float = 1.0, scale_output: bool = False
    ) -> None:
        super().__init__()
        self.temperature = temperature
        self.scale_output = scale_output
        self.query_linear = nn.Linear(clip_emb_dim, clip_emb_dim)
        # without a bias, for the same reason as above
        self.key_linear = nn.Linear(clip_emb_dim, clip_emb_dim, bias=False)
        nn.init.zeros_(self.query_linear.weight)
        nn.init.zeros_(self.query_linear.bias)

    @classmethod
    def build(cls, settings: SpaceSettings, **options: Any) -> SelfAttentionSpaceRouter:
        """A fresh router."""
        return cls(settings.clip_emb_dim, temperature=settings.temperature, **options)

    def forward(
        self,
        experts_BETD: Tensor,
        latents_BCHW: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> SpaceRouting:
        """Mix; latents and generator have no influence."""
        query_B1TD = self.query_linear(experts_BETD.mean(dim=1, keepdim=True))
        scores_BET = (query_B1TD * self.key_linear(experts_BETD)).sum(dim=-1)
        weights_BET = torch.softmax(
            scores_BET / (experts_BETD.shape[-1] ** 0.5 * self.temperature), dim=1
        )
        if self.scale_output:
            weights_BET = weights_BET * experts_BETD.shape[1]
        return weighted(experts_BETD, weights_BET)
