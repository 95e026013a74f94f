"""Refuses what is no response to a trial: time series, and columns that are labels."""

from __future__ import annotations

from collections.abc import Sequence
import hashlib

import numpy as np

from braingen.data import nsd
from braingen.data.scans import Scans
from braingen.data.zscore import MARKS, Moments
from braingen.runtime.errors import UserError

_FEWEST_VOXELS = 10
"""Below that, responses may be equal by chance."""
_OTHER_UNITS = 10
"""Ratio of standard deviations of two sessions that is noted."""
_FAR_ABOVE = 10
"""Ratio of mean and standard deviation that only time series, or averages of them, have."""


class Copies:
    """Responses that are equal in every voxel: of a file that was copied, for instance."""

    def __init__(self) -> None:
        self._first: dict[bytes, str] = {}
        self.found: list[tuple[str, str]] = []
        """The copy, and what it is a copy of."""

    def add(self, response_TV: np.ndarray, session: int, behav_T17: np.ndarray) -> None:
        """Add trials with a signal of a session."""
        if response_TV.shape[1] < _FEWEST_VOXELS:
            return
        numbers = behav_T17[:, [nsd.RUN, nsd.TRIAL]].astype(int).tolist()
        for response_V, (run, trial) in zip(response_TV, numbers):
            key = hashlib.blake2b(response_V.tobytes(), digest_size=16).digest()
            name = f"trial {trial} of run {run} of session {session}"
            if (other := self._first.setdefault(key, name)) != name:
                self.found.append((name, other))

    def refuse(self, subject: int, trials: int, accept: Sequence[str]) -> None:
        """Refuse copies.

        Raises
        ------
        UserError
            When there are any, and they are not accepted.
        """
        if not self.found or "copies" in accept:
            return
        name, other = self.found[0]
        raise UserError(
            f"Subject {subject}: the responses to {name} are those to {other}, in every voxel "
            f"({len(self.found)} of {trials} trials are such copies). Is a file a copy of another, "
            "or was one response given to several presentations? Give every response once; if this"
            " is meant, say so with prepare.accept=copies."
        )


def spreads_differ(moments: Sequence[Moments], kept_V: np.ndarray) -> list[str]:
    """Note on sessions whose responses are spread very differently, as in other units."""
    spread = {
        session: float(np.median(each.statistics()[1][kept_V]))
        for session, each in enumerate(moments, start=1)
        if each.training > 1
    }
    if not spread:
        return []
    low, high = min(spread, key=spread.__getitem__), max(spread, key=spread.__getitem__)
    if spread[high] < _OTHER_UNITS * spread[low]:
        return []
    return [
        f"UNITS: a typical voxel's standard deviation is {spread[high]:.3g} in session {high}, "
        f"{spread[low]:.3g} in session {low}: are their responses in the same unit?"
    ]


def refuse_no_responses(
    scans: Scans,
    subject: int,
    whole: Moments,
    kept_V: np.ndarray,
    behav_T17: np.ndarray,
    accept: Sequence[str],
) -> list[str]:
    """Refuse time series and columns of labels. T trials, V voxels.

    `whole` are the moments of all trials; `accept` names what is taken nevertheless.

    Returns
    -------
    list of str
        Notes on responses whose mean is far above their standard deviation.

    Raises
    ------
    UserError
        When these are no responses.
    """
    mean_V, sd_V = whole.statistics()
    ratio = float(np.median(np.abs(mean_V[kept_V]) / sd_V[kept_V]))
    signs, file = list(scans.signs(subject)), scans.session_files(subject, 1)[0]
    if ratio > _FAR_ABOVE:
        signs.append(f"the mean of a typical voxel is {ratio:.0f} times its spread")
    if len(signs) >= 2 and "time_series" not in accept:
        raise UserError(
            f"{file} looks like a time series, not like one response per trial: "
            f"{'; '.join(signs)}. Estimate single-trial responses first (GLMsingle, or nilearn's "
            "LSS); if these are responses, say so with prepare.accept=time_series."
        )
    notes = [f"the responses may be averages or a time series: {sign}" for sign in signs]
    marked_V = whole.marked_V & kept_V & ~whole.whole_V
    if marked_V.any():
        notes.append(
            f"VALUES: {int(marked_V.sum())} voxels hold {' or '.join(f'{m:g}' for m in MARKS)} in "
            "some trial, which marks missing values elsewhere: write NaN for them, and those "
            "voxels are left out"
        )
    varied_V = whole.whole_V & kept_V & ~whole.constant_V
    labels_V = varied_V | (whole.whole_V & whole.constant_V & (whole.low_V != 0))
    count, voxels = int(labels_V.sum()), len(kept_V)
    some = 0 < count < 0.5 * voxels and (varied_V.any() or count < 0.1 * voxels)
    if some and scans.is_array(subject) and "labels" not in accept:
        columns = np.flatnonzero(labels_V)
        shown = ", ".join(map(str, columns[:6])) + (", ..." if count > 6 else "")
        raise UserError(
            f"{file}: {count} of {voxels} columns hold whole numbers, the others do not (columns "
            f"{shown}, from 0){_numbered_columns(scans, subject, columns, behav_T17)}: these are "
            "labels, not voxels. Cut them off; if they are voxels, say so with "
            "prepare.accept=labels."
        )
    return notes


def _numbered_columns(
    scans: Scans, subject: int, columns: np.ndarray, behav_T17: np.ndarray
) -> str:
    """Columns that follow the number of the picture, trial, run or session, as a clause."""
    behav = behav_T17[behav_T17[:, nsd.SESSION] == 1]
    parts = list(scans.responses(subject, 1, len(behav), scans.places(subject)))
    first = np.concatenate(parts)[:, columns]
    names = {"picture": nsd.IMAGE, "trial": nsd.TRIAL, "run": nsd.RUN, "session": nsd.SESSION}
    found = []
    for name, index in names.items():
        for column, values in zip(columns, first.T):
            pairs = set(zip(behav[:, index].tolist(), values.tolist()))
            distinct = {len(pairs), *(len({pair[k] for pair in pairs}) for k in (0, 1))}
            if len(distinct) == 1 and len(pairs) > 1:
                found.append(f"column {column} follows the {name} number")
    return f"; {', '.join(dict.fromkeys(found))}" if found else ""
