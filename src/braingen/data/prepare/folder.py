"""The whole of `prepare`: what is missing of a data folder is written, subject by subject."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
import json
from pathlib import Path
import shutil
from typing import Any

import numpy as np

from braingen.data import nsd
from braingen.data.prepare.images import PICTURE_SIDE, write_images
from braingen.data.prepare.manifest import (
    SCRATCH,
    is_up_to_date,
    open_manifest,
    refuse_foreign_files,
    refuse_responses_of_others,
    sources_of,
)
from braingen.data.prepare.subject import write_subject
from braingen.data.prepare.summary import summary_of
from braingen.data.scans import Scans
from braingen.data.stimuli import Stimuli
from braingen.runtime.data_layout import Layout
from braingen.runtime.errors import UserError
from braingen.runtime.files import (
    disk_errors_as_sentences,
    refuse_small_disk,
    replaced_file,
    sha256_of,
    write_json,
)
from braingen.runtime.lock import only_writer
from braingen.runtime.text_files import read_json

_BYTES_PER_SAMPLE = 9216  # of a tar


def prepare(
    scans: Scans,
    root: Path,
    subjects: Iterable[int],
    settings: dict[str, Any],
    num_sessions: int = 0,
    captions: bool = True,
    accept: Sequence[str] = (),
    report: Callable[[str], object] = lambda _: None,
) -> Layout:
    """Write the working layout of some subjects, or what is missing of it.

    Parameters
    ----------
    scans : Scans
        The scans.
    root : Path
        The data folder; subjects, sessions and pictures may be added to one that is there.
    subjects : Iterable[int]
        Numbers.
    settings : dict
        What determines the result besides the scans; a folder made with others is refused.
    num_sessions : int
        Sessions that are used, from the first (0: all).
    captions : bool
        Whether captions are written.
    accept : sequence of str
        What is accepted although it does not look like responses: time_series, labels, copies.
    report : callable
        Called with the summary of every subject.

    Raises
    ------
    UserError
        When something is missing or wrong in the scans, the folder holds other data, the disk is
        too small, or another process writes there.
    """
    layout, subjects = Layout.of(root), list(subjects)
    manifest = open_manifest(layout, {**settings, "num_sessions": num_sessions}, scans)
    for subject in subjects:
        _refuse_unknown(scans, subject)
    scans.prepare_for(subjects)
    tables = {subject: _trials(scans, subject, num_sessions) for subject in subjects}
    sources = {s: sources_of(scans, s, behav_T17, manifest) for s, behav_T17 in tables.items()}
    if "copies" not in accept:
        refuse_responses_of_others(scans, sources, manifest)
    todo = [s for s in subjects if not is_up_to_date(layout, manifest, s, sources[s])]
    wanted = captions and _captions_wanted(scans, layout, manifest)
    texts = scans.captions() if wanted else None
    refuse_foreign_files(layout, manifest, todo)
    _check_disk(scans, layout, {subject: tables[subject] for subject in todo})
    more_pictures = not layout.images().exists() or (
        scans.grows and (len(Stimuli(layout)) < scans.pictures.number or bool(scans.exchanged()))
    )
    shared, scratch = manifest["shared"], layout.root / SCRATCH
    with disk_errors_as_sentences(layout.root):
        scratch.mkdir(parents=True, exist_ok=True)
        with only_writer(scratch):
            write_json(layout.prepared(), manifest)
            if todo or more_pictures:
                for path in scans.tables(layout.root):
                    shared[path.name] = {"sha256": sha256_of(path)}
            for subject in set(subjects) - set(todo):  # their files may have other times now
                if sources[subject]["sources"]:
                    manifest["subjects"][str(subject)]["made_from"] = sources[subject]
            for subject in todo:
                before = manifest["subjects"].get(str(subject))
                behav_T17 = tables[subject]
                entry = write_subject(scans, layout, subject, behav_T17, scratch, accept)
                if sources[subject]["sources"]:
                    entry["made_from"] = sources[subject]
                manifest["subjects"][str(subject)] = entry
                write_json(layout.prepared(), manifest)
                report(summary_of(scans, subject, behav_T17, entry, before))
            if more_pictures:
                shared[layout.images().name] = write_images(scans, layout, scratch)
            if texts is not None:
                shared[layout.captions().name] = _write_captions(scans, layout, texts)
            write_json(layout.prepared(), manifest)
        shutil.rmtree(scratch, ignore_errors=True)
    done = [str(subject) for subject in subjects if subject not in todo]
    if done:
        also = ["pictures"] * more_pictures + ["captions"] * (texts is not None)
        written = f"{' and '.join(also)} were written" if also else "nothing was done"
        report(
            f"Subject{'s' if len(done) > 1 else ''} {', '.join(done)}: prepared already, and "
            f"nothing has changed since; {written}."
        )
    if more_pictures and (changed := scans.exchanged()):
        report(
            f"CHANGED: {len(changed)} pictures are other pictures than when they were prepared; "
            "they stand under their ids now, for all subjects of the folder."
        )
    return layout


def _refuse_unknown(scans: Scans, subject: int) -> None:
    if subject not in scans.subjects():
        there = ", ".join(map(str, scans.subjects())) or "none"
        raise UserError(
            f"There is no subject {subject} among the scans (there: {there}); name one of these "
            f"with --subj, or {scans.get_it}."
        )


def _trials(scans: Scans, subject: int, num_sessions: int) -> np.ndarray:
    """Trials of a subject; refuses a subject without enough of them or without files."""
    behav_T17 = scans.trials(subject, num_sessions)
    if not len(behav_T17):
        raise UserError(f"Subject {subject} has no trials; {scans.get_it}.")
    test_T = behav_T17[:, nsd.IS_SHARED] == 1
    if not test_T.any():
        raise UserError(
            f"Subject {subject}: no trial shows a test picture, so nothing could be scored; "
            f"{scans.get_it}."
        )
    sessions = np.unique(behav_T17[:, nsd.SESSION]).astype(int)
    for session in sessions:
        scans.session_files(subject, session)
    training = int((~test_T).sum())
    if training < 2 and not scans.sealed:
        raise UserError(
            f"Subject {subject} has {training} training trials in {len(sessions)} sessions, at "
            "least 2 are needed: take some pictures out of the test pictures (column split, or "
            "--test_images)."
        )
    return behav_T17


def _captions_wanted(scans: Scans, layout: Layout, manifest: dict[str, Any]) -> bool:
    """Whether captions are missing, have changed, or are fewer than the pictures."""
    if not layout.captions().exists():
        return True
    file, known = scans.caption_file(), manifest["shared"].get(layout.captions().name, {})
    if file is None or "made_from" not in known:
        return False
    written = len(read_json(layout.captions()))
    return sha256_of(file) != known["made_from"] or written < scans.pictures.number


def _write_captions(scans: Scans, layout: Layout, texts: dict[int, list[str]]) -> dict[str, str]:
    with replaced_file(layout.captions(), "w") as handle:
        json.dump({str(image): found for image, found in sorted(texts.items())}, handle)
    file = scans.caption_file()
    made_from = {"made_from": sha256_of(file)} if file is not None else {}
    return {"sha256": sha256_of(layout.captions())} | made_from


def _check_disk(scans: Scans, layout: Layout, tables: dict[int, np.ndarray]) -> None:
    pictures = 0 if layout.images().exists() else scans.pictures.number
    needed = pictures * 3 * PICTURE_SIDE**2 * 2
    for subject, behav_T17 in tables.items():
        needed += len(behav_T17) * (4 * scans.candidates(subject)[0] + 2 * _BYTES_PER_SAMPLE)
    scratch = layout.root / SCRATCH
    there = sum(file.stat().st_blocks * 512 for file in scratch.rglob("*") if file.is_file())
    instead = "choose another --data_path, or fewer subjects or sessions"
    refuse_small_disk(layout.root, needed - there, "The prepared data", instead)
