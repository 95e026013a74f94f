"""One table of the trials of all subjects, beside one array of responses per subject: subject,
session, trial, image[, split].
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from braingen.data.ingest.events import EventTable, trials_of
from braingen.data.ingest.names import GUIDE, Named, natural
from braingen.data.ingest.tables import read_table
from braingen.runtime.errors import UserError

_USUAL = ("trials.csv", "trials.tsv", "trials.parquet", "trials.csv.gz", "trials.tsv.gz")
_COLUMNS = {
    "subject": ("subject", "sub", "participant_id", "participant"),
    "session": ("session", "ses", "session_id"),
    "image": ("image", "stim_file", "stimulus", "picture", "image_file"),
    "trial": ("trial", "trial_number", "row"),
}


def find_trial_table(
    root: Path, given: Path | None, has_events: bool
) -> tuple[Path, pd.DataFrame] | None:
    """The trial table that is named, or one beside the scans where there are no events; None where
    there is none.

    Raises
    ------
    UserError
        When it is no table, or lacks a column.
    """
    if given is None and has_events:
        return None
    path = given or next((root / name for name in _USUAL if (root / name).exists()), None)
    if path is None:
        return None
    table = read_table(path)
    names = {name.lower(): name for name in table}
    for wanted, usual in _COLUMNS.items():
        found = next((names[name] for name in usual if name in names), None)
        if found is not None:
            table = table.rename(columns={found: wanted})
        elif wanted in ("subject", "image"):
            raise UserError(
                f"{path} has no column {wanted} (it has {', '.join(table.columns)}); subject,"
                f" session, trial, image and split are read; {GUIDE}."
            )
    table["subject"] = table["subject"].astype(str).str.removeprefix("sub-")
    if table["subject"].isna().any() or not table["subject"].str.fullmatch("[A-Za-z0-9+]+").all():
        raise UserError(
            f"{path}: subjects are letters and digits only; correct the column subject."
        )
    for name in ("session", "run"):
        if name in table and (empty := table[name].isna()).any():
            raise UserError(
                f"{path}: {name} is empty in line {int(empty.argmax()) + 2} ({int(empty.sum())} "
                "such); fill it in for every trial, or remove the column."
            )
    if "session" in table:
        table["session"] = table["session"].astype(str).str.removeprefix("ses-")
    return path, table


def events_of_table(
    path: Path, table: pd.DataFrame, label: str
) -> tuple[list[Named], dict[Path, EventTable]]:
    """The trials of a subject as one table of events per session.

    Raises
    ------
    UserError
        When trial numbers are not unique, or contradict the order of sessions.
    """
    mine = table[table["subject"] == label]
    sessions = sorted(mine["session"].unique(), key=natural) if "session" in mine else [""]
    events, tables = [], {}
    last = -np.inf
    across = (
        "trial" in mine and not pd.to_numeric(mine["trial"], errors="coerce").duplicated().any()
    )
    for session in sessions:
        part = mine[mine["session"] == session] if "session" in mine else mine
        notes: tuple[str, ...] = ()
        if "trial" in part:
            number = pd.to_numeric(part["trial"], errors="coerce").to_numpy(dtype=float)
            runs = part["run"].to_numpy() if "run" in part else np.zeros(len(part))
            if np.isnan(number).any():
                raise UserError(
                    f"{path}: some trials of subject {label} have no number; correct the column"
                    " trial."
                )
            if len({(run, n) for run, n in zip(runs, number)}) < len(number):
                raise UserError(
                    f"{path}: subject {label} has the same trial number twice in session"
                    f" {session or '(none)'}; correct it."
                )
            if across:
                if number.min() < last:
                    raise UserError(
                        f"{path}: trials of subject {label} are numbered through, but not in the"
                        f" order of the sessions {', '.join(sessions)}; number the sessions in the"
                        " order of the trials."
                    )
                last = number.max()
            if len(set(number)) == len(number) and (np.diff(number) < 0).any():
                part = part.iloc[np.argsort(number, kind="stable")]
                notes = (f"{path.name}: lines of session {session or '(none)'} sorted by trial",)
        where = path.with_name(f"{path.name}#sub-{label}_ses-{session}")
        found = trials_of(part.reset_index(drop=True), where, "image")
        ignored = tuple(
            name for name in found.ignored if name not in ("subject", "session", "trial")
        )
        kept = tuple(note for note in found.notes if "no onsets" not in note)
        tables[where] = found._replace(notes=(*notes, *kept), ignored=ignored)
        entities = {"sub": label} | ({"ses": session} if session else {})
        events.append(Named(where, entities, "events", ".tsv"))
    return events, tables
