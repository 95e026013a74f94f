"""First pass over responses: voxels with a signal, mean and standard deviation of training trials.

T trials, V voxels inside the mask, K voxels that are kept, S sessions.
"""

from __future__ import annotations

from collections.abc import Sequence
import functools
from typing import NamedTuple

import numpy as np

from braingen.data import nsd
from braingen.data.places import Places
from braingen.data.prepare.response_checks import Copies, refuse_no_responses, spreads_differ
from braingen.data.scans import Scans
from braingen.data.zscore import Moments
from braingen.runtime.console import track
from braingen.runtime.errors import UserError

ENOUGH_TRIALS = 20
"""Training trials with which a session is z-scored by itself."""
FEWEST_TRIALS = 5
"""Training trials below which nothing is z-scored."""


class FirstPass(NamedTuple):
    """Result of the first pass."""

    kept_V: np.ndarray
    """(V,) bool: voxels with a signal in all sessions."""
    left_out: dict[str, int]
    """Reason -> number of voxels that are left out."""
    rule: str
    """Over which trials responses are z-scored: session, subject or none."""
    mean_SK: np.ndarray
    """(S, K) float64, mean of the training trials."""
    sd_SK: np.ndarray
    """(S, K) float64, their standard deviation."""
    notes: list[str]
    """For the summary."""


def first_pass(
    scans: Scans, subject: int, behav_T17: np.ndarray, places: Places | None, accept: Sequence[str]
) -> FirstPass:
    """Read all responses of a subject once.

    `accept` names what is taken although it does not look like responses: time_series, labels,
    copies.

    Raises
    ------
    UserError
        When trials or voxels have no signal, or these are no responses.
    """
    session_T = behav_T17[:, nsd.SESSION].astype(int)
    numbers = range(1, int(session_T.max()) + 1)
    moments: list[Moments] = []
    copies = Copies() if scans.grows else None
    where = []
    title, few = f"subject {subject}: first pass", len(numbers) < 4
    for session in track(numbers, description=title, disable=few):
        files = ", ".join(map(str, scans.session_files(subject, session)[:3]))
        where.append(f"Subject {subject}, session {session} ({files})")
        mine = behav_T17[session_T == session]
        moments.append(
            _moments(scans, subject, session, mine, places, moments[:1], where[-1], copies)
        )
    kept_V, left_out = _with_signal(scans, moments, where)
    if copies is not None:
        copies.refuse(subject, len(behav_T17), accept)
    whole = functools.reduce(Moments.merged, moments)
    notes = refuse_no_responses(scans, subject, whole, kept_V, behav_T17, accept)
    rule, more = _rule(scans.statistics, moments)
    statistics = [(whole if rule == "subject" else each).statistics() for each in moments]
    if rule == "none":
        statistics = [(np.zeros(len(kept_V)), np.ones(len(kept_V)))] * len(moments)
    mean_SK, sd_SK = (np.stack([each[k][kept_V] for each in statistics]) for k in (0, 1))
    notes += [*more, *spreads_differ(moments, kept_V)]
    return FirstPass(kept_V, left_out, rule, mean_SK, sd_SK, notes)


