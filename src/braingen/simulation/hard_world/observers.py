"""What can be decoded from the test trials of the hard world at best: observers who know the truth.

ideal observer  knows noise-free responses, noise covariance and gains; names the image by its
                likelihood
oracle gate     knows the same statistics and the gains, and decodes linearly with weights that the
                gains of the trial choose: what input-dependent routing could win at most
best linear     knows the same statistics but no gains: fixed weights, the limit of ridge
                regression with any number of trials

N images of R presentations each, V voxels, A areas, K directions of the signal, D embedding width,
L scenes by which the statistics of signal and embedding are computed.
"""

from __future__ import annotations

from functools import cached_property
from typing import NamedTuple

import numpy as np
from scipy.linalg import cho_factor, cho_solve

from braingen.data.betas import Betas
from braingen.data.trials import group_repeats, test_trials
from braingen.runtime.data_layout import Layout
from braingen.runtime.text_files import read_json
from braingen.simulation.folder import Arguments, manifest_path
from braingen.simulation.hard_world.compose import HardScenes, draw_scenes
from braingen.simulation.hard_world.dataset import load_hard_scenes, planned_noise
from braingen.simulation.hard_world.population import AREAS, BASELINE, Brain, build_brain
from braingen.simulation.hard_world.scene_features import scene_features
from braingen.simulation.hard_world.trial_noise import COMMON_GAIN, NoisePlan
from braingen.simulation.noise import local_covariance, neighbour_mixing

STATISTICS_SCENES, _STATISTICS_SEED = 8000, 5_000_000
_SIGNAL_KEPT = 0.995
"""Share of the signal's variance in the directions that the oracle gate decodes."""


class ObservedTrials(NamedTuple):
    """The presentations of the test images, as an observer sees them."""

    image_N: np.ndarray
    response_NRV: np.ndarray
    """In units of the signal's sd, before z-scoring; float64."""
    gain_NRA: np.ndarray


