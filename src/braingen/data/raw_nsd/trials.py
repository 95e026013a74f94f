"""Trials of NSD: responses.tsv, compared with nsd_expdesign.mat; both count pictures from 1."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from scipy.io import loadmat

from braingen.data.raw_nsd.betas import GET_RAW
from braingen.data.scans import behav_of
from braingen.runtime.errors import UserError, as_sentence
from braingen.runtime.files import refuse_stand_in

_COLUMNS = {
    "image": "73KID", "subject": "SUBJECT", "session": "SESSION", "run": "RUN", "trial": "TRIAL",
    "time": "TIME", "is_old": "ISOLD", "is_correct": "ISCORRECT", "rt": "RT",
    "change_mind": "CHANGEMIND",
    "is_old_current": "ISOLDCURRENT", "is_correct_current": "ISCORRECTCURRENT", "total1": "TOTAL1",
    "total2": "TOTAL2", "button": "BUTTON",
}  # fmt: skip
"""Columns of `nsd.BEHAV_COLUMNS` in responses.tsv."""


class NSDDesign:
    """nsd_expdesign.mat.

    Parameters
    ----------
    path : Path
        The file.

    Raises
    ------
    UserError
        When it is missing or damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = refuse_stand_in(path, GET_RAW)
        with as_sentence(f"{path} cannot be read as NSD's design", GET_RAW):
            found = loadmat(path)
            names = ("masterordering", "subjectim", "sharedix")
            arrays = [np.asarray(found[name]).astype(np.int64) for name in names]
        self._order, self._pictures = arrays[0].ravel(), arrays[1]
        self.shared = arrays[2].ravel() - 1
        """Ids of the shared1000 pictures, from 0."""

    def check(
        self, subject: int, shown: np.ndarray, table: Path, stimuli: Path, pictures: int
    ) -> None:
        """Compare the pictures of responses.tsv with the design.

        Parameters
        ----------
        subject : int
            Its number.
        shown : np.ndarray
            (T,) ndarray Pictures of its trials, from 1.
        table : Path
            responses.tsv, for messages.
        stimuli : Path
            The pictures, for messages.
        pictures : int
            How many there are.

        Raises
        ------
        UserError
            When they differ.
        """
        order, known = self._order, self._pictures
        fits = len(order) >= len(shown) and order.max(initial=0) <= known.shape[1]
        if not 1 <= subject <= len(known) or not fits:
            raise UserError(
                f"{self.path} describes {len(known)} subjects and {len(order)} trials, {table} has "
                f"{len(shown)} trials of subject {subject}: they do not belong together; {GET_RAW}."
            )
        planned = known[subject - 1, order[: len(shown)] - 1]
        wrong = np.flatnonzero(planned != shown)
        if len(wrong):
            first = wrong[0]
            raise UserError(
                f"{table}: trial {first} shows picture {shown[first]:g}, by {self.path.name} it is "
                f"{planned[first]} (both count from 1; {len(wrong)} trials differ); {GET_RAW}."
            )
        if planned.min(initial=1) < 1 or planned.max(initial=1) > pictures:
            raise UserError(
                f"{table} names pictures up to {planned.max()}, {stimuli} has {pictures}; "
                f"{GET_RAW}."
            )


def read_trials(path: Path, subject: int) -> np.ndarray:
    """Trials of responses.tsv.

    Parameters
    ----------
    path : Path
        The table.
    subject : int
        Whose trials it should hold.

    Returns
    -------
    np.ndarray
        (T, 17) ndarray Columns `nsd.BEHAV_COLUMNS`, pictures from 0; is_shared1000 is -1.

    Raises
    ------
    UserError
        When the table is damaged, or of another subject.
    """
    refuse_stand_in(path, GET_RAW)
    with as_sentence(f"{path} is not a table", GET_RAW):
        table = pd.read_csv(path, sep="\t")
    absent = [name for name in _COLUMNS.values() if name not in table]
    if absent:
        raise UserError(
            f"{path} has no column {', '.join(absent)}, NSD's responses.tsv has; {GET_RAW}."
        )
    if (table["SUBJECT"] != subject).any():
        found = ", ".join(f"{number:g}" for number in sorted(table["SUBJECT"].unique()))
        raise UserError(
            f"{path} holds trials of subject {found}, subject {subject} was expected; {GET_RAW}."
        )
    session = table["SESSION"].to_numpy()
    sessions = int(session.max(initial=0))
    ascending = (np.diff(session) >= 0).all() and session.min(initial=1) == 1
    if not ascending or (len(table) and len(np.unique(session)) != sessions):
        raise UserError(
            f"{path}: the trials are not in order of sessions from 1 without a gap; {GET_RAW}."
        )
    columns = {name: table[raw].fillna(-1) for name, raw in _COLUMNS.items()}
    return behav_of(len(table), columns | {"image": columns["image"] - 1})
