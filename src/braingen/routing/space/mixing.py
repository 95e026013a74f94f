"""Cross-attention from the noisy latents that keeps a level a mixture of its experts.

B batch, E experts of the level, T tokens, D CLIP width
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from braingen.routing.base import SpaceRouter, SpaceRouting, SpaceSettings
from braingen.routing.tensors import latent_grid
from braingen.runtime.errors import UserError


class MixingSpaceRouter(SpaceRouter):
    """Cross-attention from the noisy latents to the experts that weights them, and adds
    nothing of its own.

    Query and keys as in :class:`CrossAttentionSpaceRouter`; values are the outputs of the experts,
    so the level stays a mixture of its experts. A learned gate decides how far it leaves their
    mean: level = mean + gate * (attended - mean). It starts at zero, so that the level starts
    unrouted. (A projected value can be any linear map of the embedding, and learns one that fits
    the images it is trained on: docs/routing.md has the comparison.)

    Parameters
    ----------
    clip_emb_dim : int
        D.
    grid : int
        Side of the grid to which latents are resized.
    temperature : float
        Scores are divided by it (and by sqrt(D)).
    """

    reads_latents = True

    def __init__(self, clip_emb_dim: int, *, grid: int = 64, temperature: float = 1.0) -> None:
        super().__init__()
        self.grid = grid
        self.temperature = temperature
        self.q_proj = nn.Linear(grid**2, clip_emb_dim, bias=False)
        self.k_proj = nn.Linear(clip_emb_dim, clip_emb_dim, bias=False)
        self.gate = nn.Parameter(torch.zeros(1))

    @classmethod
    def build(cls, settings: SpaceSettings, **options: Any) -> MixingSpaceRouter:
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
        latents_BCHW : Tensor
            Noisy latents as the U-Net reads them, of any size.

        Raises
        ------
        UserError
            If there are no latents.
        """
        if latents_BCHW is None:
            raise UserError("attention between latents and experts needs the latents: give them")
        query_BD = self.q_proj(
            latent_grid(latents_BCHW, self.grid).mean(dim=1).to(self.q_proj.weight.dtype)
        )
        keys_BED = self.k_proj(experts_BETD.mean(dim=2))
        scores_BE = (keys_BED @ query_BD[:, :, None])[..., 0] / (
            query_BD.shape[-1] ** 0.5 * self.temperature
        )
        attention_BE = torch.softmax(scores_BE, dim=-1)
        mean_BTD = experts_BETD.mean(dim=1)
        attended_BTD = (experts_BETD * attention_BE[:, :, None, None]).sum(dim=1)
        use_BE = (1 - self.gate) / experts_BETD.shape[1] + self.gate * attention_BE
        return SpaceRouting(
            mean_BTD + self.gate * (attended_BTD - mean_BTD),
            use_BE[:, :, None].expand(experts_BETD.shape[:3]),
        )
