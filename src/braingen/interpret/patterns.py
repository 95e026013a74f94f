"""Where what is decoded is to be seen: activation patterns.

A decoder gives weight to voxels that carry what it decodes and to voxels that cancel the noise of
these; attributions show both. The covariance of a voxel's responses with what was decoded shows the
first kind only (Haufe et al. 2014, NeuroImage 87:96-110). Two things are added here, for which
images must have been shown more than once. What was decoded comes from other presentations than the
response it is compared with, so that noise, which both would share, does not count. And the
covariance is measured against what of a voxel's responses comes back with the image, not against
their noise, so that a noisy voxel is not taken for one that carries little.

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
"""Whose responses are held at once."""


class ClassReadOut(NamedTuple):
    """Says which classes an embedding shows; learnt from true embeddings, never from the brain."""

    weight_CF: np.ndarray
    """Zeros for a class that no training image has, or all."""
    bias_C: np.ndarray

    @classmethod
    def learn(cls, embedding_MF: np.ndarray, member_MC: np.ndarray) -> ClassReadOut:
        """One logistic regression per class against all other images, so that an image may belong
        to several.

        Unlike the difference of mean embeddings
        (:func:`braingen.interpret.readout.class_directions`) it discounts what merely happens to go
        with a class in the training images.

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
        """Of every class, N x C."""
        return 1 / (
            1
            + np.exp(-(np.asarray(embedding_NF, dtype=np.float64) @ self.weight_CF.T + self.bias_C))
        )


class Patterns(NamedTuple):
    """Activation patterns, and how well voxels could be measured."""

    map_CV: np.ndarray
    """Correlation, over images, of what was decoded about a class with what a voxel repeats when an
    image comes again; float32. Estimated, so that it may exceed 1 a little.
    """
    reliability_V: np.ndarray
    """Share of the variance of single responses that comes back with the image; about 0 for a voxel
    without signal; float32.
    """
    floor: float
    """Two standard errors of the reliability of a voxel without signal. Voxels below are treated as
    if they were there: what they repeat is not known from nothing, and dividing by it would only
    enlarge noise.
    """

    @property
    def typical_V(self) -> np.ndarray:
        """Root mean square over classes: how far a voxel goes along with any of them."""
        return np.sqrt(np.square(self.map_CV).mean(axis=0))


def activation_patterns(
    read: Callable[[np.ndarray], np.ndarray],
    rows_NR: np.ndarray,
    decoded: Callable[[np.ndarray], np.ndarray],
) -> Patterns:
    """Compare responses with what is decoded from other presentations of the same images.

    Every presentation is once set against the mean of the others, in both directions: decoded from
    the one and seen in the others, and the other way round. Responses are read some images at a
    time, twice: to decode them, and to compare them with what was decoded of all.

    Parameters
    ----------
    read : Callable[[np.ndarray], np.ndarray]
        Rows of the betas to responses, such as ``Betas.rows``.
    rows_NR : np.ndarray
        Rows of an image's presentations, -1 where it was shown less often; images shown once are
        left out.
    decoded : Callable[[np.ndarray], np.ndarray]
        Responses of some images to what is decoded of them, B x C, such as probabilities of
        classes.

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
        told: list[tuple[np.ndarray, np.ndarray]] = []
        sum_one_V, sum_others_V = 0.0, 0.0
        for rows_BR in pieces:
            one_BV, others_BV = _one_and_others(read, rows_BR, one)
            told.append((decoded(others_BV.astype(np.float32)), decoded(one_BV.astype(np.float32))))
            sum_one_V, sum_others_V = (
                sum_one_V + one_BV.sum(axis=0),
                sum_others_V + others_BV.sum(axis=0),
            )
        from_others_NC, from_one_NC = (_standard(np.concatenate(each)) for each in zip(*told))
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


def _standard(told_NC: np.ndarray) -> np.ndarray:
    """Mean 0 and sd 1 over images; zeros for a class about which nothing is ever said."""
    told_NC = told_NC - told_NC.mean(axis=0)
    deviation_C = told_NC.std(axis=0)
    return np.where(deviation_C > 1e-9, told_NC / np.maximum(deviation_C, 1e-9), 0)
