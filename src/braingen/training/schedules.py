"""Learning-rate schedules of the trainings."""

from __future__ import annotations

import math

import torch


def warm_cosine(step: int, warm_up: int, steps: int, floor: float = 0.0) -> float:
    """Learning rate as a share of its peak: linear warm-up, then a half cosine down to a floor.

    Parameters
    ----------
    step : int
        Number of the update, from 0.
    warm_up, steps : int
        Updates of the warm-up, and of the whole training.
    floor : float, optional
        Share of the peak at the end; 1 for a constant learning rate.
    """
    if step < warm_up:
        return (step + 1) / warm_up
    done = min(1.0, (step - warm_up) / max(1, steps - warm_up))
    return floor + (1 - floor) * (0.5 * (1 + math.cos(math.pi * done)))


def one_cycle(
    optimizer: torch.optim.Optimizer, max_lr: float, epochs: int, updates_per_epoch: int
) -> torch.optim.lr_scheduler.OneCycleLR:
    """The published one-cycle schedule: two epochs up, then down to a thousandth of the start."""
    return torch.optim.lr_scheduler.OneCycleLR(
        optimizer,
        max_lr,
        epochs * updates_per_epoch,
        pct_start=min(0.3, 2 / epochs),
        final_div_factor=1000,
    )