class Observer:
    """A subject of the hard world, everything planted known.

    Parameters
    ----------
    layout : Layout
        A finished data folder of the hard world.
    subject : int
        Number from 1.
    """

    def __init__(self, layout: Layout, subject: int) -> None:
        arguments = Arguments(**read_json(manifest_path(layout))["arguments"])
        self.brain: Brain = build_brain(arguments.seed, subject, arguments.voxels(subject))
        self.plan: NoisePlan = planned_noise(self.brain, arguments.noise)
        self.trials = _test_trials(layout, subject)
        scenes = load_hard_scenes(layout)
        tests = HardScenes(*(values[self.trials.image_N] for values in scenes))
        self.baseline_V = BASELINE * (self.plan.snr_V > 0).astype(np.float64)
        self.mean_NV = self.brain.signal(tests).astype(np.float64) + self.baseline_V
        """Noise-free responses to the test images at gain 1."""
        self.true_ND = scene_features(tests).embedding_ND.astype(np.float64)
        mixing = neighbour_mixing(self.brain.sheet.millimetres_V3)
        sd_V = self.plan.local_sd_V.astype(np.float64)
        aligned_VK = self.plan.aligned_VK.astype(np.float64)
        self.noise_VV = aligned_VK @ aligned_VK.T + local_covariance(mixing) * sd_V * sd_V[:, None]
        """Covariance of aligned and local noise."""

    @cached_property
    def statistics(self) -> tuple[np.ndarray, np.ndarray]:
        """Responses at gain 1 and embeddings of scenes that nobody was shown."""
        scenes = draw_scenes(_STATISTICS_SEED, range(STATISTICS_SCENES), 0)
        signal_LV = self.brain.signal(scenes).astype(np.float64)
        return signal_LV + self.baseline_V, scene_features(scenes).embedding_ND.astype(np.float64)

    def population_snr(self, directions: int = 10) -> np.ndarray:
        """Signal variance over noise variance of single trials along the directions in which the
        signal exceeds the noise most, gains' variance included; descending.
        """
        response_LV, _ = self.statistics
        signal_VV = np.cov(response_LV.T)
        noise_VV = self.noise_VV + self._gain_noise(response_LV)
        lower = np.linalg.cholesky(noise_VV)
        half_VV = np.linalg.solve(lower, signal_VV)
        whitened_VV = np.linalg.solve(lower, half_VV.T)
        return np.linalg.eigvalsh((whitened_VV + whitened_VV.T) / 2)[::-1][:directions]

    def identify(self) -> np.ndarray:
        """Log likelihood of every test image for the responses to every test image, up to a
        constant per row: N x N.
        """
        inverse_VV = np.linalg.inv(self.noise_VV)
        columns = [np.flatnonzero(self.brain.area_index_V == a) for a in range(len(AREAS))]
        weighted_NRV = self.trials.response_NRV @ inverse_VV
        count = len(self.mean_NV)
        linear_NRAN = np.stack(
            [weighted_NRV[..., part] @ self.mean_NV[:, part].T for part in columns], axis=2
        )
        square_ABN = np.zeros((len(AREAS), len(AREAS), count))
        for a, first in enumerate(columns):
            for b, second in enumerate(columns):
                half_NV = self.mean_NV[:, first] @ inverse_VV[np.ix_(first, second)]
                square_ABN[a, b] = (half_NV * self.mean_NV[:, second]).sum(1)
        gain_NRA = self.trials.gain_NRA
        pairs_NAB = np.einsum("nra,nrb->nab", gain_NRA, gain_NRA)
        return np.einsum("nra,nram->nm", gain_NRA, linear_NRAN) - 0.5 * np.einsum(
            "nab,abm->nm", pairs_NAB, square_ABN
        )

    def oracle_gate(self) -> np.ndarray:
        """Embeddings decoded with weights that the gains choose: N x D, float64."""
        response_LV, embedding_LD = self.statistics
        mean_V, mean_D = response_LV.mean(0), embedding_LD.mean(0)
        _, size_K, vector_KV = np.linalg.svd(response_LV - mean_V, full_matrices=False)
        kept = int(np.searchsorted(np.cumsum(size_K**2) / (size_K**2).sum(), _SIGNAL_KEPT)) + 1
        scale_K = size_K[:kept] / np.sqrt(len(response_LV))
        direction_KV = vector_KV[:kept] * scale_K[:, None]
        latent_LK = (response_LV - mean_V) @ (vector_KV[:kept] / scale_K[:, None]).T
        weights_KD = latent_LK.T @ (embedding_LD - mean_D) / len(latent_LK)
        rest_V = (response_LV - mean_V).var(0) - (direction_KV**2).sum(0)
        inverse_VV = np.linalg.inv(self.noise_VV + np.diag(np.maximum(rest_V, 0)))
        columns = [np.flatnonzero(self.brain.area_index_V == a) for a in range(len(AREAS))]
        blocks_ABKK = np.stack(
            [
                np.stack(
                    [
                        direction_KV[:, a] @ inverse_VV[np.ix_(a, b)] @ direction_KV[:, b].T
                        for b in columns
                    ]
                )
                for a in columns
            ]
        )
        gain_NRA = self.trials.gain_NRA
        gain_NRV = gain_NRA[..., self.brain.area_index_V]
        around_NRV = self.trials.response_NRV - gain_NRV * mean_V
        evidence_NV = ((around_NRV @ inverse_VV) * gain_NRV).sum(1)
        decoded = []
        for gain_RA, evidence_V in zip(gain_NRA, evidence_NV):
            precision_KK = np.eye(kept) + np.tensordot(gain_RA.T @ gain_RA, blocks_ABKK, 2)
            latent_K = cho_solve(cho_factor(precision_KK), direction_KV @ evidence_V)
            decoded.append(mean_D + latent_K @ weights_KD)
        return np.stack(decoded)

    def best_linear(self) -> np.ndarray:
        """Embeddings decoded from averaged responses with the best fixed weights: N x D."""
        response_LV, embedding_LD = self.statistics
        mean_V, mean_D = response_LV.mean(0), embedding_LD.mean(0)
        around_LV = response_LV - mean_V
        signal_VV = around_LV.T @ around_LV / len(around_LV)
        cross_VD = around_LV.T @ (embedding_LD - mean_D) / len(around_LV)
        repeats = self.trials.response_NRV.shape[1]
        noise_VV = (self.noise_VV + self._gain_noise(response_LV)) / repeats
        weights_VD = np.linalg.solve(signal_VV + noise_VV, cross_VD)
        return mean_D + (self.trials.response_NRV.mean(1) - mean_V) @ weights_VD

    def _gain_noise(self, response_LV: np.ndarray) -> np.ndarray:
        """Covariance that unknown gains add: V x V."""
        area_V = self.brain.area_index_V
        variance = self.plan.gain_sd**2
        same_VV = area_V[:, None] == area_V[None, :]
        gain_VV = np.expm1(variance * np.where(same_VV, 1.0, COMMON_GAIN))
        return gain_VV * (response_LV.T @ response_LV / len(response_LV))


def _test_trials(layout: Layout, subject: int) -> ObservedTrials:
    """Read the test trials and undo the z-scores of their sessions."""
    repeats = group_repeats(test_trials(layout, subject))
    rows_NR = repeats.rows_NR
    if (rows_NR < 0).any():
        raise ValueError("a test image was shown less often than others")
    with np.load(layout.truth(subject), allow_pickle=False) as truth:
        mean_SV, sd_SV, gain_TA = truth["session_mean"], truth["session_sd"], truth["gain"]
    session_NR = rows_NR // (len(gain_TA) // len(mean_SV))
    response = Betas.of(layout, subject).rows(rows_NR.ravel()).astype(np.float64)
    response_NRV = response.reshape(*rows_NR.shape, -1) * sd_SV[session_NR] + mean_SV[session_NR]
    return ObservedTrials(repeats.image_N, response_NRV, gain_TA[rows_NR].astype(np.float64))
