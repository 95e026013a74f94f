"""z-scoring by voxel and session with training trials alone, and undoing it: the two numbers that
were used are kept with the data.

T trials, V voxels, S sessions, B rows of the betas.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np

from braingen.runtime.arrays import read_npz
from braingen.runtime.data_layout import Layout
from braingen.runtime.errors import UserError


class Statistics(NamedTuple):
    """What responses were z-scored with, in the unit of the scans (NSD: percent signal change)."""

    mean_SV: np.ndarray
    """float64, over the training trials of a session."""
    sd_SV: np.ndarray
    """float64; 1 where a voxel did not change."""
    session_T: np.ndarray
    """Session of every row of the betas, from 0."""


def statistics_path(layout: Layout, subject: int) -> Path:
    """Where the statistics of a subject lie."""
    return layout.volumes(subject) / "zscore.npz"


def load_statistics(layout: Layout, subject: int) -> Statistics:
    """What a prepared subject was z-scored with.

    Raises
    ------
    UserError
        When the subject was not written by `braingen prepare`.
    """
    path = statistics_path(layout, subject)
    if not path.exists():
        raise UserError(
            f"{path} is missing: only `braingen prepare` keeps what betas were z-scored with."
        )
    again = "run `braingen prepare` again"
    stored = read_npz(path, again)
    lacking = [name for name in Statistics._fields if name not in stored]
    if lacking:
        raise UserError(f"{path} has no {lacking[0]}; {again}.")
    return Statistics(**{name: stored[name] for name in Statistics._fields})


def percent_signal(z_BV: np.ndarray, rows: np.ndarray, statistics: Statistics) -> np.ndarray:
    """Undo the z-scoring of some rows of the betas: B x V, float64, in the unit of the scans."""
    session_B = statistics.session_T[rows]
    return z_BV.astype(np.float64) * statistics.sd_SV[session_B] + statistics.mean_SV[session_B]


MARKS = (-999.0, -9999.0, -99999.0, -32768.0)
"""Values that mark missing ones in many files."""


class Moments:
    """Mean and spread of responses that come in blocks of trials, and signs of voxels
    without a signal. V voxels.

    Blocks are merged as Chan et al. do, so that a mean far above the spread costs no digits.
    """

    def __init__(self, voxels: int) -> None:
        self.trials = 0
        """All trials."""
        self.training = 0
        """Training trials."""
        self.mean_V = np.zeros(voxels)
        """Over training trials."""
        self.square_V = np.zeros(voxels)
        """Sum of squared deviations from it."""
        self.low_V = np.full(voxels, np.inf)
        """Smallest value of all trials."""
        self.high_V = np.full(voxels, -np.inf)
        self.training_low_V = np.full(voxels, np.inf)
        self.training_high_V = np.full(voxels, -np.inf)
        self.missing_V = np.zeros(voxels, dtype=np.int64)
        """Trials in which a voxel is NaN or infinite."""
        self.whole_V = np.ones(voxels, dtype=bool)
        """Whether all values are whole numbers."""
        self.marked_V = np.zeros(voxels, dtype=bool)
        """Whether a value is one that marks missing values elsewhere."""

    def add(self, response_TV: np.ndarray, test_T: np.ndarray) -> None:
        """Add a block, float64."""
        if not len(response_TV):
            return
        finite = np.isfinite(response_TV)
        self.missing_V += (~finite).sum(axis=0)
        seen_TV = response_TV if finite.all() else np.where(finite, response_TV, np.nan)
        self.trials += len(seen_TV)
        self.low_V, self.high_V = (
            np.fmin(self.low_V, np.fmin.reduce(seen_TV)),
            np.fmax(self.high_V, np.fmax.reduce(seen_TV)),
        )
        self.whole_V &= (seen_TV == np.rint(seen_TV)).all(axis=0)
        if np.fmin.reduce(seen_TV, axis=None) <= MARKS[0]:
            self.marked_V |= np.isin(seen_TV, MARKS).any(axis=0)
        training_TV = seen_TV[~test_T]
        if len(training_TV):
            self.training_low_V = np.fmin(self.training_low_V, np.fmin.reduce(training_TV))
            self.training_high_V = np.fmax(self.training_high_V, np.fmax.reduce(training_TV))
            mean_V = training_TV.mean(axis=0)
            self._merge(len(training_TV), mean_V, ((training_TV - mean_V) ** 2).sum(axis=0))

    def _merge(self, count: int, mean_V: np.ndarray, square_V: np.ndarray) -> None:
        whole = self.training + count
        apart_V = mean_V - self.mean_V
        self.mean_V = self.mean_V + apart_V * (count / whole)
        self.square_V = self.square_V + square_V + apart_V**2 * (self.training * count / whole)
        self.training = whole

    def merged(self, other: Moments) -> Moments:
        """Those of both."""
        both = Moments(len(self.mean_V))
        for each in (self, other):
            both.trials += each.trials
            both.missing_V += each.missing_V
            both.whole_V &= each.whole_V
            both.marked_V |= each.marked_V
            both.low_V, both.high_V = (
                np.fmin(both.low_V, each.low_V),
                np.fmax(both.high_V, each.high_V),
            )
            both.training_low_V = np.fmin(both.training_low_V, each.training_low_V)
            both.training_high_V = np.fmax(both.training_high_V, each.training_high_V)
            if each.training:
                both._merge(each.training, each.mean_V, each.square_V)
        return both

    @property
    def constant_V(self) -> np.ndarray:
        """Voxels with the same value in all trials."""
        return self.low_V == self.high_V

    def statistics(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation over training trials, float64; the latter 1 where a voxel did
        not change.
        """
        constant_V = (
            self.training_low_V == self.training_high_V
        )  # rounding errors must not become responses
        mean_V = np.where(constant_V, self.training_low_V, self.mean_V)
        sd_V = np.where(constant_V, 1.0, np.sqrt(self.square_V / max(self.training, 1)))
        return mean_V, sd_V


def zscored(response_TV: np.ndarray, mean_V: np.ndarray, sd_V: np.ndarray) -> np.ndarray:
    """Responses in standard deviations from the mean: T x V, float32."""
    return ((response_TV - mean_V) / sd_V).astype(np.float32)
