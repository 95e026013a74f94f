"""The noise model: covariance of what an encoding model leaves unexplained, shrunk by likelihood.

S = (1 - a) R'R / J + a diag(R'R / J) of left-out residuals R, kept as a diagonal and a few
directions, S = diag(d) + F'F, so that no V x V matrix is ever made (Woodbury). The share a is the
one under which residuals of left-out images are most likely.

J images, K directions, V voxels, B rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.linalg import cho_factor, cho_solve

SHRINKAGES = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 1.0)
"""Grid of the share of the diagonal."""
DIRECTIONS = 512
"""Most directions that are kept."""
_FOLDS = 5


class NoiseModel(NamedTuple):
    """Covariance of residuals."""

    diagonal_V: np.ndarray
    """d, float32."""
    factor_KV: np.ndarray
    """F, float32."""
    shrinkage: float
    """a."""
    likelihood: float
    """Log likelihood of left-out residuals per image and voxel, less that without covariances."""

    @property
    def variance_V(self) -> np.ndarray:
        """Variance of every voxel."""
        return self.diagonal_V + np.einsum("kv,kv->v", self.factor_KV, self.factor_KV)

    def whiten(self, rows_BV: np.ndarray) -> np.ndarray:
        """S^-1 x of every row, float32."""
        scaled_BV = rows_BV / self.diagonal_V
        if not len(self.factor_KV):
            return scaled_BV.astype(np.float32)
        core = np.eye(len(self.factor_KV)) + (self.factor_KV / self.diagonal_V) @ self.factor_KV.T
        inner_KB = cho_solve(cho_factor(core), self.factor_KV @ scaled_BV.T)
        return (scaled_BV - (inner_KB.T @ self.factor_KV) / self.diagonal_V).astype(np.float32)

    def sample(self, count: int, generator: np.random.Generator) -> np.ndarray:
        """Draw noise, count x V, float32."""
        own = generator.standard_normal((count, len(self.diagonal_V)), dtype=np.float32)
        shared = generator.standard_normal((count, len(self.factor_KV)), dtype=np.float32)
        return own * np.sqrt(self.diagonal_V) + shared @ self.factor_KV


def fit_noise(
    residual_JV: np.ndarray,
    shrinkages: Sequence[float] = SHRINKAGES,
    directions: int = DIRECTIONS,
    seed: int = 0,
) -> NoiseModel:
    """Fit the noise model to left-out residuals of mean zero.

    Parameters
    ----------
    residual_JV : np.ndarray
        One row per image.
    shrinkages : Sequence[float], optional
        Grid.
    directions : int, optional
        Most directions kept; the variance of the others goes to the diagonal.
    seed : int, optional
        Of the folds.
    """
    images = len(residual_JV)
    square_V = np.maximum(np.mean(residual_JV**2, axis=0, dtype=np.float64), 1e-8)
    folds = np.random.default_rng(seed).permutation(images) % min(_FOLDS, images)
    gain_A = np.zeros(len(shrinkages))
    for fold in range(min(_FOLDS, images)):
        gain_A += _likelihoods(residual_JV[folds != fold], residual_JV[folds == fold], shrinkages)
    best = int(gain_A.argmax())
    share = float(shrinkages[best])
    factor_KV = _directions(residual_JV, directions) * np.sqrt((1 - share) / images)
    diagonal_V = square_V - np.einsum("kv,kv->v", factor_KV, factor_KV)
    if share == 1:
        factor_KV = factor_KV[:0]
    return NoiseModel(
        np.maximum(diagonal_V, share * square_V).astype(np.float32),
        factor_KV.astype(np.float32),
        share,
        float(gain_A[best]) / residual_JV.size,
    )


def _directions(residual_JV: np.ndarray, most: int) -> np.ndarray:
    """Leading directions with their lengths: K x V, K'K near R'R."""
    if len(residual_JV) <= most:
        return residual_JV.astype(np.float64)
    value_J, vector_JJ = np.linalg.eigh(residual_JV @ residual_JV.T)
    del value_J
    return (vector_JJ[:, -most:].T @ residual_JV).astype(np.float64)


def _likelihoods(
    known_JV: np.ndarray, left_BV: np.ndarray, shrinkages: Sequence[float]
) -> np.ndarray:
    """Log likelihood of left-out rows at every shrinkage, less that under the diagonal alone.

    In units in which the diagonal is 1, S = a I + (1 - a) U'U with one small matrix U U' = Q l Q'.
    """
    scale_V = np.sqrt(np.maximum(np.mean(known_JV**2, axis=0, dtype=np.float64), 1e-8))
    u_JV = known_JV / scale_V / np.sqrt(len(known_JV))
    x_BV = left_BV / scale_V
    value_J, vector_JJ = np.linalg.eigh(u_JV @ u_JV.T)
    value_J = np.maximum(value_J, 0)
    square_B = np.einsum("bv,bv->b", x_BV, x_BV)
    cross_BJ = (x_BV @ u_JV.T) @ vector_JJ
    voxels, found = known_JV.shape[1], []
    for share in shrinkages:
        rest = 1 - share
        # Woodbury: S^-1 = (I - rest U'(a + rest U U')^-1 U) / a
        quadratic_B = (square_B - cross_BJ**2 @ (rest / (share + rest * value_J))) / share
        log_det = voxels * np.log(share) + np.log1p(rest * value_J / share).sum()
        found.append(-0.5 * (quadratic_B - square_B).sum() - 0.5 * len(left_BV) * log_det)
    return np.array(found)