def _moments(
    scans: Scans,
    subject: int,
    session: int,
    behav_T17: np.ndarray,
    places: Places | None,
    before: Sequence[Moments],
    where: str,
    copies: Copies | None,
) -> Moments:
    """Moments of a session, whose trials are given; `before` are those of the first session."""
    test_T = (behav_T17[:, nsd.IS_SHARED] == 1) & (not scans.sealed)
    found = None
    first, empty = 0, []
    for block_TV in scans.responses(subject, session, len(behav_T17), places):
        if found is None:
            found = Moments(block_TV.shape[1])
            if before and len(before[0].mean_V) != block_TV.shape[1]:
                raise UserError(
                    f"{where} has {block_TV.shape[1]} voxels, the mask or the first session has "
                    f"{len(before[0].mean_V)}; {scans.get_it}."
                )
        lost_T = ~np.isfinite(block_TV).any(axis=1) | (block_TV == 0).all(axis=1)
        empty += (first + np.flatnonzero(lost_T)).tolist()
        if copies is not None:
            copies.add(block_TV[~lost_T], session, behav_T17[first:][: len(lost_T)][~lost_T])
        found.add(block_TV[~lost_T], test_T[first : first + len(block_TV)][~lost_T])
        first += len(block_TV)
    assert found is not None and first == len(behav_T17)
    if found.trials == 0:
        raise UserError(
            f"{where}: {first} trials have the same value in all trials, or NaN; responses were "
            f"expected; {scans.get_it}."
        )
    if empty:
        lost = behav_T17[empty][:, [nsd.TRIAL, nsd.RUN]].astype(int)
        shown = ", ".join(f"trial {trial} of run {run}" for trial, run in lost[:5])
        shown += ", ..." if len(empty) > 5 else ""
        raise UserError(
            f"{where}: {shown} ({len(empty)} of {first} trials) "
            f"{'is' if len(empty) == 1 else 'are'} NaN or 0 in all voxels: the trial is lost, not "
            "the voxels. Leave it out with a column `bad` of the events (1 for such trials; the "
            f"responses stay as they are), or {scans.get_it}."
        )
    return found


def _with_signal(
    scans: Scans, moments: Sequence[Moments], where: Sequence[str]
) -> tuple[np.ndarray, dict[str, int]]:
    """Voxels that have a signal in all sessions, and why others have none."""
    voxels = len(moments[0].mean_V)
    missing_V, constant_V = np.zeros((2, voxels), dtype=bool)
    for each, place in zip(moments, where):
        bad, constant = int((each.missing_V > 0).sum()), int(each.constant_V.sum())
        if bad and not scans.drops_voxels:
            raise UserError(
                f"{place}: {bad} of {voxels} voxels are NaN or infinite in some trial, numbers "
                f"were expected; mask them out, or {scans.get_it}."
            )
        missing_V |= each.missing_V > 0
        if each.trials <= 2:
            continue
        if constant == voxels or (constant > 0.5 * voxels and not scans.drops_voxels):
            raise UserError(
                f"{place}: {constant} of {voxels} voxels have the same value in all trials, "
                f"responses were expected; mask them out, or {scans.get_it}."
            )
        constant_V |= each.constant_V
    if not scans.drops_voxels:
        return np.ones(voxels, dtype=bool), {}
    constant_V &= ~missing_V
    kept_V = ~(missing_V | constant_V)
    missing, constant = int(missing_V.sum()), int(constant_V.sum())
    if not kept_V.any():
        raise UserError(
            f"{where[0]}: no voxel has a signal in all sessions ({missing} are NaN in some trial, "
            f"{constant} have the same value in all trials of a session); {scans.get_it}."
        )
    found = {"NaN or infinite in some trial": missing, "constant in a session": constant}
    return kept_V, {reason: count for reason, count in found.items() if count}


def _rule(asked: str, moments: Sequence[Moments]) -> tuple[str, list[str]]:
    """Over which trials responses are z-scored, and notes for the summary."""
    counts = [each.training for each in moments]
    low, total = min(counts), sum(counts)
    if asked == "session" and low < 2:
        raise UserError(
            f"Session {counts.index(low) + 1} has {low} training trials, at least 2 are needed to "
            "z-score it by itself; take prepare.zscore=subject, which takes those of all sessions."
        )
    if asked == "session" and low < ENOUGH_TRIALS:
        return asked, [
            f"a session has {low} training trials only: its mean and spread are uncertain "
            "(prepare.zscore=subject)"
        ]
    if asked != "auto":
        return asked, []
    if low >= ENOUGH_TRIALS:
        return "session", []
    if total < FEWEST_TRIALS:
        return "none", [
            f"NOT z-scored: {total} training trials are too few for a mean and a spread "
            "(prepare.zscore=subject does it nevertheless)"
        ]
    why = f"there are {low} training trials"
    if len(counts) > 1:
        why = f"a session has {low} training trials, fewer than {ENOUGH_TRIALS}"
    return "subject", [
        f"z-scored over all sessions of the subject: {why} (prepare.zscore=session, subject or "
        "none)"
    ]
