"""How reliable responses are: split-half reliability and noise ceiling per voxel, likeness of responses to the same picture.

T trials, V voxels, P pictures that were shown more than once.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from scipy.sparse import csr_array

from braingen.data.large_files import release

_BLOCK_BYTES = 16 * 2**20
_MAPPED_BYTES = 64 * 2**20
_FEWEST = 4
"""Pictures that have to repeat."""
_TRIALS_COMPARED = 400


class Reliability(NamedTuple):
    """Reliability of a subject's responses."""

    pictures: int
    """That were shown more than once."""
    repeats: float
    """Mean number of times they were shown."""
    split_half_V: np.ndarray
    """Correlation over pictures of the means of odd and even presentations, float32."""
    noise_ceiling_V: np.ndarray
    """Percent of variance that the picture explains in the mean of its presentations (NSD's definition), float32."""
    chance: float
    """Split-half reliability that one voxel in twenty exceeds without signal."""
    same: float
    """Mean correlation over voxels of responses to the same picture; NaN where not known."""
    other: float
    """The same to different pictures."""
    same_error: float
    """Standard error of `same`."""

    def facts(self) -> dict[str, Any]:
        """Rounded medians and means, for the manifest."""
        known = not np.isnan(self.same)
        return {
            "pictures": self.pictures,
            "repeats": round(self.repeats, 2),
            "split_half_median": round(float(np.median(self.split_half_V)), 3),
            "share_above_chance": round(float((self.split_half_V > self.chance).mean()), 3),
            "noise_ceiling_median_percent": round(float(np.median(self.noise_ceiling_V)), 1),
            "same_picture": round(self.same, 3) if known else None,
            "other_picture": round(self.other, 3) if known else None,
            "same_picture_error": round(self.same_error, 4) if known else None,
        }


def reliability(betas_TV: np.ndarray, image_T: np.ndarray) -> Reliability | None:
    """Reliability over repeats; None where fewer than four pictures repeat.

    Parameters
    ----------
    betas_TV : z-scored responses, an array or a memory map, read in blocks of voxels
    image_T : picture of every trial
    """
    _, group_T, count_P = np.unique(image_T, return_inverse=True, return_counts=True)
    repeated_P = count_P >= 2
    if repeated_P.sum() < _FEWEST:
        return None
    order = np.argsort(group_T, kind="stable")
    place_T = np.empty(len(image_T), dtype=np.int64)
    starts = np.r_[0, np.cumsum(count_P)[:-1]]
    place_T[order] = np.arange(len(order)) - np.repeat(starts, count_P)
    number_P = np.cumsum(repeated_P) - 1
    used = np.flatnonzero(repeated_P[group_T])
    row, pictures = number_P[group_T[used]], int(repeated_P.sum())
    halves = [_means(row[place_T[used] % 2 == k], used[place_T[used] % 2 == k], pictures, len(image_T)) for k in (0, 1)]
    mean = _means(row, used, pictures, len(image_T))
    repeats = float(count_P[repeated_P].mean())
    voxels = betas_TV.shape[1]
    split_half_V, ceiling_V = np.zeros(voxels, np.float32), np.zeros(voxels, np.float32)
    step = max(1, _BLOCK_BYTES // (4 * len(image_T)))
    for first in range(0, voxels, step):
        block = _columns(betas_TV, first, min(first + step, voxels))
        split_half_V[first : first + step] = _correlation(*(half @ block for half in halves))
        ceiling_V[first : first + step] = _ceiling(block[used], (mean @ block)[row], len(used) - pictures, repeats)
    same, other, error = _likeness(betas_TV, image_T)
    return Reliability(pictures, repeats, split_half_V, ceiling_V, 1.645 / np.sqrt(max(pictures - 1, 1)), same, other, error)


def _columns(betas_TV: np.ndarray, first: int, last: int) -> np.ndarray:
    """Columns first..last-1 as float64; a map's pages are given back while it is read, since those around a column come along."""
    found = np.empty((len(betas_TV), last - first))
    rows = max(1, _MAPPED_BYTES // (betas_TV.itemsize * betas_TV.shape[1]))
    for begin in range(0, len(found), rows):
        found[begin : begin + rows] = betas_TV[begin : begin + rows, first:last]
        release(betas_TV)
    return found


def _means(row: np.ndarray, column: np.ndarray, rows: int, columns: int) -> csr_array:
    counts = np.bincount(row, minlength=rows)
    return csr_array((1 / counts[row], (row, column)), shape=(rows, columns))


def _correlation(a_PV: np.ndarray, b_PV: np.ndarray) -> np.ndarray:
    a, b = a_PV - a_PV.mean(axis=0), b_PV - b_PV.mean(axis=0)
    scale = np.sqrt((a * a).sum(axis=0) * (b * b).sum(axis=0))
    return np.where(scale > 0, (a * b).sum(axis=0) / np.where(scale > 0, scale, 1), 0)


def _ceiling(trial_UV: np.ndarray, mean_UV: np.ndarray, freedom: int, repeats: float) -> np.ndarray:
    noise = ((trial_UV - mean_UV) ** 2).sum(axis=0) / max(freedom, 1)
    signal = np.maximum(trial_UV.var(axis=0, ddof=1) - noise, 0)
    whole = signal + noise / repeats
    return np.where(whole > 0, 100 * signal / np.where(whole > 0, whole, 1), 0)


def _likeness(betas_TV: np.ndarray, image_T: np.ndarray) -> tuple[float, float, float]:
    """Correlation over voxels between single trials, of the same picture and of others, over some hundred trials of repeated pictures."""
    image, count = np.unique(image_T, return_counts=True)
    trials = np.flatnonzero(np.isin(image_T, image[count >= 2]))
    if len(trials) > _TRIALS_COMPARED:  # whole pictures, so that their repeats stay together
        drawn = np.random.default_rng(0).permutation(image[count >= 2])
        kept = drawn[: np.searchsorted(np.cumsum(count[np.searchsorted(image, drawn)]), _TRIALS_COMPARED) + 1]
        trials = np.flatnonzero(np.isin(image_T, kept))[: 2 * _TRIALS_COMPARED]
    if betas_TV.shape[1] < 3:
        return np.nan, np.nan, np.nan
    columns = np.linspace(0, betas_TV.shape[1] - 1, min(betas_TV.shape[1], 20000)).astype(np.int64)
    rows = np.empty((len(trials), len(columns)))
    for place, trial in enumerate(trials):
        rows[place] = np.asarray(betas_TV[trial])[columns]
        release(betas_TV)
    rows -= rows.mean(axis=1, keepdims=True)
    norm = np.linalg.norm(rows, axis=1, keepdims=True)
    correlation = (rows / np.where(norm > 0, norm, 1)) @ (rows / np.where(norm > 0, norm, 1)).T
    upper = np.triu_indices(len(trials), 1)
    alike = (image_T[trials][:, None] == image_T[trials])[upper]
    values = correlation[upper]
    if alike.all() or not alike.any():
        return np.nan, np.nan, np.nan
    return float(values[alike].mean()), float(values[~alike].mean()), float(values[alike].std() / np.sqrt(alike.sum()))
