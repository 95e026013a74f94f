"""Which level of experts the diffusion model listens to, and when.

B batch, L levels, F width of the time embedding, H hidden width, C latent channels, P cells of the
context grid

Level 0 is the coarsest. Every router returns a weight per level; levels are mixed with them in
`diffuse_router.py`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from math import prod
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, interpolate, one_hot, pad

from braingen.encoders.sinusoids import falling_frequencies, sines_and_cosines
from braingen.runtime.errors import UserError

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


def time_embedding(t_B: Tensor, width: int) -> Tensor:
    """Sinusoidal embedding of diffusion times as SDXL's U-Net makes it, but exact: cosines, then
    sines.

    Parameters
    ----------
    t_B : Tensor
        Times on the training scale (0 to 999 for SDXL), whole or fractional.
    width : int
        F; 320 in the published sizes.

    Returns
    -------
    Tensor
        B x F, float32.
    """
    half = width // 2
    sin_BF, cos_BF = sines_and_cosines(t_B, falling_frequencies(half, half, t_B.device))
    return pad(torch.cat([cos_BF, sin_BF], dim=-1), (0, width % 2))


def latent_grid(latents_BCHW: Tensor, grid: Grid) -> Tensor:
    """Latents resized to a fixed grid, so that a router's widths do not depend on the size of the
    picture.

    Parameters
    ----------
    latents_BCHW : Tensor
        Noisy latents as the U-Net reads them (after the scheduler's ``scale_model_input``).
    grid : int or (int, int)
        Its side, or its height and width. Latents of that size pass unchanged; others are resized
        bilinearly, antialiased.

    Returns
    -------
    Tensor
        B x C x P, float32.
    """
    x_BCHW = latents_BCHW.float()
    size = (grid, grid) if isinstance(grid, int) else tuple(grid)
    if x_BCHW.shape[-2:] != size:
        x_BCHW = interpolate(
            x_BCHW, size=size, mode="bilinear", antialias=True, align_corners=False
        )
    return x_BCHW.flatten(2)


def log_gaussian_levels(
    t_B: Tensor,
    levels: int,
    *,
    sigma: float = 1.0,
    num_train_timesteps: int = 1000,
    early: float = 1.0,
    late: float = 0.0,
) -> Tensor:
    """Logarithm of a Gaussian over levels whose centre moves from the coarsest to the finest while
    the picture forms (paper eq. 5).

    Parameters
    ----------
    t_B : Tensor
        Diffusion times.
    levels : int
        L.
    sigma : float
        Width, in levels (paper: 1).
    num_train_timesteps : int
        Length of the schedule.
    early, late : float
        Shares of the schedule at which the centre leaves the coarsest and reaches the finest level.
        The published implementation lets it move between 0.75 and 0.25 only; here it moves all the
        time.

    Returns
    -------
    Tensor
        B x L; the exponentials of a row sum to 1.
    """
    start, end = early * num_train_timesteps, late * num_train_timesteps
    centre_B1 = (levels - 1) * (start - t_B.float().clamp(end, start)[:, None]) / (start - end)
    distance_BL = torch.arange(levels, device=t_B.device) - centre_B1
    return torch.log_softmax(-distance_BL.square() / (2 * sigma**2), dim=-1)


def kl_guidance(
    probabilities_BL: Tensor, t_B: Tensor, *, sigma: float = 1.0, num_train_timesteps: int = 1000
) -> Tensor:
    """KL divergence of a time router's probabilities from the moving Gaussian, averaged over the
    batch (paper eq. 5).

    The published code has no such term; its Gaussian is a multiplicative prior that no script
    switches on.

    Parameters
    ----------
    probabilities_BL : Tensor
        `TimeRouting.probabilities_BL`.
    t_B : Tensor
        The times they belong to.
    sigma, num_train_timesteps : float, optional
        As for `log_gaussian_levels`.

    Returns
    -------
    Tensor
        Scalar, in nats; zero only where the router follows the Gaussian.
    """
    target_BL = log_gaussian_levels(
        t_B, probabilities_BL.shape[-1], sigma=sigma, num_train_timesteps=num_train_timesteps
    )
    p_BL = probabilities_BL.float()
    return (torch.xlogy(p_BL, p_BL) - p_BL * target_BL).sum(dim=-1).mean()


def one_of(logits: Tensor, *, training: bool, generator: torch.Generator | None = None) -> Tensor:
    """One choice along the last axis as a one-hot vector: the largest, or in training a Gumbel
    sample with a straight-through gradient.

    Parameters
    ----------
    logits : Tensor
        ... x N.
    training : bool
        Sample (forward: one-hot, backward: the softmax of the perturbed logits) instead of taking
        the largest.
    generator : torch.Generator | None, optional
        torch.Generator, optional Source of the Gumbel noise; torch's global one if left out.

    Returns
    -------
    Tensor
        ... x N, like `logits`.
    """
    if not training:
        return one_hot(logits.argmax(dim=-1), logits.shape[-1]).to(logits.dtype)
    device = logits.device if generator is None else generator.device
    uniform = torch.rand(logits.shape, generator=generator, device=device).to(logits)
    tiny = torch.finfo(logits.dtype).tiny
    exponential = -uniform.clamp_min(tiny).log()
    soft = torch.softmax(logits - exponential.clamp_min(tiny).log(), dim=-1)
    hard = one_hot(soft.argmax(dim=-1), logits.shape[-1]).to(logits.dtype)
    return hard + soft - soft.detach()


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

    A new kind is a subclass with a line in `TIME_ROUTERS` and its name in ``router.time``
    (config/generation.py).
    """

    @classmethod
    @abstractmethod
    def build(cls, settings: TimeSettings) -> TimeRouter:
        """A fresh router."""

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
    def build(cls, settings: TimeSettings) -> FixedTimeRouter:
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
        {"soft", "hard"} Weighted sum over levels, or one level (in training a Gumbel sample,
        straight through).
    level_prior : LevelPrior, optional
        {"none", "multiply", "published"} Multiply the probabilities by the moving Gaussian: over
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


class MLPTimeRouter(LearnedTimeRouter):
    """Multilayer perceptron on the time embedding.

    First a linear map and GELU; each further layer adds a linear map of the layer norm (one norm,
    shared by all layers); then a linear map to L. That last one starts at zero, so routing starts
    uniform: exactly the unrouted result.

    Parameters
    ----------
    levels : int
        L.
    hidden_dim : int
        H.
    num_layers : int
        Layers before the last, at least 1.
    **shared
        As for `LearnedTimeRouter`.
    """

    def __init__(
        self, levels: int, *, hidden_dim: int = 768, num_layers: int = 3, **shared
    ) -> None:
        super().__init__(levels, **shared)
        if num_layers < 1:
            raise UserError(f"num_layers is {num_layers}; the router needs at least 1")
        widths = [self.embedding_dim] + [hidden_dim] * (num_layers - 1)
        self.layers = nn.ModuleList(nn.Linear(width, hidden_dim) for width in widths)
        # a norm that no layer reads would be a parameter without gradient
        self.layer_norm = nn.LayerNorm(hidden_dim) if num_layers > 1 else None
        self.output_layer = nn.Linear(hidden_dim, levels)
        nn.init.zeros_(self.output_layer.weight)
        nn.init.zeros_(self.output_layer.bias)

    @classmethod
    def build(cls, settings: TimeSettings) -> MLPTimeRouter:
        """A fresh router."""
        return cls(
            settings.levels,
            hidden_dim=settings.hidden_dim,
            num_layers=settings.layers,
            **cls.shared(settings),
        )

    def logits(self, embedding_BF: Tensor, latents_BCHW: Tensor | None = None) -> Tensor:
        """Score of every level, B x L, temperature included."""
        x_BH = gelu(self.layers[0](embedding_BF))
        for layer in list(self.layers)[1:]:
            assert self.layer_norm is not None
            x_BH = x_BH + layer(self.layer_norm(x_BH))
        return self.output_layer(x_BH) / self.temperature


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
    def build(cls, settings: TimeSettings) -> AttentionTimeRouter:
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


TIME_ROUTERS: dict[str, type[TimeRouter] | None] = {
    "off": None,
    "fixed": FixedTimeRouter,
    "mlp": MLPTimeRouter,
    "attention": AttentionTimeRouter,
}
"""Kinds of time router by the name that stands in ``router.time``; None mixes the levels evenly."""
