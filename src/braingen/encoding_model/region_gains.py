"""Regions whose responses are worth more in one trial than in another: their gains, from trials.

In region a a trial's response is x = s + z (b + k s) + noise: s what the encoding model predicts to
the image, z the region's fluctuation in that trial (mean 0, variance 1), b what it adds and k how
much the signal grows with it. Regions are groups of voxels that fluctuate together and are tuned
alike. Fluctuations, b and k are estimated in turns from left-out predictions; then the encoding
model is fitted again to responses without z b, over the gain 1 + k z, and trials count by its
square.

T trials, N images, J left-out images, V voxels, W voxels of a region, A regions, K directions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
import torch

from braingen.encoders.gated_readout import DIRECTIONS, LEAST_GAIN, GatedWeights
from braingen.encoders.region_groups import spherical_groups
from braingen.encoding_model.banded_ridge import fit_banded_ridge
from braingen.encoding_model.model import EncodingModel
from braingen.encoding_model.noise import NoiseModel, fit_noise
from braingen.encoding_model.responses import AveragedResponses
from braingen.encoding_model.voxel_space import shared_space

MOST_TRIALS = 3000
"""Most trials that fluctuations are learnt from."""
PATTERNS = 24
"""Leading components of what is not explained, by which voxels are grouped."""
ROUNDS = 3
"""Turns of estimating fluctuations, loadings and growth."""
LARGEST_GROWTH = 1.5
"""Most that the signal grows by, in shares of itself, per standard deviation of a fluctuation."""
CANDIDATES = 3
"""Scales of the bands that a region's voxels choose from in the second fit."""
_BLOCK = 512
"""Trials read at a time."""


class RegionGains(NamedTuple):
    """Gains of regions, and the encoding model that knows of them."""

    region_V: np.ndarray
    """Region of every voxel."""
    loading_V: np.ndarray
    """b."""
    growth_A: np.ndarray
    """k; 0 where the signal does not grow."""
    predicted_NV: np.ndarray
    """Responses at gain 1 to the training images."""
    noise: NoiseModel
    """Of single trials, gains known."""

    def weights(self, aim_NR: np.ndarray, precision: float = 1.0) -> GatedWeights:
        """What decodes single trials as other descriptions of the training images.

        Parameters
        ----------
        aim_NR : np.ndarray
            What is decoded, in the order of ``predicted_NV``.
        precision : float, optional
            Factor of the noise's inverse covariance.
        """
        mean_V, mean_R = self.predicted_NV.mean(0), aim_NR.mean(0)
        left_NK, size_K, direction_KV = np.linalg.svd(
            self.predicted_NV - mean_V, full_matrices=False
        )
        kept, root = min(DIRECTIONS, len(size_K)), len(aim_NR) ** 0.5
        return GatedWeights(
            self.region_V,
            self.loading_V,
            self.growth_A,
            mean_V,
            direction_KV[:kept] * size_K[:kept, None] / root,
            self.noise.diagonal_V,
            self.noise.factor_KV,
            left_NK[:, :kept].T @ (aim_NR - mean_R) / root,
            mean_R,
            precision,
        )


