"""The diffusion prior: maps encoder outputs to the distribution of CLIP embeddings.

B batch, S brain tokens, T tokens of the embedding, D CLIP width, R random draws of a sample

Source: the DALL-E 2 style prior of MindEye2, as used by the published implementation; departures
are switches of the constructor.
"""

from __future__ import annotations

from typing import NamedTuple

from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
import torch
from torch import Tensor
from torch.nn.functional import mse_loss

from braingen.encoders.prior.network import (
    NormRule,
    NullBranch,
    PositionRule,
    PriorNetwork,
    QueryMode,
)
from braingen.encoders.prior.schedule import BetaSchedule, NoiseSchedule, SamplingRule, SamplingStep
from braingen.runtime.errors import UserError


class PriorDraws(NamedTuple):
    """Everything random in a training step of the prior, in the order of sampling."""

    times_B: Tensor
    """Diffusion times, int64, 0 to timesteps - 1."""
    noise_BTD: Tensor
    """Standard normal noise on the target."""
    uniform_condition_B: Tensor
    """Uniform draws; the brain tokens are kept where it is below 1 - condition_drop_prob."""
    uniform_image_B: Tensor
    """Uniform draws; the noisy embedding is kept where it is below 1 - image_drop_prob."""


class PriorLoss(NamedTuple):
    """A training step of the prior."""

    loss: Tensor
    """Mean squared error of the prediction, scalar."""
    prediction_BTD: Tensor
    """Predicted clean embedding, with gradient; cosine and contrastive terms of the objective are
    taken on it.
    """


