"""Uncertainty of scores: bootstrap intervals over images, paired comparison of runs, summaries.

N images, M resamples, S seeds. Everything is seeded: equal values give equal intervals.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy.stats import binomtest

from braingen.runtime.errors import UserError

RESAMPLES = 10_000
"""Bootstrap resamples and random permutations."""
_AT_ONCE = 500
"""Resamples held at a time."""


class Interval(NamedTuple):
    """A value and its 95 % interval."""

    value: float
    low: float
    high: float


class Comparison(NamedTuple):
    """Two runs on the same images; differences are first minus second."""

    score: str
    first: str
    second: str
    difference: float
    low: float
    """Ends of the bootstrap 95 % interval of the difference, over images."""
    high: float
    p: float
    """Two-sided sign-flip permutation test: exact up to 16 images, random permutations beyond."""
    p_holm: float
    """The same, corrected for all comparisons made together (Holm 1979)."""
    n: int

    @property
    def differs(self) -> bool:
        """Whether the runs differ at 5 % after correction."""
        return self.p_holm < 0.05


class Summary(NamedTuple):
    """One score over several subjects and seeds."""

    value: float
    """Mean over subjects of the mean over their seeds."""
    low: float
    """Ends of the 95 % interval: images are resampled, once for all subjects; subjects and seeds
    are the ones at hand.
    """
    high: float
    between_seeds: float | None
    """Standard deviation between seeds of one subject (pooled); None with one seed."""
    between_subjects: float | None
    """Standard deviation between subjects' means; None with one subject."""
    subjects: int
    seeds: int
    """Seeds of the subject that has most."""


def _counts(images: int, resamples: int, seed: int) -> Iterator[np.ndarray]:
    """Yield blocks (m x N, int64) of how often every image occurs in each bootstrap resample."""
    generator = np.random.default_rng(seed)
    for start in range(0, resamples, _AT_ONCE):
        size = min(_AT_ONCE, resamples - start)
        drawn = generator.integers(0, images, (size, images)) + images * np.arange(size)[:, None]
        yield np.bincount(drawn.ravel(), minlength=size * images).reshape(size, images)


def _ends(replicates: np.ndarray) -> tuple[float, float]:
    """Percentile interval."""
    low, high = np.percentile(replicates, [2.5, 97.5])
    return float(low), float(high)


def _finite(values: np.ndarray, what: str = "values") -> np.ndarray:
    values = np.asarray(values, dtype=np.float64)
    if not values.size:
        raise UserError(f"There are no {what} to average.")
    if not np.isfinite(values).all():
        raise UserError(
            f"{int((~np.isfinite(values)).sum())} of {values.size} {what} are NaN or infinite;"
            " exclude those images by id."
        )
    return values


def share_interval(right_N: np.ndarray) -> Interval:
    """Share of correct images with its exact binomial 95 % interval (Clopper and Pearson 1934).

    A bootstrap of images that are all correct gives 1 to 1, as if no image could be wrong; the
    exact interval of 120 of 120 is 0.970 to 1.

    Parameters
    ----------
    right_N : np.ndarray
        One value per image, each 0 or 1.
    """
    right = _finite(right_N)
    if not np.isin(right, (0, 1)).all():
        raise UserError(
            "A share needs values of 1 (correct) or 0 (wrong); there are values between."
        )
    exact = binomtest(int(right.sum()), len(right)).proportion_ci(
        confidence_level=0.95, method="exact"
    )
    return Interval(float(right.mean()), float(exact.low), float(exact.high))


def mean_interval(values_N: np.ndarray, resamples: int = RESAMPLES, seed: int = 0) -> Interval:
    """Mean over images with its bootstrap 95 % interval."""
    values = _finite(values_N)
    return ratio_interval(values, np.ones_like(values), resamples, seed, share=False)


def ratio_interval(
    found_N: np.ndarray,
    queries_N: np.ndarray,
    resamples: int = RESAMPLES,
    seed: int = 0,
    share: bool = True,
) -> Interval:
    """Ratio of sums with its bootstrap interval, e.g. retrieval over random pools.

    The interval is exact (`share_interval`) where every image is always or never found, and all
    images have equal counts or equal outcomes.

    Parameters
    ----------
    share : bool, optional
        Allow the exact interval.
    """
    found, queries = _finite(found_N), _finite(queries_N)
    if share:
        right = (found / np.maximum(queries, 1))[queries > 0]
        if np.isin(right, (0, 1)).all() and (
            len(np.unique(queries)) == 1 or len(np.unique(right)) == 1
        ):
            return share_interval(right)
    replicates = [
        (counts @ found) / np.maximum(counts @ queries, 1e-300)
        for counts in _counts(len(found), resamples, seed)
    ]
    return Interval(float(found.sum() / queries.sum()), *_ends(np.concatenate(replicates)))


