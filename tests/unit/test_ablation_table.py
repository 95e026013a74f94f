"""Lines of an ablation beside each other."""

from __future__ import annotations

import numpy as np
import pandas as pd

from braingen.config import Config
from braingen.evaluation.identification import TwoWay
from braingen.evaluation.metric_table import MetricTable
from braingen.experiments.ablation_table import comparisons

IMAGES = 6


def sheet(mistaken_for: list[int]) -> MetricTable:
    """Two-way identification in which every picture is mistaken for one other image."""
    beats = ~np.eye(IMAGES, dtype=bool)
    beats[mistaken_for, range(IMAGES)] = False
    found = TwoWay(beats)
    return MetricTable(
        {},
        pd.DataFrame({"two_way_late": found.share_N}, index=range(IMAGES)),
        {"two_way_late": found},
        {},
        {},
        {},
    )


def test_two_way_scores_are_compared_by_what_an_image_adds_as_a_distractor_too():
    """Every picture's own share is 4 of 5 in both lines; only which images it is mistaken for
    differs.
    """
    lines = {
        "untouched": sheet([1, 0, 0, 0, 0, 0]),
        "no_router": sheet([2, 0, 0, 0, 0, 0]),
        "both": sheet([1, 2, 3, 4, 5, 0]),
    }
    (one,) = [
        each
        for each in comparisons(Config(), lines)
        if (each.first, each.second) == ("both", "untouched")
    ]
    assert abs(one.difference) < 1e-12 and one.low < -0.1 and one.high > 0.1
