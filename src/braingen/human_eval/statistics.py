"""Statistics of human ratings: exact and bootstrap intervals, Krippendorff's alpha.

R raters, U units (an image, or an image with a method), V distinct values, M resamples.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
from scipy.stats import binomtest

from braingen.evaluation.uncertainty import Interval


class Share(NamedTuple):
    """A share of answers."""

    value: float | None
    """None without answers."""
    low: float | None
    """Exact (Clopper-Pearson) 95 % interval; assumes independent answers."""
    high: float | None
    hits: int
    """Answers that count."""
    n: int
    """All answers."""


def exact_share(count: int, n: int) -> Share:
    """A share with its Clopper-Pearson 95 % interval (Clopper & Pearson 1934, by scipy)."""
    if n == 0:
        return Share(None, None, None, 0, 0)
    interval = binomtest(count, n).proportion_ci(0.95, method="exact")
    return Share(count / n, float(interval.low), float(interval.high), count, n)


def exact_p(count: int, n: int) -> float | None:
    """Two-sided exact binomial test against one half; None without answers."""
    return float(binomtest(count, n, 0.5).pvalue) if n else None


def mean_over_raters_and_images(
    answers_RU: np.ndarray, image_U: np.ndarray, resamples: int, seed: int
) -> Interval | None:
    """Mean answer with a bootstrap 95 % interval that resamples raters and images.

    Answers of one rater, and answers about one image, are correlated. An interval that assumes
    independence is too narrow for statements about other raters and images. With one rater, only
    images are resampled.

    Parameters
    ----------
    answers_RU : np.ndarray
        NaN where a rater was not asked.
    image_U : np.ndarray
        Image of every unit; units of an image are resampled together.
    resamples, seed : int
        Of the bootstrap.

    Returns
    -------
    Interval | None
        Interval, or None without answers.
    """
    asked_RU = np.isfinite(answers_RU)
    if not asked_RU.any():
        return None
    images, where_U = np.unique(image_U, return_inverse=True)
    sums_RI, asked_RI = np.zeros((2, len(answers_RU), len(images)))
    np.add.at(sums_RI.T, where_U, np.where(asked_RU, answers_RU, 0).T)
    np.add.at(asked_RI.T, where_U, asked_RU.T)
    generator = np.random.default_rng(seed)

    def resampled(count: int) -> np.ndarray:
        return generator.multinomial(count, np.full(count, 1 / count), size=resamples)

    raters_MR, images_MI = resampled(len(answers_RU)), resampled(len(images))
    found_M = ((raters_MR @ sums_RI) * images_MI).sum(1)
    asked_M = ((raters_MR @ asked_RI) * images_MI).sum(1)
    low, high = np.percentile((found_M / np.maximum(asked_M, 1))[asked_M > 0], [2.5, 97.5])
    return Interval(float(sums_RI.sum() / asked_RI.sum()), float(low), float(high))


Level = Literal["nominal", "ordinal", "interval"]
"""Scale of the answers; it defines the distance between two answers."""


def _coincidences(values_RU: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distinct values (V) and coincidence matrix (V x V); units with one answer are excluded."""
    known_RU = np.isfinite(values_RU)
    value_V = np.unique(values_RU[known_RU])
    count_UV = (
        np.stack([(values_RU == value).sum(0) for value in value_V], 1)
        if len(value_V)
        else np.zeros((values_RU.shape[1], 0))
    )
    count_UV = count_UV[count_UV.sum(1) > 1].astype(np.float64)
    share_U = 1 / (count_UV.sum(1) - 1)
    pairs_VV = np.einsum("uv,uw,u->vw", count_UV, count_UV, share_U) - np.diag(share_U @ count_UV)
    return value_V, pairs_VV


def _distances(value_V: np.ndarray, count_V: np.ndarray, level: Level) -> np.ndarray:
    """Squared distances between values, V x V (Krippendorff 2011, section 5)."""
    if level == "nominal":
        return 1 - np.eye(len(value_V))
    if level == "interval":
        return (value_V[:, None] - value_V[None]) ** 2
    middle_V = np.cumsum(count_V) - count_V / 2
    return (middle_V[:, None] - middle_V[None]) ** 2


def krippendorff_alpha(values_RU: np.ndarray, level: Level) -> float | None:
    """Krippendorff's alpha: 1 full agreement, 0 chance, below 0 systematic disagreement.

    Own code, because the PyPI package ``krippendorff`` is under the GPL and needs Python 3.11: K.
    Krippendorff, *Computing Krippendorff's Alpha-Reliability*, 2011; the tests hold its worked
    examples.

    Parameters
    ----------
    values_RU : np.ndarray
        Answers, NaN where a rater was not asked.
    level : Level
        Scale of the answers.

    Returns
    -------
    float | None
        Alpha, or None where it is not defined: no unit with two answers, or one single value in all
        of them.
    """
    value_V, pairs_VV = _coincidences(np.asarray(values_RU, dtype=np.float64))
    count_V = pairs_VV.sum(1)
    total = count_V.sum()
    distance_VV = _distances(value_V, count_V, level)
    expected = count_V @ distance_VV @ count_V
    if total < 2 or expected == 0:
        return None
    return float(1 - (total - 1) * (pairs_VV * distance_VV).sum() / expected)
