"""A schedule: coarse levels while the image is still noise, fine ones at the end."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from braingen.routing.base import TimeRouter, TimeRouting, TimeSettings


class FixedTimeRouter(TimeRouter):
    """Schedule without parameters: level min(L - 1, floor(L (1 - t/T))), coarse while the image is
    still noise, fine at the end.

    Parameters
    ----------
    levels : int
        L.
    num_train_timesteps : int
        T, the length of the training schedule. (The published pipeline passes the number of
        sampling steps here when sampling, which makes nearly every step choose the coarsest level.)
    """

    def __init__(self, levels: int, *, num_train_timesteps: int = 1000) -> None:
        super().__init__()
        self.levels = levels
        self.num_train_timesteps = num_train_timesteps

    @classmethod
    def build(cls, settings: TimeSettings, **options: Any) -> FixedTimeRouter:
        """A fresh router."""
        return cls(settings.levels, num_train_timesteps=settings.num_train_timesteps)

    def level(self, t_B: Tensor) -> Tensor:
        """The level of every time, B, int64; times beyond T count as T."""
        level_B = torch.floor(
            self.levels * (self.num_train_timesteps - t_B.double()) / self.num_train_timesteps
        )
        return level_B.clamp(0, self.levels - 1).long()

    def forward(
        self,
        t_B: Tensor,
        latents_BCHW: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> TimeRouting:
        """All weight on the scheduled level; latents and generator have no influence."""
        weights_BL = one_hot(self.level(t_B), self.levels).float()
        return TimeRouting(weights_BL, weights_BL)
