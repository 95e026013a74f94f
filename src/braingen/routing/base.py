"""What a time router and a space router are, and how the kinds of them are found by name.

B batch, L levels, E experts of the level, T tokens, D CLIP width

A kind is a class in a file of `routing/time/` or `routing/space/` and a line in
`braingen.config.kinds` (docs/extending.md).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn

from braingen.config.kinds import SPACE_ROUTERS, TIME_ROUTERS
from braingen.runtime.kinds import load_kind

Choice = Literal["soft", "hard"]
LevelPrior = Literal["none", "multiply", "published"]
Grid = int | tuple[int, int]
"""Side of a square, or height and width."""


class TimeRouting(NamedTuple):
    """How a time router shares a step out among the levels."""

    weights_BL: Tensor
    """What the levels are multiplied with: the probabilities (soft), or 1 for the chosen level
    (hard).
    """
    probabilities_BL: Tensor
    """Soft probability of every level: what the guidance loss acts on, whatever the choice."""


class TimeSettings(NamedTuple):
    """What a time router may be built from; each kind takes what it needs."""

    levels: int
    """L."""
    hidden_dim: int = 768
    embedding_dim: int = 320
    layers: int = 3
    temperature: float = 1.0
    choice: Choice = "soft"
    context: bool = False
    context_size: Grid = 64
    level_prior: LevelPrior = "none"
    prior_sigma: float = 1.0
    num_train_timesteps: int = 1000


class TimeRouter(nn.Module, ABC):
    """Contract of a time router: built from `TimeSettings`, it weighs the levels at a denoising
    time.

    A new kind is a subclass in a file of `routing/time/`, with a line in
    `braingen.config.kinds.TIME_ROUTERS`.
    """

    @classmethod
    @abstractmethod
    def build(cls, settings: TimeSettings, **options: Any) -> TimeRouter:
        """A fresh router; options are those of the kind's line."""

    @property
    def learned(self) -> bool:
        """Whether it has weights of its own; the pull toward coarse levels early (`kl_guidance`)
        acts on every router that has.
        """
        return any(True for _ in self.parameters())

    @abstractmethod
    def forward(
        self,
        t_B: Tensor,
        latents_BCHW: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> TimeRouting:
        """Weights of the levels at times `t_B` on the training scale; see
        `LearnedTimeRouter.forward`.
        """


class SpaceRouting(NamedTuple):
    """One level after its experts were mixed."""

    embedding_BTD: Tensor
    """The level's embedding."""
    weights_BET: Tensor
    """Use of every expert: its weight for every token, or (cross-attention) the attention paid to
    its tokens, summing to 1 over E and T.
    """


class SpaceSettings(NamedTuple):
    """What the space router of a level may be built from; each kind takes what it needs."""

    experts: int
    """E."""
    clip_emb_dim: int
    """D."""
    clip_seq_dim: int = 1
    """T."""
    temperature: float = 1.0
    grid: int = 64
    level_output: Literal["mean", "sum"] = "mean"


class SpaceRouter(nn.Module, ABC):
    """Contract of a space router: built from `SpaceSettings`, it mixes the experts of a level.

    A new kind is a subclass in a file of `routing/space/`, with a line in
    `braingen.config.kinds.SPACE_ROUTERS`.
    """

    reads_experts: ClassVar[bool] = True
    """Whether single experts are needed; else the level's own output does."""
    reads_latents: ClassVar[bool] = False
    """Whether it looks at the noisy latents, on the grid of ``router.space_grid``."""
    use_sums_over_tokens: ClassVar[bool] = False
    """Whether its weights sum to 1 over experts and tokens together; else over the experts of a
    token.
    """

    @classmethod
    @abstractmethod
    def build(cls, settings: SpaceSettings, **options: Any) -> SpaceRouter:
        """A fresh router; options are those of the kind's line."""

    @abstractmethod
    def forward(
        self,
        experts_BETD: Tensor,
        latents_BCHW: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> SpaceRouting:
        """Mix the experts of a level; see `CrossAttentionSpaceRouter.forward`."""


def weighted(experts_BETD: Tensor, weights_BET: Tensor) -> SpaceRouting:
    """A level as the weighted sum of its experts."""
    return SpaceRouting((experts_BETD * weights_BET[..., None]).sum(dim=1), weights_BET)


def time_router(name: str, settings: TimeSettings) -> TimeRouter | None:
    """A fresh time router of a kind; None for the kind that mixes levels evenly.

    Raises
    ------
    UserError
        For a kind that does not exist or whose class breaks the contract.
    """
    kind = load_kind(TIME_ROUTERS, name, TimeRouter, "time")
    return None if kind is None else kind.build(settings, **TIME_ROUTERS[name].options)


def space_router(name: str, settings: SpaceSettings) -> SpaceRouter:
    """A fresh space router of a kind.

    Raises
    ------
    UserError
        For a kind that does not exist or whose class breaks the contract.
    """
    kind = load_kind(SPACE_ROUTERS, name, SpaceRouter, "space")
    assert kind is not None
    return kind.build(settings, **SPACE_ROUTERS[name].options)