def _pair_mean(weights_NN: np.ndarray, counts_MN: np.ndarray) -> np.ndarray:
    """Mean of a pair statistic in every resample; pairs of copies of one image are excluded."""
    counts = counts_MN.astype(np.float32)
    pairs = counts.sum(1) ** 2 - (counts * counts).sum(1)
    return np.einsum("mn,mn->m", counts @ weights_NN, counts) / np.maximum(pairs, 1)


def two_way_interval(beats_NN: np.ndarray, resamples: int = RESAMPLES, seed: int = 0) -> Interval:
    """Two-way identification with its interval; images are resampled as target and as distractor.

    Resampling only the N shares would treat the distractors as fixed, and the interval would be too
    narrow.

    Parameters
    ----------
    beats_NN : np.ndarray
        Bool, `braingen.evaluation.identification.TwoWay.beats_NN`; or its mean over several
        samples.
    """
    beats = np.asarray(beats_NN)
    images = len(beats)
    weights = beats.astype(np.float32)
    others = ~np.eye(images, dtype=bool)
    if len(np.unique(weights[others])) == 1 and weights[others][0] in (0, 1):
        # every resample is equal; the share of images that win all their pairs, or none, has an
        # exact interval, which bounds the score
        return share_interval(np.full(images, weights[others][0]))
    replicates = np.concatenate(
        [_pair_mean(weights, counts) for counts in _counts(images, resamples, seed)]
    )
    return Interval(float(beats.sum() / (images * (images - 1))), *_ends(replicates))


def two_way_by_image(beats_NN: np.ndarray) -> np.ndarray:
    """Contribution of every image to a two-way score, N values whose mean is the score.

    For comparing runs: the image's own share alone would treat the distractors as fixed. Share as
    target, plus share as distractor, minus the score: the jackknife's first-order pseudo-values of
    a pair statistic (Arvesen 1969), up to the factor (N - 1) / (N - 2).

    Parameters
    ----------
    beats_NN : np.ndarray
        Bool, `braingen.evaluation.identification.TwoWay.beats_NN`.
    """
    beats = np.asarray(beats_NN, dtype=np.float64)
    others = len(beats) - 1
    return beats.sum(0) / others + beats.sum(1) / others - beats.sum() / (len(beats) * others)


def permutation_p(differences_N: np.ndarray, permutations: int = RESAMPLES, seed: int = 0) -> float:
    """Two-sided sign-flip test of mean zero: exact up to 16 images, random flips beyond."""
    differences = _finite(differences_N, "differences")
    observed = abs(differences.sum())
    slack = 1e-12 * np.abs(differences).sum()
    if len(differences) <= 16:
        flips = np.arange(2 ** len(differences))
        signs = 1 - 2 * ((flips[:, None] >> np.arange(len(differences))) & 1)
        return float((np.abs(signs @ differences) >= observed - slack).mean())
    generator = np.random.default_rng(seed)
    extreme = 0
    for start in range(0, permutations, _AT_ONCE):
        size = min(_AT_ONCE, permutations - start)
        signs = 1 - 2 * generator.integers(0, 2, (size, len(differences)), dtype=np.int8)
        extreme += int((np.abs(signs @ differences) >= observed - slack).sum())
    return (extreme + 1) / (permutations + 1)


def holm(p_values: Sequence[float]) -> np.ndarray:
    """Correct p values for multiple comparisons (Holm 1979), valid without independence."""
    p = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(p)
    adjusted = np.maximum.accumulate(p[order] * (len(p) - np.arange(len(p))))
    out = np.empty_like(p)
    out[order] = np.minimum(adjusted, 1)
    return out


