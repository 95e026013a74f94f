"""Decoding with an encoding model: which embedding explains the measured responses best?

A library of images (embeddings, and the responses that the model predicts to them) is the prior.
*Gaussian*: embeddings and responses of the library as one Gaussian, plus the noise model, give the
embedding's mean given the responses, E' (t K + L)^-1 t k, K = R S^-1 R' of predicted responses R.
*Posterior*: the mean embedding of the library's images, weighted by their likelihood to the power
of a temper. Both tempers and the share of the posterior are chosen on held-out images.

L images of the library, N responses, V voxels, D embedding width.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from scipy.linalg import eigh
from scipy.special import softmax

from braingen.encoders.ridge import LinearMap
from braingen.encoding_model.noise import NoiseModel
from braingen.runtime.errors import UserError

SAME = 1e-3
"""Distance of embeddings, relative to their spread, below which images are taken for the same."""
FEWEST = 10
"""Images of the smallest library."""


class Library(NamedTuple):
    """Images that people might have seen."""

    embedding_LD: np.ndarray
    """Flat embeddings."""
    predicted_LV: np.ndarray
    """Responses that the encoding model predicts."""


class DecodingChoice(NamedTuple):
    """How responses are decoded; chosen on held-out images."""

    precision: float = 1.0
    """Factor of the noise's inverse covariance in the Gaussian part: t."""
    temper: float = 0.2
    """Power of the likelihood in the posterior."""
    share: float = 0.5
    """Share of the posterior in the decoded embedding."""
    cosine: float | None = None
    """Cosine of decoded and true embedding, around the mean, in held-out images."""


USUAL, USUAL_BY_GROUPS = DecodingChoice(), DecodingChoice(temper=0.4)
"""Usual ways of decoding; predictions by groups of other people's voxels are more accurate and need
less tempering (docs/experiments/regions.md).
"""
PRECISIONS, TEMPERS, SHARES = (0.1, 0.3, 1.0, 3.0), (0.03, 0.1, 0.2, 0.4, 1.0), (0.0, 0.5, 1.0)
"""What held-out images choose from."""


class Inverse:
    """A library prepared for a noise model, to decode any number of responses.

    Parameters
    ----------
    library : Library
        At least `FEWEST` images.
    noise : NoiseModel
        Of the encoding model that predicted the library's responses.
    """

    def __init__(self, library: Library, noise: NoiseModel) -> None:
        if len(library.embedding_LD) < FEWEST:
            raise UserError(
                f"The library has {len(library.embedding_LD)} pictures; at least {FEWEST} are"
                " needed: name a folder with more (encoding.library)."
            )
        self.mean_D = library.embedding_LD.mean(0)
        self.embedding_LD = library.embedding_LD - self.mean_D
        self.mean_V = library.predicted_LV.mean(0)
        centred_LV = library.predicted_LV - self.mean_V
        self.whitened_LV = noise.whiten(centred_LV)
        gram_LL = self.whitened_LV @ centred_LV.T
        self.half_L = 0.5 * np.diag(gram_LL)
        self.value_L, self.vector_LL = eigh((gram_LL + gram_LL.T) / 2)
        self.rotated_LD = self.vector_LL.T @ self.embedding_LD

    def evidence(self, responses_NV: np.ndarray) -> np.ndarray:
        """Log likelihood of every image, less that of their mean: N x L."""
        return self._match(responses_NV) - self.half_L

    def _match(self, responses_NV: np.ndarray) -> np.ndarray:
        return (responses_NV - self.mean_V) @ self.whitened_LV.T

    def gaussian(self, responses_NV: np.ndarray, precision: float) -> np.ndarray:
        """Mean embedding given the responses, all Gaussian: N x D."""
        turned_NL = self._match(responses_NV) @ self.vector_LL
        return self.mean_D + turned_NL @ self._weighted(precision)

    def linear_map(self, precision: float) -> LinearMap:
        """`gaussian` as the linear map that it is."""
        found_VD = self.whitened_LV.T @ (self.vector_LL @ self._weighted(precision))
        return LinearMap(found_VD.astype(np.float32), self.mean_V, self.mean_D)

    def _weighted(self, precision: float) -> np.ndarray:
        weight_L = precision / (precision * np.maximum(self.value_L, 0) + len(self.value_L))
        return weight_L[:, None] * self.rotated_LD

    def posterior(self, responses_NV: np.ndarray, temper: float) -> np.ndarray:
        """Mean embedding of the library under its tempered posterior: N x D."""
        weight_NL = softmax(temper * self.evidence(responses_NV), axis=1)
        return self.mean_D + weight_NL @ self.embedding_LD

    def decode(self, responses_NV: np.ndarray, choice: DecodingChoice) -> np.ndarray:
        """Decoded embeddings, N x D, float32."""
        found = np.zeros((len(responses_NV), len(self.mean_D)))
        if choice.share < 1:
            found += (1 - choice.share) * self.gaussian(responses_NV, choice.precision)
        if choice.share > 0:
            found += choice.share * self.posterior(responses_NV, choice.temper)
        return found.astype(np.float32)