class DiffusionPrior(ModelMixin, ConfigMixin):
    """Diffusion model of CLIP embeddings given brain tokens; it predicts the clean embedding.

    Cost, in network calls: training 1; `predict` 1; sampling one per step of `plan(steps)` (so many
    steps under the sampling rule "consistent") of 2 B rows, or B rows without guidance. A row is S
    + 1 + T tokens. The published call, one branch after the other, makes 58 calls of B rows for its
    30 steps; this one makes 29 (rule "published") or 30 of 2 B rows, all of the same shape, so that
    `network` may be compiled: ``prior.network.compile()``.

    Parameters
    ----------
    dim : int
        Width D of the embedding, even.
    num_tokens, num_tokens_target : int
        Brain tokens S, and tokens T of the embedding (the same if left out).
    depth, dim_head, heads : int
        Layers, width of a head, number of heads (dim // dim_head if left out, at least 1).
    timesteps, beta_schedule : int, str
        Noise steps of training and their schedule.
    condition_drop_prob, image_drop_prob : float
        Probability of replacing brain tokens and noisy embedding by null tokens, independently. The
        first trains the null branch of guidance, the second the one-pass `predict`.
    drop_in_eval : bool
        Drop in eval mode too (published implementation); by default only in training. Sampling
        never drops.
    causal, learned_query_mode, norm, relative_position : bool, optional
        See `PriorNetwork`; "published" values are the published implementation's.
    guidance_null : NullBranch, optional
        Inputs without value in the null branch of guidance: brain tokens, or
        (published) brain tokens and noisy embedding.
    sampling : SamplingRule, optional
        See `NoiseSchedule.plan`.
    """

    @register_to_config
    def __init__(
        self,
        dim: int,
        num_tokens: int = 1,
        num_tokens_target: int | None = None,
        depth: int = 6,
        dim_head: int = 52,
        heads: int | None = None,
        timesteps: int = 100,
        beta_schedule: BetaSchedule = "cosine",
        condition_drop_prob: float = 0.2,
        image_drop_prob: float = 0.2,
        drop_in_eval: bool = False,
        causal: bool = False,
        learned_query_mode: QueryMode = "pos_emb",
        norm: NormRule = "float32",
        relative_position: PositionRule = "two_sided",
        guidance_null: NullBranch = "condition",
        sampling: SamplingRule = "consistent",
    ) -> None:
        super().__init__()
        for name, share in (
            ("condition_drop_prob", condition_drop_prob),
            ("image_drop_prob", image_drop_prob),
        ):
            if not 0 <= share <= 1:
                raise UserError(
                    f"{name} of the prior is {share}; allowed are 0 to 1 (published: 0.2)"
                )
        self.network = PriorNetwork(
            dim,
            num_tokens=num_tokens,
            num_tokens_target=num_tokens_target,
            depth=depth,
            dim_head=dim_head,
            heads=heads,
            causal=causal,
            learned_query_mode=learned_query_mode,
            norm=norm,
            relative_position=relative_position,
        )
        self.schedule = NoiseSchedule(timesteps, beta_schedule)

    @property
    def target_shape(self) -> tuple[int, int]:
        """T and D of the embedding."""
        return self.network.num_tokens_target, self.config["dim"]

    def draw(self, batch: int, generator: torch.Generator) -> PriorDraws:
        """Random values of a training step, on the device of the generator."""
        device = generator.device
        return PriorDraws(
            torch.randint(self.schedule.timesteps, (batch,), generator=generator, device=device),
            torch.randn(batch, *self.target_shape, generator=generator, device=device),
            torch.rand(batch, generator=generator, device=device),
            torch.rand(batch, generator=generator, device=device),
        )

    def forward(
        self,
        brain_BSD: Tensor,
        target_BTD: Tensor,
        generator: torch.Generator | None = None,
        draws: PriorDraws | None = None,
    ) -> PriorLoss:
        """The training loss (the same as `loss`; wrapped models are called this way).

        Parameters
        ----------
        brain_BSD : Tensor
            Encoder output.
        target_BTD : Tensor
            The clean embedding.
        generator : torch.Generator | None, optional
            Source of the draws.
        draws : PriorDraws | None, optional
            Recorded draws instead; one of the two is needed. With a target of
            zeros the prediction is the published one-pass use.

        Returns
        -------
        PriorLoss

        Raises
        ------
        UserError
            If shapes do not fit (the published implementation would compare means over tokens), or
            neither generator nor draws are given.
        """
        self._check(brain_BSD)
        if tuple(target_BTD.shape) != (len(brain_BSD), *self.target_shape):
            raise UserError(
                f"the prior's target is {tuple(target_BTD.shape)}; its shape must be"
                f" {(len(brain_BSD), *self.target_shape)}"
            )
        if draws is None:
            if generator is None:
                raise UserError("the prior's loss needs a generator, or recorded draws")
            draws = self.draw(len(brain_BSD), generator)
        times_B, noise_BTD, condition_B, image_B = (draw.to(brain_BSD.device) for draw in draws)
        noisy_BTD = self.schedule.noised(target_BTD, times_B, noise_BTD.to(target_BTD.dtype))
        prediction_BTD = self.network(
            noisy_BTD.to(brain_BSD.dtype),
            times_B,
            brain_BSD,
            self._kept(condition_B, "condition"),
            self._kept(image_B, "image"),
        )
        return PriorLoss(mse_loss(prediction_BTD.float(), target_BTD.float()), prediction_BTD)

    loss = forward

    def predict(self, brain_BSD: Tensor) -> Tensor:
        """The embedding in one network call, deterministic and differentiable, for fine-tuning.

        The network is evaluated at the last time, with the noisy embedding replaced by its null
        tokens, as in training. (Published: noised zeros at a random time, and brain or
        embedding dropped at random; see `forward`.)

        Returns
        -------
        Tensor
            B x T x D.

        Raises
        ------
        UserError
            If the prior was trained with image_drop_prob 0.
        """
        self._check(brain_BSD)
        if self.config["image_drop_prob"] == 0:
            raise UserError(
                "one-pass prediction needs a prior that was trained with image_drop_prob above 0"
                " (published: 0.2)"
            )
        times_B = torch.full(
            (len(brain_BSD),), self.schedule.timesteps - 1, device=brain_BSD.device
        )
        nothing_BTD = brain_BSD.new_zeros(len(brain_BSD), *self.target_shape)
        return self.network(
            nothing_BTD,
            times_B,
            brain_BSD,
            keep_image_B=torch.zeros_like(times_B, dtype=torch.bool),
        )

    def plan(self, steps: int, eta: float = 1.0) -> tuple[SamplingStep, ...]:
        """The steps that `sample` makes; see `NoiseSchedule.plan`."""
        return self.schedule.plan(steps, eta, self.config["sampling"])

    def noise_shape(self, steps: int, eta: float = 1.0) -> tuple[int, int, int]:
        """Shape R x T x D of the noise of one sample: its start, and one per step with noise."""
        return (1 + sum(step.noise > 0 for step in self.plan(steps, eta)), *self.target_shape)

    @torch.no_grad()
    def sample(
        self,
        brain_BSD: Tensor,
        steps: int = 30,
        guidance_scale: float = 1.5,
        generator: torch.Generator | None = None,
        *,
        eta: float = 1.0,
        noise: Tensor | None = None,
    ) -> Tensor:
        """Sample embeddings.

        Parameters
        ----------
        brain_BSD : Tensor
            Encoder output.
        steps : int
            Sampling steps (published: 30); fewer than the training's is DDIM, as many is ancestral
            sampling.
        guidance_scale : float
            Classifier-free guidance, 1 for none (published: 1.5).
        generator : torch.Generator | None, optional
            Source of the noise.
        eta : float
            Noise added back at every step: 1 as published, 0 for a result that depends on its start
            only.
        noise : Tensor, optional
            The standard normal draws instead, B x R x T x D with R of `noise_shape`: a sample then
            depends on its own rows only and not on the batch it is in (seed them by image id). Of
            further draws the first R are used. One of the two is needed.

        Returns
        -------
        Tensor
            B x T x D, never clamped or rescaled (published implementation).

        Raises
        ------
        UserError
            If shapes do not fit, guidance is used with a prior trained without dropping its
            condition, or neither generator nor noise is given.
        """
        self._check(brain_BSD)
        config = self.config
        if guidance_scale != 1 and (
            config["condition_drop_prob"] == 0
            or (config["guidance_null"] == "both" and config["image_drop_prob"] == 0)
        ):
            raise UserError(
                f"guidance_scale is {guidance_scale}, but this prior was trained without dropping"
                " its conditions; use 1"
            )
        needed = (len(brain_BSD), *self.noise_shape(steps, eta))
        if noise is None:
            if generator is None:
                raise UserError("sampling the prior needs a generator, or the noise itself")
            noise = torch.randn(needed, generator=generator, device=generator.device)
        if (
            noise.ndim != 4
            or noise.shape[0] != needed[0]
            or noise.shape[1] < needed[1]
            or noise.shape[2:] != needed[2:]
        ):
            raise UserError(
                f"the prior's noise is {tuple(noise.shape)}; it must be {needed} (batch, draws,"
                " tokens, width)"
            )
        draws_RBTD = iter(noise.to(brain_BSD.device, torch.float32).transpose(0, 1))
        x_BTD = next(draws_RBTD)
        for step in self.plan(steps, eta):
            times_B = torch.full((len(brain_BSD),), step.time, device=brain_BSD.device)
            start_BTD = self.network.guided(
                x_BTD.to(brain_BSD.dtype),
                times_B,
                brain_BSD,
                guidance_scale,
                config["guidance_null"],
            )
            x_BTD = step.start * start_BTD.float() + step.sample * x_BTD
            if step.noise:
                x_BTD = x_BTD + step.noise * next(draws_RBTD)
        return x_BTD.to(brain_BSD.dtype)

    def _kept(self, uniform_B: Tensor, what: str) -> Tensor | None:
        """Mask of kept conditions; None without dropping."""
        share = self.config[f"{what}_drop_prob"]
        if share == 0 or not (self.training or self.config["drop_in_eval"]):
            return None
        return uniform_B < 1 - share

    def _check(self, brain_BSD: Tensor) -> None:
        wanted = (self.config["num_tokens"], self.config["dim"])
        if brain_BSD.ndim != 3 or tuple(brain_BSD.shape[1:]) != wanted:
            raise UserError(
                f"the prior was given brain tokens of shape {tuple(brain_BSD.shape)}; it needs B x"
                f" {wanted[0]} x {wanted[1]}"
            )