def compare(
    runs: Mapping[str, Mapping[str, np.ndarray]],
    ids: Mapping[str, np.ndarray],
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> list[Comparison]:
    """Compare every two runs on every score they share, image by image.

    Parameters
    ----------
    runs : Mapping[str, Mapping[str, np.ndarray]]
        Run name -> score name -> N values, one per image.
    ids : Mapping[str, np.ndarray]
        Run name -> its N image ids; runs may be in different orders, but must have scored the same
        images.

    Returns
    -------
    list[Comparison]
        One `Comparison` per pair of runs and score, Holm-corrected over all of them.

    Raises
    ------
    UserError
        When there are fewer than two runs or they scored different images.
    """
    names = list(runs)
    if len(names) < 2:
        raise UserError(f"A comparison needs at least 2 runs; there is {names}.")
    order = {name: np.argsort(ids[name], kind="stable") for name in names}
    images = np.asarray(ids[names[0]])[order[names[0]]]
    for name in names[1:]:
        theirs = np.asarray(ids[name])[order[name]]
        if not np.array_equal(theirs, images):
            odd = np.setxor1d(theirs, images)
            raise UserError(
                f"Runs {names[0]} and {name} scored different images ({len(odd)}, first {odd[:1]});"
                " compare what both scored."
            )
    found: list[Comparison] = []
    for number, first in enumerate(names):
        for second in names[number + 1 :]:
            for score in runs[first]:
                if score not in runs[second]:
                    continue
                mine, theirs = (
                    np.asarray(runs[first][score])[order[first]],
                    np.asarray(runs[second][score])[order[second]],
                )
                differences = _finite(mine - theirs, "differences")
                interval = mean_interval(differences, resamples, seed)
                p = permutation_p(differences, resamples, seed)
                found.append(
                    Comparison(score, first, second, *interval, p=p, p_holm=p, n=len(differences))
                )
    corrected = holm([one.p for one in found])
    return [one._replace(p_holm=float(p)) for one, p in zip(found, corrected)]


def compare_methods(
    first: Mapping[int, Mapping[int, Mapping[int, float]]],
    second: Mapping[int, Mapping[int, Mapping[int, float]]],
) -> np.ndarray:
    """Differences of two methods, image by image, over the same subjects and any number of seeds.

    Seeds of a subject are averaged first, then images of a subject, then subjects; the mean of the
    values is the difference. The contributions of an image in all subjects are summed, so that
    `mean_interval` and `permutation_p` count an image that every subject saw once.

    Parameters
    ----------
    first, second : Mapping[int, Mapping[int, Mapping[int, float]]]
        Subject -> seed -> image id -> value.

    Returns
    -------
    np.ndarray
        One value per image that was scored in any subject.

    Raises
    ------
    UserError
        When the methods have other subjects, or scored different images of one.
    """
    if first.keys() != second.keys():
        raise UserError(
            f"Subjects {sorted(first)} and {sorted(second)} cannot be compared; both methods need"
            " the same ones."
        )
    added: dict[int, float] = {}
    for subject in first:
        images = {
            tuple(sorted(values))
            for seeds in (first[subject], second[subject])
            for values in seeds.values()
        }
        if len(images) != 1:
            raise UserError(
                f"Runs of subject {subject} scored different images; compare what all scored."
            )
        (same,) = images
        for image in same:
            mine, theirs = (
                float(np.mean([values[image] for values in side[subject].values()]))
                for side in (first, second)
            )
            added[image] = added.get(image, 0.0) + (mine - theirs) / len(same) / len(first)
    return _finite(np.array([added[image] for image in sorted(added)]) * len(added), "differences")


def summarise(
    values: Mapping[tuple[int, int], Mapping[int, float]],
    resamples: int = RESAMPLES,
    seed: int = 0,
    share: bool = False,
) -> Summary:
    """Summarise one score over subjects and seeds.

    All subjects of NSD saw the same test images, and an image that is hard to decode is so for all
    of them, so images are resampled once for all subjects. Resampled per subject, four subjects
    would count as four times as many images, and a 95 % interval would contain the truth in three
    of four cases only (`test_intervals_over_subjects_that_share_images_hold_the_truth`).

    Parameters
    ----------
    values : Mapping[tuple[int, int], Mapping[int, float]]
        (subject, seed) -> image id -> value; the seeds of one subject scored the same images.
    share : bool, optional
        Every value is 0 or 1, an image right or wrong: with one subject and seed the interval is
        exact (`share_interval`).

    Raises
    ------
    UserError
        When there are no runs, or seeds of a subject scored different images.
    """
    subjects = sorted({subject for subject, _ in values})
    if not subjects:
        raise UserError("There are no runs to summarise.")
    images = np.array(sorted({image for run in values.values() for image in run}))
    per_image, means, variances = [], [], []
    most = 0
    for subject in subjects:
        runs = [dict(run) for (who, _), run in sorted(values.items()) if who == subject]
        if len({frozenset(run) for run in runs}) != 1:
            raise UserError(
                f"Runs of subject {subject} scored different images ({[len(run) for run in runs]});"
                " compare what all scored."
            )
        own = np.array(sorted(runs[0]))
        per_seed_SN = _finite(np.array([[run[image] for image in own.tolist()] for run in runs]))
        per_image.append((np.searchsorted(images, own), per_seed_SN.mean(0)))
        means.append(per_seed_SN.mean())
        most = max(most, len(runs))
        if len(runs) > 1:
            variances.append(per_seed_SN.mean(1).var(ddof=1))
    replicates = [
        np.mean(
            [
                counts[:, rows] @ each / np.maximum(counts[:, rows].sum(1), 1)
                for rows, each in per_image
            ],
            axis=0,
        )
        for counts in _counts(len(images), resamples, seed)
    ]
    low, high = _ends(np.concatenate(replicates))
    if share and len(values) == 1:
        _, low, high = share_interval(per_image[0][1])
    return Summary(
        value=float(np.mean(means)),
        low=low,
        high=high,
        between_seeds=float(np.sqrt(np.mean(variances))) if variances else None,
        between_subjects=float(np.std(means, ddof=1)) if len(means) > 1 else None,
        subjects=len(subjects),
        seeds=most,
    )
