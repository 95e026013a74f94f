"""Checks of the values of betas: rows that are missing, values that are no numbers, the scale."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from braingen.data import nsd
from braingen.data.betas import Betas, report_voxels
from braingen.data.checks.finding import Finding, some
from braingen.data.nsd import Layout
from braingen.records import Trials

_CONSTANT_TOLERATED = 0.01
"""Share of voxels; a few constant ones are common at the rim of a mask and harmless."""
_ROWS_CHECKED = 512
_FEWEST_ROWS = 20


def check_responses(
    layout: Layout, subject: int, betas: Betas, trials: Sequence[Trials]
) -> Iterator[Finding]:
    """Check the responses of the trials that are used."""
    if not trials:
        return
    rows = np.concatenate([part.table["trial"].to_numpy() for part in trials])
    if (rows >= betas.trials).any():
        yield _too_short(subject, betas, trials, int(rows.max()))
        return
    report = report_voxels(betas, layout)
    bad = np.unique(rows[report.not_finite_N[rows]])
    if len(bad):
        voxels = np.flatnonzero(report.not_finite_V)
        sentence = (
            f"{betas.path}: {len(voxels)} of {betas.voxels} voxels ({some(voxels)}) are NaN or "
            f"infinite in {len(bad)} of the trials used ({some(bad)}), numbers were expected; "
            f"{nsd.GET_IT}."
        )
        yield Finding("error", subject, "betas", sentence)
    empty = np.unique(rows[report.zero_N[rows]])
    if len(empty):
        sentence = (
            f"{betas.path}: {len(empty)} of the trials used ({some(empty)}) are 0 in every voxel: "
            f"those rows were never written; {nsd.GET_IT}."
        )
        yield Finding("error", subject, "betas", sentence)
    constant = np.flatnonzero(report.constant_V)
    if len(constant) and not len(empty):
        many = len(constant) > _CONSTANT_TOLERATED * betas.voxels
        todo = nsd.GET_IT if many else "they carry nothing and are left as they are"
        sentence = (
            f"{betas.path}: {len(constant)} of {betas.voxels} voxels ({some(constant)}) have the "
            f"same value in all trials; {todo}."
        )
        yield Finding("error" if many else "warning", subject, "betas", sentence)
    if not len(bad) and not len(empty):
        yield from _check_scale(subject, betas, np.unique(rows))


def _too_short(subject: int, betas: Betas, trials: Sequence[Trials], last: int) -> Finding:
    """Fewer rows than trials; offers the sessions that are complete, where test trials are."""
    missing = [part.table["trial"] >= betas.trials for part in trials]
    sessions = [part.table["session"][which] for part, which in zip(trials, missing)]
    whole = int(np.concatenate(sessions).min())
    fewer = ""
    if whole > 0 and not missing[-1].any():
        fewer = f", or use the sessions that are there with --num_sessions {whole}"
    sentence = (
        f"{betas.path} has {betas.trials} rows, the tars name trials up to {last} (from 0), so "
        f"{last + 1} rows were expected: it is cut short or of another subject; "
        f"{nsd.GET_IT}{fewer}."
    )
    return Finding("error", subject, "betas", sentence)


def _check_scale(subject: int, betas: Betas, rows: np.ndarray) -> Iterator[Finding]:
    """Compare mean and standard deviation over trials with those of z-scored responses."""
    chosen = rows[np.linspace(0, len(rows) - 1, min(len(rows), _ROWS_CHECKED)).astype(np.int64)]
    sample = betas.rows(chosen).astype(np.float64)
    if len(sample) < _FEWEST_ROWS:
        return
    mean = float(np.median(np.abs(sample.mean(axis=0))))
    deviation = float(np.median(sample.std(axis=0)))
    if mean > 0.5 or not 0.5 < deviation < 2:
        sentence = (
            f"{betas.path}: a typical voxel has mean {mean:.2g} and standard deviation "
            f"{deviation:.2g} over trials, z-scored responses (0 and 1) were expected; if these "
            "are raw, run `braingen prepare`."
        )
        yield Finding("warning", subject, "betas", sentence)
