"""Noise schedule and sampling steps of the diffusion prior.

B batch, T tokens, D CLIP width, K noise steps of training
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from braingen.runtime.errors import UserError

BetaSchedule = Literal["cosine", "linear", "quadratic", "sigmoid", "jsd"]
SamplingRule = Literal["consistent", "published"]

BETA_MAX = 0.999
"""Largest beta of the cosine schedule (Nichol & Dhariwal 2021; published implementation)."""
COSINE_OFFSET = 0.008
"""Keeps the first betas of the cosine schedule above zero (Nichol & Dhariwal 2021; published
implementation).
"""


class SamplingStep(NamedTuple):
    """One step: next sample = start * prediction + sample * current sample + noise * new draw."""

    time: int
    """Time given to the network."""
    start: float
    """Weight of the predicted clean embedding."""
    sample: float
    """Weight of the current sample."""
    noise: float
    """Standard deviation of the noise that is added; no draw is used where it is 0."""


def betas_of(schedule: BetaSchedule, timesteps: int) -> np.ndarray:
    """Share of variance replaced by noise at every step.

    Parameters
    ----------
    schedule : BetaSchedule
        The published prior uses "cosine"; the
        others are those of the DALL-E 2 library.
    timesteps : int
        Number of steps K.

    Returns
    -------
    np.ndarray
        float64, K.

    Raises
    ------
    UserError
        If the schedule is unknown or there are no steps.
    """
    if timesteps < 1:
        raise UserError(
            f"timesteps of the prior is {timesteps}; it must be at least 1 (published: 100)"
        )
    low, high = 0.1 / timesteps, 20.0 / timesteps  # 1e-4 and 0.02 for 1000 steps
    if schedule == "cosine":
        place = (np.arange(timesteps + 1) / timesteps + COSINE_OFFSET) / (1 + COSINE_OFFSET)
        left = np.cos(place * math.pi / 2) ** 2
        return np.clip(1 - left[1:] / left[:-1], 0, BETA_MAX)
    if schedule == "linear":
        return np.linspace(low, high, timesteps)
    if schedule == "quadratic":
        return np.linspace(math.sqrt(low), math.sqrt(high), timesteps) ** 2
    if schedule == "sigmoid":
        return low + (high - low) / (1 + np.exp(-np.linspace(-6, 6, timesteps)))
    if schedule == "jsd":
        return 1 / np.linspace(timesteps, 1, timesteps)
    raise UserError(
        f"beta_schedule is {schedule!r}; allowed are cosine, linear, quadratic, sigmoid, jsd"
    )


class NoiseSchedule:
    """Tables of the forward process and plans of the reverse process.

    Tables are computed in float64 and read in float32 (published implementation). This is not
    a module: nothing is trained, saved, or cast to half precision with the model.

    Parameters
    ----------
    timesteps : int
        Number of steps K.
    schedule : str
        See `betas_of`.
    """

    def __init__(self, timesteps: int = 100, schedule: BetaSchedule = "cosine") -> None:
        self.betas = betas_of(schedule, timesteps)
        alphas = 1 - self.betas
        self.kept = np.cumprod(alphas)
        """Share of the variance that is signal after every step (alpha-bar)."""
        self.kept_before = np.concatenate([[1.0], self.kept[:-1]])
        """The same before the step."""
        self.posterior_variance = self.betas * (1 - self.kept_before) / (1 - self.kept)
        """Variance of the step back, given the clean embedding."""
        self.posterior_start = self.betas * np.sqrt(self.kept_before) / (1 - self.kept)
        """Weight of the clean embedding in the mean of the step back."""
        self.posterior_sample = (1 - self.kept_before) * np.sqrt(alphas) / (1 - self.kept)
        """Weight of the noisy embedding in the mean of the step back."""

    @property
    def timesteps(self) -> int:
        """Number of steps K."""
        return len(self.betas)

    def noised(self, start_BTD: Tensor, times_B: Tensor, noise_BTD: Tensor) -> Tensor:
        """Add the noise of given times to clean embeddings.

        Parameters
        ----------
        start_BTD, noise_BTD : Tensor
            Clean embeddings; standard normal draws.
        times_B : Tensor
            int64, 0 to K - 1.
        """
        signal, spread = (
            at_times(table, times_B, start_BTD.ndim)
            for table in (np.sqrt(self.kept), np.sqrt(1 - self.kept))
        )
        return (signal * start_BTD + spread * noise_BTD).to(start_BTD.dtype)

    def velocity(self, start_BTD: Tensor, times_B: Tensor, noise_BTD: Tensor) -> Tensor:
        """Salimans & Ho's v for a clean embedding and a noise."""
        signal, spread = (
            at_times(table, times_B, start_BTD.ndim)
            for table in (np.sqrt(self.kept), np.sqrt(1 - self.kept))
        )
        return signal * noise_BTD - spread * start_BTD

    def plan(
        self, steps: int, eta: float = 1.0, rule: SamplingRule = "consistent"
    ) -> tuple[SamplingStep, ...]:
        """The steps of sampling, from pure noise to a clean embedding.

        Parameters
        ----------
        steps : int
            Under the rule "consistent" the number of network calls, 1 to K: times are spread evenly
            from K - 1 down, and a step goes from one to the next by DDIM (Song et al. 2021, eq.
            12). With K steps and eta 1 that is ancestral (DDPM) sampling. Under the rule
            "published", n below K makes n - 1 network calls, starts a few steps below the top with
            pure noise, takes the signal shares of the step before but recovers the noise with those
            of the step itself; n of K or above is ancestral sampling with K calls.
        eta : float
            Noise added back at every step: 0 is deterministic, 1 as much as ancestral sampling
            (published).
        rule : SamplingRule, optional
            Which of the two.

        Raises
        ------
        UserError
            If steps or eta are out of range.
        """
        K = self.timesteps
        if not 0 <= eta <= 1:
            raise UserError(
                f"eta is {eta}; allowed are 0 (deterministic) to 1 (as much noise as in training)"
            )
        if rule == "consistent":
            if not 1 <= steps <= K:
                raise UserError(
                    f"the prior was asked for {steps} sampling steps; allowed are 1 to {K}, its"
                    " training steps"
                )
            times = [-(-K * left // steps) - 1 for left in range(steps, 0, -1)]
            return self._ddim(times, self.kept, eta)
        if steps >= K:
            weights = np.stack(
                [self.posterior_start, self.posterior_sample, np.sqrt(self.posterior_variance)],
                axis=1,
            ).tolist()
            return tuple(
                SamplingStep(t, *weights[t]) for t in reversed(range(K))
            )  # no noise at time 0: its variance is 0
        if steps < 2:
            raise UserError(
                f"the published sampler was asked for {steps} steps; allowed are 2 or more, it"
                " makes one call fewer"
            )
        ladder = (
            torch.linspace(-1.0, K, steps + 1)[:-1].int().tolist()
        )  # float32, rounded towards 0: as published
        return self._ddim(ladder[:0:-1], self.kept_before, eta)

    def _ddim(self, times: list[int], table_K: np.ndarray, eta: float) -> tuple[SamplingStep, ...]:
        """DDIM steps through `times` to the clean embedding; `table_K` is the share of signal.

        With the share of the step itself this is DDIM; with that of the step before it is the
        published sampler, whose noise is nevertheless recovered with the share of the step itself.
        No draw is needed where the published sampler makes none: on arrival at time 0 or below.
        """
        kept, share = self.kept.tolist(), table_K.tolist()
        steps = []
        for t, after in zip(times, [*times[1:], -1], strict=True):
            if after < 0:
                steps.append(SamplingStep(t, 1.0, 0.0, 0.0))
                continue
            noise = eta * math.sqrt(
                (1 - share[t] / share[after]) * (1 - share[after]) / (1 - share[t])
            )
            direction = math.sqrt(max(1 - share[after] - noise**2, 0.0)) / math.sqrt(1 - kept[t])
            steps.append(
                SamplingStep(
                    t, math.sqrt(share[after]) - direction * math.sqrt(kept[t]), direction, noise
                )
            )
        return tuple(steps)


def at_times(table_K: np.ndarray, times_B: Tensor, ndim: int = 1) -> Tensor:
    """Entries of a table in float32 on the times' device, shaped B x 1 x ... with `ndim` axes."""
    values_B = torch.from_numpy(table_K.astype(np.float32)).to(times_B.device)[times_B]
    return values_B.reshape(-1, *[1] * (ndim - 1))
