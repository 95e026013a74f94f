"""Which row of the responses belongs to which trial of the events, and which trials are used."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import accumulate

import numpy as np
import pandas as pd

from braingen.config.run_and_data import PrepareConfig
from braingen.data.ingest.events import EventTable
from braingen.data.ingest.forms import ScanSource
from braingen.data.ingest.names import GUIDE
from braingen.data.ingest.pairing import PairedRun
from braingen.runtime.errors import UserError


def rows_of_trials(
    pair: PairedRun, source: ScanSource, tables: Sequence[EventTable]
) -> tuple[list[np.ndarray], list[str]]:
    """Row of the responses for every trial of every table.

    Parameters
    ----------
    pair : PairedRun
        Responses and the events they belong to.
    source : ScanSource
        The responses.
    tables : sequence of EventTable
        The events.

    Returns
    -------
    list of ndarray, list of str
        Rows by table, -1 for trials without a response; notes for the summary.

    Raises
    ------
    UserError
        When the number of responses fits neither the trials nor the lines of the events.
    """
    name = pair.unit.first.path.name
    counts = [len(table.trials) for table in tables]
    if source.trials == sum(counts):
        return [first + np.arange(count) for first, count in zip(_starts(counts), counts)], []
    good = [~left_out(table.trials).to_numpy() for table in tables]
    counts_of_good = [int(each.sum()) for each in good]
    if source.trials == sum(counts_of_good):
        rows = [
            np.where(kept, first + np.cumsum(kept) - 1, -1)
            for first, kept in zip(_starts(counts_of_good), good)
        ]
        return rows, [f"{name}: responses are those of the trials that are not marked as bad"]
    lines = [table.lines for table in tables]
    rows = [first + t.trials["line"].to_numpy() for first, t in zip(_starts(lines), tables)]
    if source.trials == sum(lines) and all((np.diff(row) > 0).all() for row in rows):
        return rows, [
            f"{name}: one response per line of the events, those of lines without a picture left "
            "out"
        ]
    raise UserError(_wrong_count(pair, source, sum(counts)))


def _starts(counts: Sequence[int]) -> list[int]:
    """First row of every table."""
    return [0, *accumulate(counts)][:-1]


def left_out(trials: pd.DataFrame) -> pd.Series:
    """Trials that the events mark as bad or exclude."""
    return trials["bad"].astype(bool) | (trials["side"] == "exclude")


def _wrong_count(pair: PairedRun, source: ScanSource, trials: int) -> str:
    """Why responses and events do not belong together, with likely causes."""
    hint = ""
    if source.trials > trials and source.trials % trials == 0:
        hint = (
            f" {source.trials} is {source.trials // trials} x {trials}: one response per event is "
            "needed; is this a time series, or was every TR of an event coded as an onset?"
        )
    elif trials > source.trials and trials % source.trials == 0:
        hint = (
            f" {trials} is {trials // source.trials} x {source.trials}: are these responses of one "
            "run, or means over repeats?"
        )
    if source.columns == trials and not source.is_volume:
        hint = f" It has {trials} columns: is it transposed? Trials come first."
    if source.signs:
        hint += (
            f" It looks like a time series ({'; '.join(source.signs)}): estimate single-trial "
            "responses first (GLMsingle, nilearn's LSS)."
        )
    many = len(pair.events) > 1
    where = f" in {len(pair.events)} tables" if many else f" ({pair.events[0].path.name})"
    return (
        f"{pair.unit.first.path} holds responses to {source.trials} trials, its events name a "
        f"picture in {trials}{where}: they do not belong together.{hint} {GUIDE}."
    )


class TrialSelection:
    """Choice of the trials that are used, with counts for the summary.

    Parameters
    ----------
    config : PrepareConfig
        Settings of `prepare`.
    """

    def __init__(self, config: PrepareConfig) -> None:
        self.prepare = config
        self._left_out: Counter[str] = Counter()
        self._types: Counter[str] = Counter()
        self._bad = self._one_back = 0

    @property
    def left_out(self) -> int:
        """Trials that are not used."""
        return self._left_out.total()

    def used(self, table: EventTable, row: np.ndarray) -> pd.DataFrame:
        """Trials of a table that are used, with columns row and number (in the run, from 1)."""
        trials = table.trials.assign(row=row)
        trials["number"] = trials.groupby("run").cumcount() + 1
        reasons = {
            "split exclude": trials["side"] == "exclude",
            "without a response": trials["row"] < 0,
        }
        if self.prepare.bad_trials == "leave_out":
            reasons["marked as bad"] = trials["bad"].astype(bool)
        if self.prepare.one_back == "leave_out":
            reasons["one-back repeats"] = trials["one_back"]
        if self.prepare.trial_type:
            reasons["other trial_type"] = ~trials["trial_type"].isin(self.prepare.trial_type)
        gone = pd.Series(False, index=trials.index)
        for reason, which in reasons.items():
            self._left_out[reason] += int((which & ~gone).sum())
            gone |= which
        kept = trials[~gone]
        self._bad += int(kept["bad"].sum())
        self._one_back += int(kept["one_back"].sum())
        self._types.update(name or "none" for name in kept["trial_type"])
        return kept

    def notes(self) -> list[str]:
        """What was left out and kept, for the summary."""
        notes = [
            f"left out on both sides: {count} trials, {reason}"
            for reason, count in self._left_out.items()
            if count
        ]
        if self._bad:
            notes.append(f"{self._bad} trials are marked as bad and kept (prepare.bad_trials=keep)")
        if self._one_back:
            notes.append(
                f"{self._one_back} one-back repeats are kept (prepare.one_back=leave_out leaves "
                "them out)"
            )
        if len(self._types) > 1:
            shown = ", ".join(f"{name} {count}" for name, count in self._types.items())
            notes.append(f"trial_type: {shown}, all kept (prepare.trial_type=NAME takes one)")
        return notes
