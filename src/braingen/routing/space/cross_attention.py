"""Cross-attention from the noisy latents to the experts, the paper's space router.

B batch, E experts of the level, T tokens, D CLIP width,
P cells of the latent grid
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from braingen.routing.base import SpaceRouter, SpaceRouting, SpaceSettings
from braingen.routing.tensors import latent_grid
from braingen.runtime.errors import UserError


class CrossAttentionSpaceRouter(SpaceRouter):
    """Cross-attention from the noisy latents to the experts, added to their mean (the paper's
    router).

    The query is the mean over channels of the projected latents, keys and values are projections of
    all experts' tokens; the attended value is added to every token of the mean over experts. Values
    start at zero (published: random), so that the level starts unrouted.

    Parameters
    ----------
    clip_emb_dim : int
        D.
    grid : int
        Side of the grid to which latents are resized (64 published, which fits 512 px only; here
        any size is resized to it).
    temperature : float
        Scores are divided by it (and by sqrt(D)).
    learned_query : bool
        Have a learned latent image to use where no latents are given.
    """

    reads_latents = True
    use_sums_over_tokens = True

    def __init__(
        self,
        clip_emb_dim: int,
        *,
        grid: int = 64,
        temperature: float = 1.0,
        learned_query: bool = False,
    ) -> None:
        super().__init__()
        self.grid = grid
        self.temperature = temperature
        self.q_proj = nn.Linear(grid**2, clip_emb_dim, bias=False)
        self.k_proj = nn.Linear(clip_emb_dim, clip_emb_dim, bias=False)
        self.v_proj = nn.Linear(clip_emb_dim, clip_emb_dim, bias=False)
        nn.init.zeros_(self.v_proj.weight)
        self.query = nn.Parameter(torch.randn(1, 1, grid**2)) if learned_query else None

    @classmethod
    def build(cls, settings: SpaceSettings, **options: Any) -> CrossAttentionSpaceRouter:
        """A fresh router."""
        return cls(
            settings.clip_emb_dim, grid=settings.grid, temperature=settings.temperature, **options
        )

    def forward(
        self,
        experts_BETD: Tensor,
        latents_BCHW: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> SpaceRouting:
        """Mix.

        Parameters
        ----------
        experts_BETD : Tensor
            The experts of the level.
        latents_BCHW : Tensor, optional
            Noisy latents as the U-Net reads them, of any size; may be left out only with a learned
            query.

        Raises
        ------
        UserError
            If there are neither latents nor a learned query.
        """
        B, E, T, _D = experts_BETD.shape
        if latents_BCHW is not None:
            cells_BP = latent_grid(latents_BCHW, self.grid).mean(
                dim=1
            )  # projecting the mean is the mean of the projections
        elif self.query is not None:
            cells_BP = self.query[:, 0].expand(B, -1)
        else:
            raise UserError(
                "cross-attention between latents and experts needs the latents: give them, or set"
                " learned_query"
            )
        query_BD = self.q_proj(cells_BP.to(self.q_proj.weight.dtype))
        all_BND = experts_BETD.flatten(1, 2)
        scores_BN = (self.k_proj(all_BND) @ query_BD[:, :, None])[..., 0] / (
            query_BD.shape[-1] ** 0.5 * self.temperature
        )
        attention_BN = torch.softmax(scores_BN, dim=-1)
        attended_B1D = attention_BN[:, None] @ self.v_proj(all_BND)
        return SpaceRouting(experts_BETD.mean(dim=1) + attended_B1D, attention_BN.view(B, E, T))