class _Region(NamedTuple):
    """One region's statistics."""

    voxels_W: np.ndarray
    loading_W: np.ndarray
    growth: float
    inverse_WW: np.ndarray

    def fluctuation(
        self, response_TW: np.ndarray, signal_TW: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Mean and variance of z given responses and signals, T each."""
        effect_TW = self.loading_W + self.growth * signal_TW
        white_TW = effect_TW @ self.inverse_WW
        precision_T = 1 + np.einsum("tw,tw->t", white_TW, effect_TW)
        mean_T = np.einsum("tw,tw->t", white_TW, response_TW - signal_TW) / precision_T
        return mean_T, 1 / precision_T

    def gain(self, z_T: np.ndarray) -> np.ndarray:
        """Of trials with these fluctuations, T."""
        return np.maximum(1 + self.growth * z_T, LEAST_GAIN)


def fit_region_gains(
    features: Mapping[str, np.ndarray],
    known: AveragedResponses,
    image_T: np.ndarray,
    read: Callable[[np.ndarray], np.ndarray],
    model: EncodingModel,
    regions: int,
    left_out: int,
    seed: int = 0,
    device: torch.device | str = "cpu",
    region_V: np.ndarray | None = None,
) -> RegionGains:
    """Find regions and their gains, and fit the encoding model again.

    Parameters
    ----------
    features : Mapping[str, np.ndarray]
        Bands of the images of ``known``, in their order.
    known : AveragedResponses
        Of the training images.
    image_T : np.ndarray
        Image id of every training trial.
    read : Callable[[np.ndarray], np.ndarray]
        Responses of trials, by their place in ``image_T``.
    model : EncodingModel
        Fitted to ``known``, with its left-out residuals.
    left_out, seed, device
        As of `fit_banded_ridge`.
    regions : int
        A.
    region_V : np.ndarray | None, optional
        Region of every voxel where it is known, from 0 (as by :func:`shared_regions`); None to find
        those of this person.
    """
    trial_S, response_SV, signal_NV = left_out_trials(features, known, image_T, read, model, seed)
    row_T = np.searchsorted(known.image_N, image_T)
    signal_SV = signal_NV[row_T[trial_S]]
    left_SV = response_SV - signal_SV
    if region_V is None:
        region_V = group_voxels(left_SV, model, features, regions, seed)
    found = [
        _fit_region(response_SV, signal_SV, np.flatnonzero(region_V == a), model.noise.shrinkage)
        for a in range(regions)
    ]
    mean_NV, weight_NA = _without_gains(read, row_T, signal_NV, found)
    predicted_NV = np.empty_like(mean_NV)
    for a, each in enumerate(found):
        mine = each.voxels_W
        if not len(mine):
            continue
        ridge = fit_banded_ridge(  # its own, since every region weighs trials in its own way
            features,
            np.ascontiguousarray(mean_NV[:, mine]),
            weight_NA[:, a],
            _usual_scales(model, mine),
            left_out=left_out,
            seed=seed,
            device=device,
        )
        predicted_NV[:, mine] = again_NW = ridge.predict(features)
        again_NW[ridge.left_out_J] = _left_out(
            mean_NV[:, mine], ridge.residual_JV, weight_NA[:, a], ridge.left_out_J
        )
        z_S, _ = each.fluctuation(response_SV[:, mine], signal_SV[:, mine])
        explained_SW = each.gain(z_S)[:, None] * again_NW[row_T[trial_S]]
        left_SV[:, mine] = response_SV[:, mine] - explained_SW - z_S[:, None] * each.loading_W
    loading_V = np.zeros(len(region_V), dtype=np.float32)
    for each in found:
        loading_V[each.voxels_W] = each.loading_W
    growth_A = np.array([each.growth for each in found], dtype=np.float32)
    return RegionGains(region_V, loading_V, growth_A, predicted_NV, fit_noise(left_SV, seed=seed))


def left_out_trials(
    features: Mapping[str, np.ndarray],
    known: AveragedResponses,
    image_T: np.ndarray,
    read: Callable[[np.ndarray], np.ndarray],
    model: EncodingModel,
    seed: int = 0,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Single trials of images that have left-out predictions, at most `MOST_TRIALS`.

    Parameters
    ----------
    features, known, image_T, read, model, seed
        As of :func:`fit_region_gains`.

    Returns
    -------
    trial_S : np.ndarray
        Their places in ``image_T``.
    response_SV : np.ndarray
    signal_NV : np.ndarray
        What is predicted to every image, left out where it can be.
    """
    signal_NV = model.predict(features)
    left_J = model.ridge.left_out_J
    signal_NV[left_J] = _left_out(known.mean_NV, model.ridge.residual_JV, known.times_N, left_J)
    trial_S = np.flatnonzero(np.isin(np.searchsorted(known.image_N, image_T), left_J))
    if len(trial_S) > MOST_TRIALS:
        trial_S = np.sort(np.random.default_rng(seed).permutation(trial_S)[:MOST_TRIALS])
    return trial_S, read(trial_S), signal_NV


def group_voxels(
    left_TV: np.ndarray,
    model: EncodingModel,
    features: Mapping[str, np.ndarray],
    regions: int,
    seed: int = 0,
) -> np.ndarray:
    """Group voxels that fluctuate together and are tuned alike: region of every voxel.

    Parameters
    ----------
    left_TV : np.ndarray
        What left-out predictions do not explain.
    regions : int
        Most regions; some may stay empty.
    """
    scaled_TV = left_TV / np.maximum(left_TV.std(0), 1e-6)
    vector_TT = np.linalg.eigh(scaled_TV @ scaled_TV.T).eigenvectors
    pattern_VQ = scaled_TV.T @ vector_TT[:, -PATTERNS:]
    pattern_VQ /= np.maximum(np.linalg.norm(pattern_VQ, axis=1, keepdims=True), 1e-12)
    tuning_VK = model.embed_voxels(shared_space([model], features))
    reliable_V = np.sqrt(np.maximum(model.explained_V, 0))
    joined_VQ = np.concatenate([pattern_VQ, tuning_VK * reliable_V[:, None]], axis=1)
    joined_VQ /= np.maximum(np.linalg.norm(joined_VQ, axis=1, keepdims=True), 1e-12)
    rows = torch.from_numpy(joined_VQ.astype(np.float32))
    centres = spherical_groups(rows, torch.ones(len(rows)), min(regions, len(rows)), seed)
    return (rows @ centres.T).argmax(1).numpy()


def _usual_scales(model: EncodingModel, voxels_W: np.ndarray) -> np.ndarray:
    """Scales of the bands that most voxels of a region chose before."""
    chosen_C = np.bincount(model.ridge.candidate_V[voxels_W])
    return model.ridge.scales_CB[np.argsort(-chosen_C, kind="stable")[:CANDIDATES]]


def _left_out(
    mean_NV: np.ndarray, residual_JV: np.ndarray, weight_N: np.ndarray, left_J: np.ndarray
) -> np.ndarray:
    """Predictions of images that were left out."""
    return mean_NV[left_J] - residual_JV / np.sqrt(weight_N[left_J])[:, None]


def _fit_region(
    response_TV: np.ndarray, signal_TV: np.ndarray, voxels_W: np.ndarray, shrinkage: float
) -> _Region:
    """Estimate loading, growth and noise of one region, in turns with its fluctuations."""
    response_TW, signal_TW = (
        each[:, voxels_W].astype(np.float64) for each in (response_TV, signal_TV)
    )
    left_TW = response_TW - signal_TW
    if not len(voxels_W):
        return _Region(voxels_W, np.zeros(0), 0.0, np.zeros((0, 0)))
    spread_W = np.maximum(left_TW.std(0), 1e-6)
    scaled_TW = left_TW / spread_W
    axis_W = np.linalg.eigh(scaled_TW.T @ scaled_TW).eigenvectors[:, -1]
    z_T = scaled_TW @ axis_W
    z_T *= np.sign(axis_W.sum() or 1) / max(z_T.std(), 1e-12)
    region = _Region(
        voxels_W, left_TW.T @ z_T / len(z_T), 0.0, np.zeros((len(voxels_W), len(voxels_W)))
    )
    for _ in range(ROUNDS):
        rest_TW = left_TW - z_T[:, None] * (region.loading_W + region.growth * signal_TW)
        inverse_WW = _inverse_covariance(rest_TW, shrinkage)
        # growth: slope of what the loading leaves on z s
        grown_TW = z_T[:, None] * signal_TW
        white_TW = grown_TW @ inverse_WW
        without_TW = left_TW - z_T[:, None] * region.loading_W
        growth = float((white_TW * without_TW).sum() / max((white_TW * grown_TW).sum(), 1e-9))
        region = region._replace(
            growth=float(np.clip(growth, 0, LARGEST_GROWTH)), inverse_WW=inverse_WW
        )
        z_T, variance_T = region.fluctuation(response_TW, signal_TW)
        z_T = z_T - z_T.mean()
        square = float(np.mean(z_T**2 + variance_T))
        loading_W = (
            (z_T[:, None] * (left_TW - region.growth * z_T[:, None] * signal_TW)).mean(0)
        ) / square
        scale = square**0.5
        region = region._replace(loading_W=loading_W * scale, growth=region.growth * scale)
        z_T = z_T / scale
    return region


def _inverse_covariance(rest_TW: np.ndarray, shrinkage: float) -> np.ndarray:
    covariance_WW = (1 - shrinkage) * (rest_TW.T @ rest_TW) / len(rest_TW)
    square_W = np.maximum((rest_TW**2).mean(0), 1e-8)
    covariance_WW[np.diag_indices_from(covariance_WW)] = square_W
    return np.linalg.inv(covariance_WW)


def _without_gains(
    read: Callable[[np.ndarray], np.ndarray],
    row_T: np.ndarray,
    signal_NV: np.ndarray,
    regions: list[_Region],
) -> tuple[np.ndarray, np.ndarray]:
    """Responses averaged over the trials of every image, as they were at gain 1 and without
    fluctuations (N x V), and how many trials at gain 1 they are worth (N x A).
    """
    sums_NV, weight_NA = np.zeros_like(signal_NV), np.zeros((len(signal_NV), len(regions)))
    for start in range(0, len(row_T), _BLOCK):
        part = np.arange(start, min(start + _BLOCK, len(row_T)))
        response_TV, row = read(part), row_T[part]
        for a, each in enumerate(regions):
            mine = each.voxels_W
            z_T, _ = each.fluctuation(response_TV[:, mine], signal_NV[row][:, mine])
            gain_T = each.gain(z_T)
            left_TW = response_TV[:, mine] - z_T[:, None] * each.loading_W
            sums_NW = np.zeros((len(signal_NV), len(mine)))
            np.add.at(sums_NW, row, gain_T[:, None] * left_TW)
            sums_NV[:, mine] += sums_NW
            np.add.at(weight_NA[:, a], row, gain_T**2)
    for a, each in enumerate(regions):
        sums_NV[:, each.voxels_W] /= weight_NA[:, [a]]
    return sums_NV, weight_NA
