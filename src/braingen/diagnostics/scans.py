"""What `braingen prepare` would make of a folder of scans; nothing is written."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from braingen.config import Config
from braingen.data import nsd
from braingen.data.checks.problem import Problem
from braingen.data.ingest.own_scans import OwnScans
from braingen.data.prepare_scans import scans_of
from braingen.data.scans import Scans
from braingen.runtime.errors import UserError


def scan_findings(config: Config) -> Iterator[Problem]:
    """Read the tables of the subjects' scans, and the first responses of every session.

    Yields
    ------
    Problem
        Per subject what would be prepared, with notes; an error instead where `prepare` would
        refuse it.
    """
    try:
        scans = scans_of(config)
        scans.prepare_for(config.data.subjects)
    except UserError as error:
        yield Problem("error", None, "scans", str(error))
        return
    for subject in config.data.subjects:
        try:
            yield Problem("ok", subject, "scans", _found(scans, subject, config.data.num_sessions))
            for note in scans.notes(subject):
                yield Problem("note", subject, "scans", f"Subject {subject}: {note}.")
        except UserError as error:
            yield Problem("error", subject, "scans", str(error))


def _found(scans: Scans, subject: int, num_sessions: int) -> str:
    """What there is of a subject, in a sentence; refuses responses that cannot be read."""
    if subject not in scans.subjects():
        there = ", ".join(map(str, scans.subjects())) or "none"
        raise UserError(f"There is no subject {subject} among the scans (there: {there}).")
    behav_T17 = scans.trials(subject, num_sessions)
    sessions = np.unique(behav_T17[:, nsd.SESSION]).astype(int)
    for session in sessions:
        trials = int((behav_T17[:, nsd.SESSION] == session).sum())
        block_TV = next(iter(scans.responses(subject, session, trials, scans.places(subject))))
        if not np.isfinite(block_TV).any():
            raise UserError(
                f"{scans.session_files(subject, session)[0]} begins with NaN in all voxels."
            )
    who, (inside, whole) = scans.who(subject), scans.candidates(subject)
    form = f", {who['form']}" if "form" in who else ""
    test = int((behav_T17[:, nsd.IS_SHARED] == 1).sum())
    images = len(np.unique(behav_T17[:, nsd.IMAGE]))
    kind = "own scans" if isinstance(scans, OwnScans) else "NSD's raw release"
    return (
        f"Subject {subject}, label {who['label']}{form}: {len(behav_T17)} trials of {images} images"
        f" in {len(sessions)} sessions ({test} test trials, by {who['test pictures']}); {inside} of"
        f" {whole} voxels in the mask ({kind})."
    )
