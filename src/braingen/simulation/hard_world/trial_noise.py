"""Noise of the hard world: gains of areas, noise aligned with the signal, and local noise.

A trial's response is gain x (signal + baseline) + aligned + local. The gain of an area varies from
trial to trial: what it reports, and the noise beside it, are then worth more or less, which a
decoder that depends on its input can use. Aligned noise lies in the directions in which images
differ, so that no number of voxels averages it out. The rest is local: a voxel's own, shared by
neighbours, or drifting (noise.py).

T trials of a session, V voxels, A areas, K directions.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.optimize import brentq
from scipy.sparse import csr_matrix

from braingen.simulation.hard_world.compose import HardScenes
from braingen.simulation.hard_world.population import AREAS, BASELINE, Brain
from braingen.simulation.noise import autoregressive, local_noise

ALIGNED_SHARE = 0.25
"""Share of the noise variance that is aligned with the signal, mean over voxels with signal."""
ALIGNED_RANK = 64
"""Directions of the aligned noise: the leading ones of the signal."""
GAIN_SD = 0.8
"""Log standard deviation of an area's gain in a trial; its mean is 1."""
COMMON_GAIN = 0.25
"""Share of the log gain's variance that all areas have in common."""
LOCAL_LEAST = 0.2
"""Least local noise, as a share of the noise variance that a voxel is meant to have: aligned noise
and gains can make the noise of the best voxels larger than that.
"""


class NoisePlan(NamedTuple):
    """The planted noise of a person, in units of the signal's sd."""

    aligned_VK: np.ndarray
    """Loadings of the aligned noise on independent directions of unit variance; float32."""
    local_sd_V: np.ndarray
    """Sd of the local noise; float32."""
    gain_sd: float
    """Log sd of the gains; 0 without noise."""
    snr_V: np.ndarray
    """Signal sd / noise sd of a single trial as planted, all parts included; float32."""

    @property
    def gain_variance(self) -> float:
        """Variance of a gain."""
        return float(np.expm1(self.gain_sd**2))

    @property
    def aligned_share_V(self) -> np.ndarray:
        """Share of the noise variance that is aligned with the signal; 0 without signal."""
        aligned_V = (self.aligned_VK.astype(np.float64) ** 2).sum(1)
        return np.where(self.snr_V > 0, aligned_V * self.snr_V.astype(np.float64) ** 2, 0.0)


def plan_noise(brain: Brain, scenes: HardScenes, noise: float) -> NoisePlan:
    """Plan the noise of a person.

    Parameters
    ----------
    brain : Brain
        The person's cortex.
    scenes : HardScenes
        Scenes by which the leading directions of the signal are found.
    noise : float
        Multiple of NSD's noise (a standard deviation).
    """
    has_V = brain.snr_V > 0
    wanted_V = np.zeros(len(has_V))
    wanted_V[has_V] = (noise / brain.snr_V[has_V].astype(np.float64)) ** 2
    gain_sd = GAIN_SD if noise > 0 else 0.0
    gain_V = np.expm1(gain_sd**2) * (1 + BASELINE**2) * has_V
    signal_NV = brain.signal(scenes)
    signal_NV = signal_NV - signal_NV.mean(0)
    _, size_K, vector_KV = np.linalg.svd(signal_NV, full_matrices=False)
    rank = min(ALIGNED_RANK, len(size_K))
    loading_VK = (vector_KV[:rank] * size_K[:rank, None] / np.sqrt(len(signal_NV))).T
    loading_VK[~has_V] = 0
    captured_V = (loading_VK.astype(np.float64) ** 2).sum(1)

    def parts(scale: float) -> tuple[np.ndarray, np.ndarray]:
        """Variances of aligned and local noise."""
        aligned_V = scale * captured_V * has_V
        return aligned_V, np.maximum(wanted_V - gain_V - aligned_V, LOCAL_LEAST * wanted_V)

    def share(scale: float) -> float:
        aligned_V, local_V = parts(scale)
        return float((aligned_V[has_V] / (aligned_V + local_V + gain_V)[has_V]).mean())

    scale = 0.0
    if noise > 0:  # the share grows with the scale
        scale = brentq(lambda value: share(value) - ALIGNED_SHARE, 0, 1e4 * noise**2)
    aligned_V, local_V = parts(scale)
    local_V[~has_V] = np.median(wanted_V[has_V])
    snr_V = np.zeros(len(has_V))
    with np.errstate(divide="ignore"):  # without noise it is infinite
        snr_V[has_V] = 1 / np.sqrt((gain_V + aligned_V + local_V)[has_V])
    return NoisePlan(
        (loading_VK * np.sqrt(scale)).astype(np.float32),
        np.sqrt(local_V).astype(np.float32),
        gain_sd,
        snr_V.astype(np.float32),
    )


class SessionResponses(NamedTuple):
    """Responses of one session before they are z-scored."""

    response_TV: np.ndarray
    """float32."""
    gain_TA: np.ndarray
    """Gain of every area; float32."""


def session_responses(
    rng: np.random.Generator,
    brain: Brain,
    plan: NoisePlan,
    mixing: csr_matrix,
    signal_TV: np.ndarray,
) -> SessionResponses:
    """Draw a session.

    Parameters
    ----------
    rng : np.random.Generator
        This session's own generator.
    mixing : csr_matrix
        Of `braingen.simulation.noise.neighbour_mixing`.
    signal_TV : np.ndarray
        Noise-free responses to the images of the trials.
    """
    trials, voxels = signal_TV.shape
    common_T = autoregressive(rng, trials)
    own_TA = rng.standard_normal((trials, len(AREAS)))
    log_TA = np.sqrt(COMMON_GAIN) * common_T[:, None] + np.sqrt(1 - COMMON_GAIN) * own_TA
    gain_TA = np.exp(plan.gain_sd * log_TA - plan.gain_sd**2 / 2).astype(np.float32)
    baseline_V = BASELINE * (plan.snr_V > 0).astype(np.float32)
    response_TV = gain_TA[:, brain.area_index_V] * (signal_TV + baseline_V)
    direction_TK = rng.standard_normal((trials, plan.aligned_VK.shape[1]), dtype=np.float32)
    response_TV += direction_TK @ plan.aligned_VK.T
    response_TV += local_noise(rng, trials, voxels, mixing) * plan.local_sd_V
    return SessionResponses(response_TV.astype(np.float32), gain_TA)
