"""Agreement of maps with ground truth of a simulated subject, or regions of a real one.

V voxels, R permutations.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from sklearn.metrics import adjusted_mutual_info_score, roc_auc_score


class MapAgreement(NamedTuple):
    """Adjusted mutual information of two groupings of voxels: 0 by chance, 1 if identical."""

    value: float
    permuted: float
    """Mean over permuted assignments."""
    permuted_high: float
    """Their 97.5th percentile."""


def group_agreement(
    group_V: np.ndarray, area_V: np.ndarray, permutations: int = 100, seed: int = 0
) -> MapAgreement:
    """Compare an assignment of voxels (to experts, to parcels) with areas.

    Permutation also destroys the smoothness of an assignment, so that any smooth assignment exceeds
    this baseline: interpret the value itself.
    """
    rng = np.random.default_rng(seed)
    permuted = [
        adjusted_mutual_info_score(area_V, rng.permutation(group_V)) for _ in range(permutations)
    ]
    value = adjusted_mutual_info_score(area_V, group_V)
    return MapAgreement(float(value), float(np.mean(permuted)), float(np.quantile(permuted, 0.975)))


def area_under_roc(strength_V: np.ndarray, carries_V: np.ndarray) -> float:
    """Area under the ROC curve of map values for informative voxels; NaN if all or none are."""
    carries_V = np.asarray(carries_V, dtype=bool)
    return (
        float(roc_auc_score(carries_V, strength_V))
        if 0 < carries_V.sum() < len(carries_V)
        else float("nan")
    )
