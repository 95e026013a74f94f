"""Simulated noise: trial noise shared by neighbours, slow drift in a session, varying attention.

T trials of a session, V voxels.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.sparse import csr_matrix
from scipy.spatial import cKDTree
from scipy.special import ndtri
from scipy.stats import rankdata

SNR_MEDIAN = {"early": 0.45, "late": 0.35}
"""Median over voxels of signal sd / noise sd of a single trial, in V1-hV4 and elsewhere."""
SNR_95TH_PERCENTILE = 1.0
SHARED_SHARE = 0.35
"""Share of the noise variance that neighbouring voxels share."""
SHARED_WIDTH = 4.0
"""Full width at half maximum of the shared noise, in mm."""
DRIFT_SHARE = 0.1
"""Share of the noise variance that drifts slowly within a session."""
ATTENTION = 0.15
"""Standard deviation of attention's gain on the signal of a trial; its effect counts as noise."""
_DRIFTS = 4  # half cycles of the fastest drift in a session


def planted_snr(field_V: np.ndarray, early_V: np.ndarray) -> np.ndarray:
    """Return a log-normal SNR ordered by a field, with exact quantiles in early and late areas.

    Parameters
    ----------
        Any field that varies smoothly over cortex.
        Anything that varies smoothly over cortex.
    early_V : np.ndarray
        Whether a voxel is in V1-hV4.

    Returns
    -------
    snr_V : np.ndarray
        Signal sd / noise sd of a single trial at NSD's noise, float32.
    """
    snr_V = np.empty(len(field_V), dtype=np.float32)
    for name, inside in (("early", early_V), ("late", ~early_V)):
        if inside.any():
            z = ndtri((rankdata(field_V[inside], method="ordinal") - 0.5) / inside.sum())
            median = SNR_MEDIAN[name]
            snr_V[inside] = median * np.exp(z * np.log(SNR_95TH_PERCENTILE / median) / ndtri(0.95))
    return snr_V


def neighbour_mixing(millimetres_V3: np.ndarray) -> csr_matrix:
    """Sparse V x V matrix that maps white noise to unit-variance noise shared by neighbours."""
    sigma = SHARED_WIDTH / 2.355
    pairs = cKDTree(millimetres_V3).sparse_distance_matrix(
        cKDTree(millimetres_V3), 3 * sigma, output_type="coo_matrix"
    )
    # voxels are their own neighbours at distance 0, which the sparse matrix holds as explicit zeros
    weights = csr_matrix(
        (np.exp(-(pairs.data**2) / (2 * sigma**2)), (pairs.row, pairs.col)), shape=pairs.shape
    )
    weights.sort_indices()
    length = np.sqrt(np.asarray(weights.multiply(weights).sum(axis=1)).ravel())
    return csr_matrix(weights.multiply(1 / length[:, None])).astype(np.float32)


class SessionNoise(NamedTuple):
    """The noise of one session."""

    attention_T: np.ndarray
    """Gain on the signal, mean 1, float32."""
    added_TV: np.ndarray
    """Additive noise (in units of the signal's sd over images), float32."""


def session_noise(
    rng: np.random.Generator, trials: int, noise_sd_V: np.ndarray, mixing: csr_matrix
) -> SessionNoise:
    """Sample the noise of a session.

    The variance of a voxel over repeats of an image is ``noise_sd_V ** 2``, attention included.

    Parameters
    ----------
    rng : np.random.Generator
        This session's own generator.
    trials : int
        Presentations in the session.
    noise_sd_V : np.ndarray
        Noise sd in units of the signal's sd, 1 / SNR; zeros give a session without noise.
    mixing : csr_matrix
        Of neighbour_mixing.
    """
    added_TV = local_noise(rng, trials, len(noise_sd_V), mixing)
    attention_sd = ATTENTION if noise_sd_V.any() else 0.0
    attention_T = 1 + attention_sd * autoregressive(rng, trials)
    added_TV *= np.sqrt(np.maximum(noise_sd_V**2 - attention_sd**2, 0)).astype(np.float32)
    return SessionNoise(attention_T.astype(np.float32), added_TV)


def local_noise(
    rng: np.random.Generator, trials: int, voxels: int, mixing: csr_matrix
) -> np.ndarray:
    """Noise of unit variance, T x V: a voxel's own, shared by neighbours, and drifting; float32."""
    own_TV = rng.standard_normal((trials, voxels), dtype=np.float32)
    shared_TV = (mixing @ rng.standard_normal((trials, voxels), dtype=np.float32).T).T
    drift_TV = _drift(rng, trials, voxels, mixing)
    own_TV *= np.float32(np.sqrt(1 - SHARED_SHARE - DRIFT_SHARE))
    own_TV += np.float32(np.sqrt(SHARED_SHARE)) * shared_TV
    own_TV += np.float32(np.sqrt(DRIFT_SHARE)) * drift_TV
    return own_TV


def local_covariance(mixing: csr_matrix) -> np.ndarray:
    """Covariance of `local_noise` between voxels, drifts averaged over trials: V x V, float64."""
    shared_VV = (mixing @ mixing.T).toarray().astype(np.float64)
    own = (1 - SHARED_SHARE - DRIFT_SHARE) * np.eye(len(shared_VV))
    return own + (SHARED_SHARE + DRIFT_SHARE) * shared_VV


def _drift(rng: np.random.Generator, trials: int, voxels: int, mixing: csr_matrix) -> np.ndarray:
    """Slow cosines over the session, each with its own spatial map; unit expected variance."""
    time = (np.arange(trials) + 0.5) / trials
    courses = np.sqrt(2 / _DRIFTS) * np.stack(
        [np.cos(np.pi * (k + 1) * time) for k in range(_DRIFTS)]
    )
    maps = (mixing @ rng.standard_normal((voxels, _DRIFTS), dtype=np.float32)).T
    return courses.T.astype(np.float32) @ maps


def autoregressive(rng: np.random.Generator, trials: int, memory: float = 0.9) -> np.ndarray:
    """Autocorrelated unit-variance noise: alertness outlasts a trial."""
    white = rng.standard_normal(trials)
    out = np.empty(trials)
    out[0] = white[0]
    for t in range(1, trials):
        out[t] = memory * out[t - 1] + np.sqrt(1 - memory**2) * white[t]
    return out
