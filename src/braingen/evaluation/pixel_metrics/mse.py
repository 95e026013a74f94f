"""Mean squared error of the pixels."""

from __future__ import annotations

from typing import TYPE_CHECKING

from braingen.evaluation.metric_type import ALIKE, Metric

if TYPE_CHECKING:
    from torch import Tensor

NAME = "mse"
METRIC = Metric(
    "MSE",
    "MSE",
    "squared error of the pixels",
    ALIKE,
    3,
    higher_is_better=False,
    digits=4,
    axis=None,
)
SIDE = 256
"""The published evaluation script resizes every image to this side first."""


def values(truth_B3HW: Tensor, recons_B3HW: Tensor) -> Tensor:
    """Squared error of every image, B."""
    return (truth_B3HW - recons_B3HW).square().mean((1, 2, 3))
