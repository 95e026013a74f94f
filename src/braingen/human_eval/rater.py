"""A simulated rater for trial runs: answers by image distance, with lapses; not human data."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from braingen.human_eval.answers import row_of
from braingen.human_eval.plan import RATINGS, SEEN, Plan, Trial
from braingen.human_eval.session import session

Features = Callable[[np.ndarray], np.ndarray]
"""Images, N x 3 x S x S in [0, 1], to features N x F that the rater compares."""
CODE = "simulated-{number}"


class RaterFeatures(NamedTuple):
    """Pairwise image distances of a simulated rater."""

    row: dict[str, int]
    """Name of an image -> its row."""
    distance_PP: np.ndarray
    """1 - Pearson correlation of the features."""
    unrelated: float
    """Median distance of two seen images: the lowest rating is given from here on."""

    def between(self, first: str, second: str) -> float:
        """Distance of two images."""
        return float(self.distance_PP[self.row[first], self.row[second]])


def pixels(images_N3SS: np.ndarray) -> np.ndarray:
    """Features of a rater that compares pixels, block means of 32 x 32."""
    count, _, side, _ = images_N3SS.shape
    edges = np.linspace(0, side, min(32, side) + 1).astype(int)[:-1]
    sums = np.add.reduceat(np.add.reduceat(images_N3SS, edges, axis=2), edges, axis=3)
    sizes = np.diff([*edges, side])
    return (sums / (sizes[:, None] * sizes)).reshape(count, -1)


def load_rater_features(
    plan: Plan, pictures: dict[str, np.ndarray], features: Features = pixels
) -> RaterFeatures:
    """Compute features and distances of all images of a study.

    Parameters
    ----------
    pictures : dict[str, np.ndarray]
        Name -> 3 x S x S in [0, 1].
    """
    names = list(pictures)
    rows_PF = np.concatenate(
        [
            features(np.stack([pictures[name] for name in names[k : k + 32]]))
            for k in range(0, len(names), 32)
        ]
    )
    rows_PF = rows_PF.astype(np.float64) - rows_PF.mean(1, keepdims=True)
    rows_PF /= np.maximum(np.linalg.norm(rows_PF, axis=1, keepdims=True), 1e-12)
    row = {name: k for k, name in enumerate(names)}
    distance_PP = 1 - rows_PF @ rows_PF.T
    seen = sorted(
        {
            row[name]
            for trial in plan.trials
            for name, role in zip(trial.options, trial.roles)
            if role == SEEN
        }
    )
    among = distance_PP[np.ix_(seen, seen)][np.triu_indices(len(seen), 1)]
    return RaterFeatures(row, distance_PP, float(np.median(among)))


def rate(
    plan: Plan, number: int, features: RaterFeatures, lapse: float, time: str, seed: int = 0
) -> list[list[str]]:
    """Answer a study as a simulated rater.

    Parameters
    ----------
    number : int
        Number of the rater, from 1.
    lapse : float
        Share of trials answered at random.
    time : str
        Start, ISO 8601.

    Returns
    -------
    list[list[str]]
        Rows of a result file.
    """
    code = CODE.format(number=number)
    generator = np.random.default_rng([seed, number])
    rows = []
    for place, shown in enumerate(session(plan, code), 1):
        options = (
            ("left", "right")
            if shown.trial.task != "similarity"
            else tuple(str(step) for step in range(1, RATINGS + 1))
        )
        answer = _answer(shown.trial, shown.flipped, features)
        if generator.random() < lapse:
            answer = options[int(generator.integers(len(options)))]
        about = {
            "rater": code,
            "session": f"{seed}-{number}",
            "simulated": "1",
            "rt_ms": str(int(generator.integers(600, 3000))),
            "input": "simulated",
            "time": time,
            "screen": "",
        }
        rows.append(row_of(plan, shown, place, answer, about))
    return rows


def _answer(trial: Trial, flipped: bool, features: RaterFeatures) -> str:
    first, second = trial.options
    if trial.task == "similarity":
        steps = (RATINGS - 1) * features.between(first, second) / features.unrelated
        return str(int(np.clip(round(RATINGS - steps), 1, RATINGS)))
    nearer = 0 if features.between(trial.cue, first) <= features.between(trial.cue, second) else 1
    return "right" if (nearer == 1) != flipped else "left"
