"""Scores by cross-validation over pictures, for data sets too small to keep pictures for testing
alone.

Every picture is left out once. What was decoded of it is compared with its own embedding and with
those of the other pictures left out beside it: pictures that the decoder was trained with are no
distractors, since a decoder leans towards them.

N pictures of a fold, D width of an embedding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from braingen.evaluation import identification as identify
from braingen.evaluation import uncertainty
from braingen.evaluation.decoding import FEWEST_CANDIDATES
from braingen.evaluation.uncertainty import RESAMPLES
from braingen.runtime.errors import UserError

COSINE, CENTRED = "clip_cos", "clip_cos_centred"
TWO_WAY, RETRIEVAL = "two_way_embedding", "retrieval_brain_to_image"
Values = Mapping[int, Mapping[str, float]]
"""Subject -> picture -> value of one score of one method."""


class ImageFold(NamedTuple):
    """Pictures left out together, of one subject."""

    subject: int
    pictures: Sequence[str]
    """Names, the same for all subjects and folds."""
    true_ND: np.ndarray
    """True embeddings in CLIP's own units, tokens flattened."""
    mean_D: np.ndarray
    """Mean embedding of the training pictures."""
    decoded: Mapping[str, np.ndarray]
    """Method -> decoded embeddings, N x D, in CLIP's own units; or R x N x D of a method drawn R
    times, whose scores are averaged.
    """


class FoldRow(NamedTuple):
    """One score of one method: mean over subjects of the mean over their pictures."""

    method: str
    score: str
    value: float
    low: float
    """Ends of the bootstrap 95 % interval over pictures, resampled once for all subjects."""
    high: float
    chance: float | None
    n: int
    """Pictures."""
    subjects: int


class Difference(NamedTuple):
    """One method minus another on the same pictures."""

    first: str
    second: str
    score: str
    difference: float
    low: float
    high: float
    p: float
    """Sign-flip permutation test over pictures."""


def values_of(fold: ImageFold, method: str) -> tuple[dict[str, np.ndarray], dict[str, float]]:
    """Scores of every picture of a fold, and chance where a score has one.

    ``clip_cos``: cosine of decoded and true embedding. ``clip_cos_centred``: the same around the
    training mean, which embeddings share. ``two_way_embedding``: share of the other left-out
    pictures whose embedding correlates less with what was decoded than the picture's own does.
    ``retrieval_brain_to_image``: whether the nearest of the left-out embeddings is its own (top-1),
    from five candidates on.
    """
    decoded_ND, true_ND = fold.decoded[method], fold.true_ND
    if decoded_ND.ndim == 3:
        draws = [
            values_of(fold._replace(decoded={method: each_ND}), method) for each_ND in decoded_ND
        ]
        return {
            name: np.mean([values[name] for values, _ in draws], axis=0) for name in draws[0][0]
        }, draws[0][1]
    around = [x - fold.mean_D for x in (true_ND, decoded_ND)]
    values = {
        COSINE: identify.cosine(decoded_ND, true_ND),
        CENTRED: identify.cosine(around[1], around[0]),
    }
    chance: dict[str, float] = {}
    count = len(true_ND)
    if count > 1:
        values[TWO_WAY] = identify.two_way(*around).share_N
        chance[TWO_WAY] = 0.5
    if count >= FEWEST_CANDIDATES:
        way = identify.retrieval(around[1], around[0]).brain_to_image
        values[RETRIEVAL] = way.found_N / np.maximum(way.asked_N, 1)
        chance[RETRIEVAL] = 1 / way.pool
    return values, chance


def pooled(
    folds: Sequence[ImageFold], resamples: int = RESAMPLES, seed: int = 0
) -> tuple[list[FoldRow], list[Difference]]:
    """All folds of all subjects together.

    Returns
    -------
    rows
        By method and score; a score is left out where one of the folds is too small for it.
    differences
        The first method against each of the others, picture by picture.

    Raises
    ------
    UserError
        When a picture was left out twice for one subject.
    """
    methods = list(folds[0].decoded)
    found: dict[tuple[str, str], dict[int, dict[str, float]]] = {}
    chances: dict[str, list[float]] = {}
    scores = [*values_of(min(folds, key=lambda fold: len(fold.pictures)), methods[0])[0]]
    for fold in folds:
        for method in methods:
            values, chance = values_of(fold, method)
            for score in scores:
                mine = found.setdefault((method, score), {}).setdefault(fold.subject, {})
                twice = set(mine) & set(fold.pictures)
                if twice:
                    raise UserError(
                        f"Subject {fold.subject}: picture {min(twice)} was left out twice."
                    )
                mine.update(zip(fold.pictures, values[score].tolist()))
                if score in chance:
                    chances.setdefault(score, []).append(chance[score])
    rows, differences = [], []
    for score in scores:
        parts = {method: _per_picture(found[method, score]) for method in methods}
        for method in methods:
            interval = uncertainty.mean_interval(parts[method], resamples, seed)
            level = float(np.mean(chances[score])) if score in chances else None
            counts = len(parts[method]), len(found[method, score])
            rows.append(FoldRow(method, score, *interval, level, *counts))
        for other in methods[1:]:
            apart = parts[methods[0]] - parts[other]
            interval = uncertainty.mean_interval(apart, resamples, seed)
            p = uncertainty.permutation_p(apart, resamples, seed)
            differences.append(Difference(methods[0], other, score, *interval, p))
    return rows, differences


def _per_picture(values: Values) -> np.ndarray:
    """What every picture adds to the mean over subjects, times the number of pictures: its mean is
    that mean.
    """
    added: dict[str, float] = {}
    for pictures in values.values():
        for picture, value in pictures.items():
            added[picture] = added.get(picture, 0.0) + value / len(pictures) / len(values)
    return np.array([added[picture] for picture in sorted(added)]) * len(added)


def split_pictures(pictures: Sequence[str], folds: int, seed: int = 0) -> list[list[str]]:
    """Share pictures out to folds by chance; sizes differ by one at most.

    Raises
    ------
    UserError
        When a fold would have fewer than two pictures, so that nothing could be told apart.
    """
    names = sorted(set(pictures))
    if folds < 2 or len(names) < 2 * folds:
        raise UserError(
            f"{len(names)} pictures cannot be shared out to {folds} folds of at least 2: "
            f"cross_validation.folds may be 2 to {len(names) // 2}."
        )
    order = np.random.default_rng(seed).permutation(len(names))
    return [sorted(names[i] for i in order[k::folds]) for k in range(folds)]
