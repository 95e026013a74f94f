"""Attention of the time over the levels, the paper's time router.

B batch, L levels, F width of the time embedding, H hidden width, P cells of the context grid
"""

from __future__ import annotations

from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from braingen.routing.base import Grid, TimeSettings
from braingen.routing.tensors import latent_grid
from braingen.routing.time.learned import LearnedTimeRouter
from braingen.runtime.errors import UserError


class AttentionTimeRouter(LearnedTimeRouter):
    """Attention of the projected time embedding over one learned embedding per level (the paper's
    router).

    The query's projection starts at zero, so routing starts uniform: exactly the unrouted result.

    Parameters
    ----------
    levels : int
        L.
    hidden_dim : int
        H, width of the level embeddings (768 published).
    context : bool
        Add the latents (mean over channels, on a fixed grid, projected) to the query. (The
        published class can add them to every key instead, which adds the same to every level's
        score and therefore changes nothing.)
    context_size : int or (int, int)
        Side, or height and width, of that grid (28 is the published default, fitting 224 px only;
        here any latents are resized to it).
    **shared
        As for `LearnedTimeRouter`.
    """

    def __init__(
        self,
        levels: int,
        *,
        hidden_dim: int = 768,
        context: bool = False,
        context_size: Grid = 64,
        **shared,
    ) -> None:
        super().__init__(levels, **shared)
        self.context_size = context_size
        self.granularity_embeddings = nn.Parameter(torch.randn(levels, hidden_dim))
        self.timestep_proj = nn.Linear(self.embedding_dim, hidden_dim)
        cells = context_size**2 if isinstance(context_size, int) else prod(context_size)
        self.context_proj = nn.Linear(cells, hidden_dim) if context else None
        for projection in (self.timestep_proj, self.context_proj):
            if projection is not None:
                nn.init.zeros_(projection.weight)
                nn.init.zeros_(projection.bias)

    @classmethod
    def build(cls, settings: TimeSettings, **options: Any) -> AttentionTimeRouter:
        """A fresh router."""
        return cls(
            settings.levels,
            hidden_dim=settings.hidden_dim,
            context=settings.context,
            context_size=settings.context_size,
            **cls.shared(settings),
        )

    def logits(self, embedding_BF: Tensor, latents_BCHW: Tensor | None = None) -> Tensor:
        """Score of every level, B x L, temperature included."""
        query_BH = self.timestep_proj(embedding_BF)
        if self.context_proj is not None:
            if latents_BCHW is None:
                raise UserError(
                    "this time router reads the latents (context is on), but none were given"
                )
            cells_BP = latent_grid(latents_BCHW, self.context_size).mean(dim=1)
            query_BH = query_BH + self.context_proj(cells_BP.to(self.context_proj.weight.dtype))
        return (
            query_BH
            @ self.granularity_embeddings.T
            / (query_BH.shape[-1] ** 0.5 * self.temperature)
        )
