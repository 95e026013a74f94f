"""z-scoring by voxel and session with training trials alone, and undoing it: the two numbers that were used are kept with the data.

T trials, V voxels, S sessions, B rows of the betas.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np

from braingen.arrays import read_npz
from braingen.data.nsd import Layout
from braingen.errors import UserError


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
        raise UserError(f"{path} is missing: only `braingen prepare` keeps what betas were z-scored with.")
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


def zscore_session(response_TV: np.ndarray, test_T: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """z-score a session with the statistics of its training trials.

    Parameters
    ----------
    response_TV : float64
    test_T : which trials are for testing

    Returns
    -------
    T x V float32; mean and standard deviation V, float64 (1 where a voxel did not change)
    """
    training_TV = response_TV[~test_T]
    mean_V, sd_V = training_TV.mean(axis=0), training_TV.std(axis=0)
    constant_V = training_TV.min(axis=0) == training_TV.max(axis=0)  # rounding errors must not become responses
    mean_V[constant_V], sd_V[constant_V] = training_TV[0, constant_V], 1
    return ((response_TV - mean_V) / sd_V).astype(np.float32), mean_V, sd_V
