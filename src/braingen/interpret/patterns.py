"""Activation patterns: voxels that contain the decoded information.

A decoder weights voxels that contain the decoded information and voxels that cancel their noise;
attributions show both. The covariance of voxel responses with the decoder output shows only the
former (Haufe et al. 2014, NeuroImage 87:96-110). Two changes here need repeated presentations.
The decoder output comes from other presentations than the response, so that shared noise is
excluded. And the covariance is divided by the repeatable part of the response, not by its noise, so
that noisy voxels are not underestimated.

N images, R presentations, V voxels, C classes, F numbers of an embedding, M training images, K =
min(M, F).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from sklearn.linear_model import LogisticRegression

from braingen.data.large_files import blocks
from braingen.runtime.errors import UserError

_STRENGTH = 0.1
"""C of the logistic regressions, of embeddings scaled to a mean variance of 1."""
_IMAGES = 64
"""Images per batch of responses."""


class ClassReadOut(NamedTuple):
    """Linear classifiers of embeddings, fitted to true embeddings, never to brain activity."""

    weight_CF: np.ndarray
    """Zeros for a class with no training image, or with all."""
    bias_C: np.ndarray

    @classmethod
    def learn(cls, embedding_MF: np.ndarray, member_MC: np.ndarray) -> ClassReadOut:
        """Fit one logistic regression per class against all other images.

        An image may have several classes. Unlike the difference of mean embeddings
        (:func:`braingen.interpret.readout.class_directions`), regression discounts features that
        are only correlated with a class.

        Parameters
        ----------
        embedding_MF : np.ndarray
            True embeddings of training images.
        member_MC : np.ndarray
            Bool, which image belongs to which class.
        """
        mean_F = embedding_MF.mean(axis=0)
        centred_MF = embedding_MF - mean_F
        scale = max(float(np.sqrt(np.square(centred_MF).mean(dtype=np.float64))), 1e-12)
        centred_MF /= scale
        # with more numbers than images (many tokens), the solution lies in the span of the images:
        # look for it there
        turned = centred_MF.shape[1] > len(centred_MF)
        back_MK = np.zeros(0)
        if turned:
            squared_M, axes_MM = np.linalg.eigh(centred_MF @ centred_MF.T)
            kept_M = squared_M > squared_M.max() * 1e-6
            length_K = np.sqrt(squared_M[kept_M])
            input_MK, back_MK = axes_MM[:, kept_M] * length_K, axes_MM[:, kept_M] / length_K
        else:
            input_MK = centred_MF
        weight_CF, bias_C = (
            np.zeros((member_MC.shape[1], centred_MF.shape[1])),
            np.zeros(member_MC.shape[1]),
        )
        for number in np.flatnonzero(member_MC.any(axis=0) & ~member_MC.all(axis=0)):
            found = LogisticRegression(C=_STRENGTH, max_iter=1000).fit(
                input_MK, member_MC[:, number]
            )
            weight_CF[number] = (
                (back_MK @ found.coef_[0]) @ centred_MF if turned else found.coef_[0]
            ) / scale
            bias_C[number] = found.intercept_[0] - weight_CF[number] @ mean_F
        return cls(weight_CF, bias_C)

    def probability(self, embedding_NF: np.ndarray) -> np.ndarray:
        """Probability of every class, N x C."""
        return 1 / (
            1
            + np.exp(-(np.asarray(embedding_NF, dtype=np.float64) @ self.weight_CF.T + self.bias_C))
        )


class Patterns(NamedTuple):
    """Activation patterns and reliability of voxels."""

    map_CV: np.ndarray
    """Correlation over images of decoded class and repeatable response of a voxel, float32.

    An estimate, which may slightly exceed 1.
    """
    reliability_V: np.ndarray
    """Share of the variance of single responses that repeats with the image; float32."""
    floor: float
    """Two standard errors of the reliability of a voxel without signal.

    Lower reliabilities are raised to it, because dividing by them would only amplify noise.
    """

    @property
    def typical_V(self) -> np.ndarray:
        """Root mean square over classes."""
        return np.sqrt(np.square(self.map_CV).mean(axis=0))


def activation_patterns(
    read: Callable[[np.ndarray], np.ndarray],
    rows_NR: np.ndarray,
    decoded: Callable[[np.ndarray], np.ndarray],
) -> Patterns:
    """Correlate responses with decoder outputs from other presentations of the same images.

    Every presentation is compared with the mean of the others, in both directions. Responses are
    read in batches, twice: to decode them, and to correlate them with the outputs.

    Parameters
    ----------
    read : Callable[[np.ndarray], np.ndarray]
        Rows of the betas to responses, such as ``Betas.rows``.
    rows_NR : np.ndarray
        Rows of an image's presentations, -1 for fewer presentations; images shown once are
        excluded.
    decoded : Callable[[np.ndarray], np.ndarray]
        Decoder: responses to B x C outputs, such as class probabilities.

    Raises
    ------
    UserError
        When fewer than three images were shown twice.
    """
    shown_NR = rows_NR >= 0
    shown_N = shown_NR.sum(axis=1)
    if (shown_N > 1).sum() < 3:
        raise UserError(
            "Activation patterns compare presentations of an image; at least three images must have"
            " been shown twice."
        )
    shared_CV, signal_V, variance_V, splits = 0.0, 0.0, 0.0, 0
    for one in range(rows_NR.shape[1]):
        used_NR = rows_NR[shown_NR[:, one] & (shown_N > 1)]
        images = len(used_NR)
        if images < 3:
            continue
        pieces = [used_NR[first:last] for first, last in blocks(images, _IMAGES)]
        outputs: list[tuple[np.ndarray, np.ndarray]] = []
        sum_one_V, sum_others_V = 0.0, 0.0
        for rows_BR in pieces:
            one_BV, others_BV = _one_and_others(read, rows_BR, one)
            outputs.append(
                (decoded(others_BV.astype(np.float32)), decoded(one_BV.astype(np.float32)))
            )
            sum_one_V, sum_others_V = (
                sum_one_V + one_BV.sum(axis=0),
                sum_others_V + others_BV.sum(axis=0),
            )
        from_others_NC, from_one_NC = (_standard(np.concatenate(each)) for each in zip(*outputs))
        for rows_BR, (first, last) in zip(pieces, blocks(images, _IMAGES)):
            one_BV, others_BV = _one_and_others(read, rows_BR, one)
            one_BV -= sum_one_V / images
            others_BV -= sum_others_V / images
            shared_CV = shared_CV + (
                from_others_NC[first:last].T @ one_BV + from_one_NC[first:last].T @ others_BV
            ) / (2 * images)
            signal_V = signal_V + (one_BV * others_BV).sum(axis=0) / images
            variance_V = variance_V + np.square(one_BV).sum(axis=0) / images
        splits += 1
    reliability_V = signal_V / np.maximum(variance_V, 1e-12)
    floor = 2 / np.sqrt(
        (shown_N * (shown_N - 1) / 2).sum()
    )  # every pair of presentations is one more estimate of the same covariance
    repeated_V = np.sqrt(np.maximum(np.maximum(reliability_V, floor) * variance_V / splits, 1e-12))
    return Patterns(
        (shared_CV / splits / repeated_V).astype(np.float32),
        np.float32(reliability_V),
        float(floor),
    )


def _one_and_others(
    read: Callable[[np.ndarray], np.ndarray], rows_BR: np.ndarray, one: int
) -> tuple[np.ndarray, np.ndarray]:
    """Responses of one presentation and the mean of the others, B x V float64."""
    one_BV = read(rows_BR[:, one]).astype(np.float64)
    others_BV, others = np.zeros_like(one_BV), np.arange(rows_BR.shape[1]) != one
    for rows_B in rows_BR[:, others].T:
        there_B = rows_B >= 0
        if there_B.any():
            others_BV[there_B] += read(rows_B[there_B])
    return one_BV, others_BV / (rows_BR[:, others] >= 0).sum(axis=1)[:, None]


def _standard(output_NC: np.ndarray) -> np.ndarray:
    """Standardise over images; zeros for a constant class."""
    output_NC = output_NC - output_NC.mean(axis=0)
    deviation_C = output_NC.std(axis=0)
    return np.where(deviation_C > 1e-9, output_NC / np.maximum(deviation_C, 1e-9), 0)
