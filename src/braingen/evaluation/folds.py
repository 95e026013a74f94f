"""Cross-validated scores over images, for data sets too small for a separate test set.

Every image is left out once. Its decoded embedding is compared with its own true embedding and
with those of the other images of its fold. Training images are no distractors, since a decoder is
biased towards them.

N images of a fold, D width of an embedding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from braingen.evaluation import identification, uncertainty
from braingen.evaluation.decoding import FEWEST_CANDIDATES
from braingen.evaluation.uncertainty import RESAMPLES
from braingen.runtime.errors import UserError

COSINE, CENTRED = "clip_cos", "clip_cos_centred"
TWO_WAY, RETRIEVAL = "two_way_embedding", "retrieval_brain_to_image"
Values = Mapping[int, Mapping[str, float]]
"""Subject -> image -> value of one score of one method."""


class ImageFold(NamedTuple):
    """Images of one subject that are left out together."""

    subject: int
    images: Sequence[str]
    """Names, the same for all subjects and folds."""
    true_ND: np.ndarray
    """True embeddings in CLIP's own units, tokens flattened."""
    mean_D: np.ndarray
    """Mean embedding of the training images."""
    decoded: Mapping[str, np.ndarray]
    """Method -> decoded embeddings, N x D, in CLIP's own units; or R x N x D for a method with R
    random samples, whose scores are averaged.
    """


class FoldRow(NamedTuple):
    """One score of one method: mean over subjects of the mean over their images."""

    method: str
    score: str
    value: float
    low: float
    """Ends of the bootstrap 95 % interval over images, resampled once for all subjects."""
    high: float
    chance: float | None
    n: int
    """Images."""
    subjects: int


class Difference(NamedTuple):
    """One method minus another on the same images."""

    first: str
    second: str
    score: str
    difference: float
    low: float
    high: float
    p: float
    """Sign-flip permutation test over images."""


def values_of(fold: ImageFold, method: str) -> tuple[dict[str, np.ndarray], dict[str, float]]:
    """Compute the scores of every image of a fold, and chance levels.

    ``clip_cos``: cosine of decoded and true embedding. ``clip_cos_centred``: the same after
    subtracting the training mean. ``two_way_embedding``: share of the fold's other images whose
    true embedding correlates less with the decoded embedding than the image's own does.
    ``retrieval_brain_to_image``: whether the nearest true embedding of the fold is the image's own
    (top-1), for folds of at least `FEWEST_CANDIDATES` images.
    """
    decoded_ND, true_ND = fold.decoded[method], fold.true_ND
    if decoded_ND.ndim == 3:
        draws = [
            values_of(fold._replace(decoded={method: each_ND}), method) for each_ND in decoded_ND
        ]
        return {
            name: np.mean([values[name] for values, _ in draws], axis=0) for name in draws[0][0]
        }, draws[0][1]
    centred = [x - fold.mean_D for x in (true_ND, decoded_ND)]
    values = {
        COSINE: identification.cosine(decoded_ND, true_ND),
        CENTRED: identification.cosine(centred[1], centred[0]),
    }
    chance: dict[str, float] = {}
    count = len(true_ND)
    if count > 1:
        values[TWO_WAY] = identification.two_way(*centred).share_N
        chance[TWO_WAY] = 0.5
    if count >= FEWEST_CANDIDATES:
        way = identification.retrieval(centred[1], centred[0]).brain_to_image
        values[RETRIEVAL] = way.found_N / np.maximum(way.queries_N, 1)
        chance[RETRIEVAL] = 1 / way.pool
    return values, chance


def pooled(
    folds: Sequence[ImageFold], resamples: int = RESAMPLES, seed: int = 0
) -> tuple[list[FoldRow], list[Difference]]:
    """Pool all folds of all subjects.

    Returns
    -------
    rows
        By method and score; a score is left out where one of the folds is too small for it.
    differences
        The first method minus each of the others, image by image.

    Raises
    ------
    UserError
        When an image was left out twice for one subject.
    """
    methods = list(folds[0].decoded)
    found: dict[tuple[str, str], dict[int, dict[str, float]]] = {}
    chances: dict[str, list[float]] = {}
    scores = [*values_of(min(folds, key=lambda fold: len(fold.images)), methods[0])[0]]
    for fold in folds:
        for method in methods:
            values, chance = values_of(fold, method)
            for score in scores:
                mine = found.setdefault((method, score), {}).setdefault(fold.subject, {})
                twice = set(mine) & set(fold.images)
                if twice:
                    raise UserError(
                        f"Subject {fold.subject}: image {min(twice)} was left out twice."
                    )
                mine.update(zip(fold.images, values[score].tolist()))
                if score in chance:
                    chances.setdefault(score, []).append(chance[score])
    rows, differences = [], []
    for score in scores:
        parts = {method: _per_image(found[method, score]) for method in methods}
        for method in methods:
            interval = uncertainty.mean_interval(parts[method], resamples, seed)
            level = float(np.mean(chances[score])) if score in chances else None
            counts = len(parts[method]), len(found[method, score])
            rows.append(FoldRow(method, score, *interval, level, *counts))
        for other in methods[1:]:
            difference_N = parts[methods[0]] - parts[other]
            interval = uncertainty.mean_interval(difference_N, resamples, seed)
            p = uncertainty.permutation_p(difference_N, resamples, seed)
            differences.append(Difference(methods[0], other, score, *interval, p))
    return rows, differences


def _per_image(values: Values) -> np.ndarray:
    """Contribution of every image to the mean over subjects, scaled so that the mean is equal."""
    added: dict[str, float] = {}
    for images in values.values():
        for image, value in images.items():
            added[image] = added.get(image, 0.0) + value / len(images) / len(values)
    return np.array([added[image] for image in sorted(added)]) * len(added)


def split_images(images: Sequence[str], folds: int, seed: int = 0) -> list[list[str]]:
    """Assign images to folds at random; fold sizes differ by at most one.

    Raises
    ------
    UserError
        When a fold would have fewer than two images, so that there are no distractors.
    """
    names = sorted(set(images))
    if folds < 2 or len(names) < 2 * folds:
        raise UserError(
            f"{len(names)} images cannot be split into {folds} folds of at least 2: "
            f"cross_validation.folds may be 2 to {len(names) // 2}."
        )
    order = np.random.default_rng(seed).permutation(len(names))
    return [sorted(names[i] for i in order[k::folds]) for k in range(folds)]
