"""Average the scores of several generated samples of the same images.

A baseline that depends on chance is averaged over its samples, so that one lucky sample does not
set it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from braingen.evaluation.identification import TwoWay
from braingen.evaluation.tables import as_json
from braingen.evaluation.uncertainty import RESAMPLES, mean_interval, two_way_interval
from braingen.types import Score


class Scored(NamedTuple):
    """Scores of one set of images."""

    scores: Mapping[str, Score]
    table: pd.DataFrame
    """Values of every image, NaN where a score does not apply; the index is the image id."""
    identified: Mapping[str, TwoWay] = {}
    """Pairwise outcomes of the two-way scores among them."""


def averaged(
    samples: Sequence[Scored], resamples: int = RESAMPLES, seed: int = 0
) -> dict[str, Score]:
    """Average every score over the samples; intervals resample images.

    Parameters
    ----------
    samples : Sequence[Scored]
        Scores of the same images; a score that one sample lacks is left out.
    resamples, seed : int, optional
        Of the bootstrap.

    Returns
    -------
    dict[str, Score]
        Scores by name. The scores of a single sample are returned as they are.
    """
    first = samples[0]
    if len(samples) == 1:
        return dict(first.scores)
    found: dict[str, Score] = {}
    for name in first.scores:
        if not all(name in each.scores for each in samples):
            continue
        values = [each.scores[name].value for each in samples]
        low: float | None = None
        high: float | None = None
        if name in first.identified:
            share_NN = np.asarray(
                np.mean([each.identified[name].beats_NN for each in samples], axis=0),
                dtype=np.float32,
            )
            _, low, high = two_way_interval(share_NN, resamples, seed)
        elif name in first.table:
            values_DN = np.stack(
                [each.table[name].loc[first.table.index].to_numpy() for each in samples]
            )
            mean_N = values_DN.mean(axis=0)
            _, low, high = mean_interval(mean_N[~np.isnan(mean_N)], resamples, seed)
        mean = (
            None
            if any(value is None for value in values)
            else float(np.mean([value for value in values if value is not None]))
        )
        found[name] = first.scores[name]._replace(value=mean, low=low, high=high)
    return found


def intervals(scores: Mapping[str, Score]) -> dict[str, dict[str, float | None]]:
    """Return value and interval of every score as plain JSON values."""
    return {
        name: {end: score[end] for end in ("value", "low", "high")}
        for name, score in as_json(scores).items()
    }