def all_choices() -> list[DecodingChoice]:
    """Every way of decoding that held-out images choose from."""
    ways = []
    for share in SHARES:
        for precision in PRECISIONS if share < 1 else (1.0,):
            for temper in TEMPERS if share > 0 else (TEMPERS[0],):
                ways.append(DecodingChoice(precision, temper, share))
    return ways


def choose_decoding(
    held_out: Iterable[tuple[Inverse, np.ndarray, np.ndarray]],
    mean_D: np.ndarray,
    usual: DecodingChoice = USUAL,
) -> DecodingChoice:
    """Choose tempers and share by the cosine, around the mean, of held-out images.

    The usual way is left only for one that is better by more than two standard
    errors of the difference: with few images the best of many ways is the luckiest.

    Parameters
    ----------
    held_out : Iterable[tuple[Inverse, np.ndarray, np.ndarray]]
        Per fold: a library without the fold's images, under a model fitted without them; the
        images' responses; their true embeddings.
    mean_D : np.ndarray
        What is subtracted before the cosine.
    usual : DecodingChoice, optional
        The way that is kept unless another is clearly better.
    """
    ways = all_choices()
    columns: list[list[np.ndarray]] = [[] for _ in ways]
    for inverse, responses_NV, true_ND in held_out:
        gaussian = {p: inverse.gaussian(responses_NV, p) for p in PRECISIONS}
        posterior = {t: inverse.posterior(responses_NV, t) for t in TEMPERS}
        for column, way in zip(columns, ways):
            found = (1 - way.share) * gaussian[way.precision] + way.share * posterior[way.temper]
            column.append(_cosines(found - mean_D, true_ND - mean_D))
    cosine_WN = np.stack([np.concatenate(column) for column in columns])
    first = ways.index(usual)
    best = int(cosine_WN.mean(1).argmax())
    gain_N = cosine_WN[best] - cosine_WN[first]
    if gain_N.mean() <= 2 * gain_N.std() / np.sqrt(len(gain_N)):
        best = first
    return ways[best]._replace(cosine=float(cosine_WN[best].mean()))


def _cosines(first_ND: np.ndarray, second_ND: np.ndarray) -> np.ndarray:
    lengths = np.linalg.norm(first_ND, axis=1) * np.linalg.norm(second_ND, axis=1)
    return (first_ND * second_ND).sum(1) / np.maximum(lengths, 1e-12)


def refuse_test_pictures(
    embedding_LD: np.ndarray, names: Sequence[object], test_ND: np.ndarray, where: str
) -> None:
    """Refuse a library that holds a test image: decoding would be looking it up.

    Raises
    ------
    UserError
        For the first image whose embedding is a test image's.
    """
    if not len(test_ND) or not len(embedding_LD):
        return
    spread = float(np.sqrt(np.square(test_ND - test_ND.mean(0)).sum(1).mean()))
    for start in range(0, len(embedding_LD), 1024):
        part = embedding_LD[start : start + 1024].astype(np.float64)
        square = (
            (part**2).sum(1)[:, None]
            - 2 * part @ test_ND.T
            + (test_ND.astype(np.float64) ** 2).sum(1)
        )
        near = np.sqrt(np.maximum(square, 0)) < SAME * spread
        if near.any():
            row = start + int(np.flatnonzero(near.any(1))[0])
            raise UserError(
                f"The library {where} holds a test image ({names[row]}): decoding would look it up."
                " Take it out."
            )
