"""Responses of a subject averaged by image, and how much of them repeats: the noise ceiling.

T trials, N images, V voxels.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch

from braingen.data.betas import Betas
from braingen.types import Trials

_ROWS = 512
"""Trials read at a time."""


class AveragedResponses(NamedTuple):
    """Responses averaged over the presentations of every image."""

    mean_NV: np.ndarray
    """float32."""
    image_N: np.ndarray
    """Image ids, ascending."""
    times_N: np.ndarray
    """Presentations of every image."""
    total_V: np.ndarray
    """Variance of single responses."""
    noise_V: np.ndarray
    """Variance of single responses to the same image; NaN where no image repeats."""

    @property
    def presentations(self) -> float:
        """Mean number of presentations of an image."""
        return float(self.times_N.mean())

    @property
    def snr_V(self) -> np.ndarray:
        """Signal sd / noise sd of a single presentation (NSD's ncsnr); NaN without repeats."""
        signal_V = np.maximum(self.total_V - self.noise_V, 0)
        return np.sqrt(signal_V / np.maximum(self.noise_V, 1e-12))

    def rows(self, kept_N: np.ndarray) -> AveragedResponses:
        """Some of the images; variances stay those of all."""
        return self._replace(
            mean_NV=self.mean_NV[kept_N], image_N=self.image_N[kept_N], times_N=self.times_N[kept_N]
        )

    def ceiling_V(self, presentations: float | None = None) -> np.ndarray:
        """Share of the variance of averaged responses that the image explains.

        Parameters
        ----------
        presentations : float | None, optional
            That are averaged; None: as many as here.
        """
        square_V = self.snr_V**2
        return square_V / (square_V + 1 / (presentations or self.presentations))


def average_responses(trials: Trials, betas: Betas) -> AveragedResponses:
    """Average a subject's trials by image; they are read in blocks."""
    rows = trials.table["trial"].to_numpy()
    image_N, inverse, times_N = np.unique(
        trials.table["image"].to_numpy(), return_inverse=True, return_counts=True
    )
    return average_rows(lambda part: betas.rows(rows[part]), image_N, inverse, times_N)


def average_array(responses_TV: np.ndarray, image_T: np.ndarray) -> AveragedResponses:
    """Average an array of trials by image."""
    image_N, inverse, times_N = np.unique(image_T, return_inverse=True, return_counts=True)
    return average_rows(lambda part: responses_TV[part], image_N, inverse, times_N)


def average_rows(
    read: Callable[[slice], np.ndarray],
    image_N: np.ndarray,
    inverse: np.ndarray,
    times_N: np.ndarray,
) -> AveragedResponses:
    """Average rows that ``read`` returns; ``inverse`` is the place of a row's image."""
    sums = torch.zeros(0)
    first_V = square_V = np.zeros(0)
    for start in range(0, len(inverse), _ROWS):
        part = slice(start, start + _ROWS)
        block = np.asarray(read(part), dtype=np.float32)
        if not start:
            sums = torch.zeros(len(image_N), block.shape[1])
            first_V, square_V = np.zeros(block.shape[1]), np.zeros(block.shape[1])
        sums.index_add_(0, torch.from_numpy(inverse[part]), torch.from_numpy(block))
        first_V += block.sum(0, dtype=np.float64)
        square_V += np.einsum("tv,tv->v", block, block, dtype=np.float64)
    mean_NV = sums.div_(torch.from_numpy(times_N.astype(np.float32))[:, None]).numpy()
    trials, spare = len(inverse), len(inverse) - len(image_N)
    total_V = (square_V - first_V**2 / trials) / max(trials - 1, 1)
    between_V = np.einsum("n,nv,nv->v", times_N.astype(np.float64), mean_NV, mean_NV)
    noise_V = (square_V - between_V) / spare if spare else np.full(len(total_V), np.nan)
    return AveragedResponses(mean_NV, image_N, times_N, total_V, noise_V)
