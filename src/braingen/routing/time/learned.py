"""What the learned time routers share.

B batch, L levels, F width of the time embedding
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor

from braingen.routing.base import Choice, LevelPrior, TimeRouter, TimeRouting, TimeSettings
from braingen.routing.guidance import log_gaussian_levels
from braingen.routing.tensors import one_of, time_embedding
from braingen.runtime.errors import UserError


class LearnedTimeRouter(TimeRouter):
    """What the learned time routers share: from logits to weights.

    Parameters
    ----------
    levels : int
        L.
    embedding_dim : int
        F, width of the sinusoidal time embedding.
    temperature : float
        Logits are divided by it.
    choice : Choice, optional
        Weighted sum over levels, or one level (in training a Gumbel sample,
        straight through).
    level_prior : LevelPrior, optional
        Multiply the probabilities by the moving Gaussian: over
        the whole schedule and renormalised, or as published (moving between 3/4 and 1/4 of it, not
        renormalised).
    prior_sigma : float
        Its width, in levels.
    num_train_timesteps : int
        Length of the schedule.
    """

    def __init__(
        self,
        levels: int,
        *,
        embedding_dim: int = 320,
        temperature: float = 1.0,
        choice: Choice = "soft",
        level_prior: LevelPrior = "none",
        prior_sigma: float = 1.0,
        num_train_timesteps: int = 1000,
    ) -> None:
        super().__init__()
        if temperature <= 0:
            raise UserError(f"temperature is {temperature}; it has to be above 0")
        self.levels = levels
        self.embedding_dim = embedding_dim
        self.temperature = temperature
        self.choice = choice
        self.level_prior = level_prior
        self.prior_sigma = prior_sigma
        self.num_train_timesteps = num_train_timesteps

    @staticmethod
    def shared(settings: TimeSettings) -> dict[str, Any]:
        """The arguments that all kinds of learned router have."""
        return {
            "embedding_dim": settings.embedding_dim,
            "temperature": settings.temperature,
            "choice": settings.choice,
            "level_prior": settings.level_prior,
            "prior_sigma": settings.prior_sigma,
            "num_train_timesteps": settings.num_train_timesteps,
        }

    @abstractmethod
    def logits(self, embedding_BF: Tensor, latents_BCHW: Tensor | None = None) -> Tensor:
        """Score of every level, B x L, temperature included."""

    def route(
        self,
        embedding_BF: Tensor,
        t_B: Tensor,
        latents_BCHW: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> TimeRouting:
        """Routing from a given time embedding (parity with published weights needs the two
        apart).
        """
        logits_BL = self.logits(embedding_BF, latents_BCHW)
        probabilities_BL = torch.softmax(logits_BL, dim=-1)
        if self.level_prior != "none":
            moves = {"early": 0.75, "late": 0.25} if self.level_prior == "published" else {}
            gauss_BL = log_gaussian_levels(
                t_B,
                self.levels,
                sigma=self.prior_sigma,
                num_train_timesteps=self.num_train_timesteps,
                **moves,
            )
            probabilities_BL = probabilities_BL * gauss_BL.exp().to(probabilities_BL.dtype)
            logits_BL = logits_BL + gauss_BL.to(logits_BL.dtype)
            if self.level_prior == "multiply":
                probabilities_BL = probabilities_BL / probabilities_BL.sum(dim=-1, keepdim=True)
        if self.choice == "soft":
            return TimeRouting(probabilities_BL, probabilities_BL)
        return TimeRouting(
            one_of(logits_BL, training=self.training, generator=generator), probabilities_BL
        )

    def forward(
        self,
        t_B: Tensor,
        latents_BCHW: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> TimeRouting:
        """Weights of the levels at times `t_B`.

        Parameters
        ----------
        t_B : Tensor
            Times on the training scale.
        latents_BCHW : Tensor, optional
            Noisy latents as the U-Net reads them; needed only by a router with context.
        generator : torch.Generator | None, optional
            torch.Generator, optional Source of the noise of a hard choice in training.

        Returns
        -------
        TimeRouting
        """
        embedding_BF = time_embedding(t_B, self.embedding_dim).to(next(self.parameters()).dtype)
        return self.route(embedding_BF, t_B, latents_BCHW, generator)
