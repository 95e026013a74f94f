"""Tables of trials: which column names the picture, which trials are for testing, which are left
out, in which order they are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from braingen.data.ingest.names import GUIDE
from braingen.data.ingest.tables import read_table
from braingen.runtime.errors import UserError

SPLITS: dict[str, str] = {
    **dict.fromkeys(("train", "training", "trn", "fit"), "train"),
    **dict.fromkeys(("test", "testing", "tst", "shared", "shared1000"), "test"),
    **dict.fromkeys(("validation", "val", "valid", "dev"), "validation"),
    **dict.fromkeys(
        ("exclude", "excluded", "bad", "drop", "reject", "rejected", "skip"), "exclude"
    ),
}
"""Words of the column `split`, case and blanks ignored -> what they mean."""
BAD_COLUMNS = ("bad", "exclude", "excluded", "reject", "rejected")
_YES, _NO = (
    ("1", "1.0", "true", "yes", "y", "bad", "exclude"),
    ("0", "0.0", "false", "no", "n", "good", "keep", "", "nan", "n/a", "none"),
)
_USED = ("onset", "duration", "response_time", "split", "run", "trial_type")


class EventTable(NamedTuple):
    """Trials of one table, in the order of their responses."""

    trials: pd.DataFrame
    """Columns stimulus, line (of the file's rows, from 0), onset, response_time, run, side (train,
    test, validation, exclude or ''), bad, one_back, trial_type; NaN or '' where the file has none.
    """
    lines: int
    """Rows of the file, those without a picture included."""
    notes: tuple[str, ...]
    """What was done, for the summary."""
    ignored: tuple[str, ...]
    """Columns that are not used."""


def read_events(
    path: Path, column: str, names_of_images: Callable[[], Sequence[str]]
) -> EventTable:
    """Trials with a picture, in the order of onsets.

    Parameters
    ----------
    path : Path
        Of the table.
    column : str
        The one that names the picture.
    names_of_images : Callable[[], Sequence[str]]
        Files there are, to offer another column.

    Raises
    ------
    UserError
        When the file is no table, names no picture, or has a word or an onset that is not
        understood.
    """
    table = read_table(path)
    if column not in _usual_names(table, column):
        raise UserError(
            f"{path} has no column {column} (it has"
            f" {', '.join(table.columns)}){_offer(table, names_of_images())}; {GUIDE}."
        )
    return trials_of(table, path, column)


def _usual_names(table: pd.DataFrame, column: str) -> pd.DataFrame:
    """Columns that are used under the names that are used, whatever the case of their letters."""
    there = {name.lower(): name for name in table.columns}
    other = {
        there[name.lower()]: name
        for name in (column, *_USED)
        if name not in table and name.lower() in there
    }
    return table.rename(columns=other)


def trials_of(table: pd.DataFrame, path: Path, column: str) -> EventTable:
    """The trials of a table that is read already; see :func:`read_events`."""
    table = _usual_names(table, column)
    lines, notes = len(table), []
    shown = table[column].notna()
    if not shown.any():
        raise UserError(f"{path} names no picture in its column {column}; {GUIDE}.")
    trials = pd.DataFrame({"line": np.flatnonzero(shown)})
    kept = table[shown].reset_index(drop=True)
    trials["stimulus"] = kept[column].astype(str)
    for name in ("onset", "response_time"):
        trials[name] = _numbers(kept, name, path)
    trials["run"] = kept["run"].astype(str) if "run" in kept else ""
    trials["side"] = _sides(kept, path)
    trials["trial_type"] = (
        kept["trial_type"].fillna("").astype(str)
        if "trial_type" in kept and column != "trial_type"
        else ""
    )
    bad_columns = [name for name in kept if name.lower() in BAD_COLUMNS]
    trials["bad"] = (
        np.any([_flags(kept[name], path, name) for name in bad_columns], axis=0)
        if bad_columns
        else False
    )
    trials, more = _in_order_of_onsets(trials, path)
    notes += more
    same_run = trials["run"].eq(trials["run"].shift())
    trials["one_back"] = trials["stimulus"].eq(trials["stimulus"].shift()) & same_run
    used = {column, *_USED, *bad_columns}
    ignored = tuple(name for name in table.columns if name not in used)
    return EventTable(trials.reset_index(drop=True), lines, tuple(notes), ignored)


def _offer(table: pd.DataFrame, names: Sequence[str]) -> str:
    """The column whose values are pictures, as part of a sentence."""
    known = {*names, *(name.rpartition("/")[2] for name in names)}
    known |= {name.rpartition(".")[0] for name in known}
    fitting = [
        c
        for c in table.columns
        if table[c].notna().any() and set(table[c].dropna().astype(str)) <= known
    ]
    if not fitting:
        return "; name the one that says which picture was shown with prepare.stimulus_column=NAME"
    return (
        f"; the values of {fitting[0]} are pictures: take it with"
        f" prepare.stimulus_column={fitting[0]}"
    )


def _numbers(table: pd.DataFrame, name: str, path: Path) -> np.ndarray:
    if name not in table:
        return np.full(len(table), np.nan)
    found = pd.to_numeric(table[name], errors="coerce")
    wrong = found.isna() & table[name].notna()
    if wrong.any() and name == "onset":
        line = int(np.flatnonzero(wrong)[0])
        raise UserError(
            f"{path}: onset '{table[name].iloc[line]}' in line {line + 2} is no number of seconds;"
            " correct it."
        )
    return found.to_numpy(dtype=float)


def _sides(table: pd.DataFrame, path: Path) -> list[str]:
    if "split" not in table or table["split"].isna().all():
        return [""] * len(table)
    words = table["split"].astype("string").str.strip().str.lower()
    unknown = [str(word) for word in words.fillna("n/a").unique() if word not in SPLITS]
    if unknown:
        raise UserError(
            f"{path}: split is '{unknown[0]}' in {int((words.fillna('n/a') == unknown[0]).sum())}"
            " lines; allowed are train, test, validation and exclude. Write one of these."
        )
    return [SPLITS[str(word)] for word in words]


def _flags(values: pd.Series, path: Path, name: str) -> np.ndarray:
    words = values.astype("string").fillna("").str.strip().str.lower()
    unknown = sorted(set(words) - {*_YES, *_NO})
    if unknown:
        raise UserError(
            f"{path}: column {name} has '{unknown[0]}'; 1 (left out) or 0 was expected."
        )
    return words.isin(_YES).to_numpy()


def _in_order_of_onsets(trials: pd.DataFrame, path: Path) -> tuple[pd.DataFrame, list[str]]:
    """Responses of a GLM are in the order of onsets, so events are brought into it, run by run."""
    onset = trials["onset"].to_numpy()
    if np.isnan(onset).all():
        return trials, [f"{path.name}: no onsets, trials are taken in the order of the lines"]
    if np.isnan(onset).any():
        raise UserError(
            f"{path}: {int(np.isnan(onset).sum())} of {len(onset)} trials have no onset; add it, or"
            " leave the lines out."
        )
    runs = trials["run"].to_numpy()
    parts = [np.flatnonzero(runs == run) for run in dict.fromkeys(runs)]
    if any((np.diff(part) != 1).any() for part in parts):
        raise UserError(
            f"{path}: the lines of run {runs[0]} and others are mixed; sort the table by run and"
            " onset."
        )
    if len(parts) == 1:
        falls = np.flatnonzero(np.diff(onset) < 0) + 1
        begins = np.r_[0, falls]
        # few pieces, each from the beginning: runs written one below the other, perhaps
        like_runs = (
            0 < len(falls) <= len(onset) / 4
            and onset[begins].max() <= np.sort(onset)[len(onset) // 2]
        )
        if like_runs and len(np.unique(onset)) < len(
            onset
        ):  # one run has no two pictures at one time
            runs = np.repeat(
                np.arange(1, len(falls) + 2), np.diff(np.r_[begins, len(onset)])
            ).astype(str)
            note = (
                f"{path.name}: onsets begin anew {len(falls)} times, taken as {len(falls) + 1} runs"
                " one after the other"
            )
            return trials.assign(run=runs), [note]
        if like_runs:
            raise UserError(
                f"{path}: onsets begin anew {len(falls)} times (first in line"
                f" {int(trials['line'].iloc[falls[0]]) + 2}): these are runs one below the other,"
                " or lines in another order than the onsets. Add a column run (1, 2, ...), or sort"
                " the lines by onset."
            )
    order = np.concatenate([part[np.argsort(onset[part], kind="stable")] for part in parts])
    same = [part for part in parts if len(np.unique(onset[part])) < len(part)]
    if (order == np.arange(len(order))).all():
        return trials, []
    if same:
        raise UserError(
            f"{path}: onsets do not ascend, and some trials have the same onset: their order cannot"
            " be known; sort the lines."
        )
    moved = int((order != np.arange(len(order))).sum())
    note = (
        f"{path.name}: lines were not in the order of onsets; sorted by onset, as responses of a"
        f" GLM are ({moved} lines moved)"
    )
    return trials.iloc[order], [note]
