"""From scans to the working layout: masked, z-scored by session, cut into training and test trials.

Responses are z-scored per voxel with the mean and standard deviation of *training* trials, of the
session or of the subject; test trials are normalised with the same two numbers, which are kept
(`zscore.py`). Responses are read twice, in blocks of trials: first for these numbers and for voxels
without a signal, then into a reserved file. Memory does not grow with the trials of a session.
Killed at any moment, the same call continues after the last finished piece; called again later, it
notices new sessions and changed sources.

T trials, V voxels, S sessions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
import functools
import hashlib
import json
import os
from pathlib import Path
import shutil
from typing import Any, NamedTuple

import h5py
import numpy as np

from braingen.data import nsd
from braingen.data.ingest.reliability import Reliability, reliability
from braingen.data.large_files import ArrayOnDisk, blocks, in_hdf5, publish, release, reserve_hdf5
from braingen.data.places import ColumnPlaces, Places, files_of, key_of, save_other_places
from braingen.data.scans import Scans
from braingen.data.stimuli import Stimuli
from braingen.data.tars import write_tar
from braingen.data.volumes import (
    NSDGENERAL,
    VoxelPlaces,
    load_nifti,
    read_regions,
    save_places,
    write_regions,
)
from braingen.data.zscore import Moments, statistics_path, zscored
from braingen.runtime.console import track
from braingen.runtime.data_layout import Layout, subject_name
from braingen.runtime.errors import UserError
from braingen.runtime.files import (
    disk_errors_as_sentences,
    identity,
    refuse_small_disk,
    replaced_file,
    replaced_path,
    sha256_of,
    write_json,
)
from braingen.runtime.lock import only_writer
from braingen.runtime.text_files import read_json

ENOUGH_TRIALS = 20
"""Training trials with which a session is z-scored by itself."""
FEWEST_TRIALS = 5
"""Training trials below which nothing is z-scored."""
FAR_ABOVE = 10
"""A mean so many times the spread is that of a time series, or of averages of one."""
PICTURE_SIDE = 224
HELD_BACK = 3
"""Sessions at the end that `test/0.tar` leaves out: NSD held back its last three when that test set
was made.
"""
_PICTURES_AT_ONCE = 100
_VERIFIED_BYTES = 64 * 2**20
_BYTES_PER_SAMPLE = 9216  # of a tar
_SESSION, _RUN, _TRIAL, _IMAGE, _SHARED = (
    nsd.BEHAV_COLUMNS.index(name) for name in ("session", "run", "trial", "image", "is_shared1000")
)


# --- the folder -----------------------------------------------------------------------------------


def prepare(
    scans: Scans,
    root: Path,
    subjects: Iterable[int],
    settings: dict[str, Any],
    num_sessions: int = 0,
    captions: bool = True,
    accept: Sequence[str] = (),
    tell: Callable[[str], object] = lambda _: None,
) -> Layout:
    """Write the working layout of some subjects, or what is missing of it.

    Parameters
    ----------
    scans : Scans
        Where it all comes from.
    root : Path
        The data folder; further subjects, sessions and pictures may be added to one that is there.
    subjects : Iterable[int]
        Numbers.
    settings : dict[str, Any]
        What determines the result besides the scans; a folder made with others is refused.
    num_sessions : int, optional
        The first so many (0: all).
    captions : bool, optional
        Whether captions are written.
    accept : Sequence[str], optional
        What is taken although it does not look like responses: time_series, labels.
    tell : Callable[[str], object], optional
        Given the summary of every subject.

    Raises
    ------
    UserError
        When something is missing or wrong in the scans, the folder holds other data, the disk is
        too small, or another process writes there.
    """
    layout = Layout.of(root)
    subjects = list(subjects)
    manifest = _manifest(layout, {**settings, "num_sessions": num_sessions}, scans)
    for subject in subjects:
        _refuse_unknown(scans, subject)
    scans.prepare_for(subjects)
    tables = {subject: _table(scans, subject, num_sessions) for subject in subjects}
    made_from = {
        subject: _sources(scans, subject, tables[subject], manifest) for subject in subjects
    }
    todo = [
        subject
        for subject in subjects
        if not _is_done(layout, manifest, subject, made_from[subject])
    ]
    texts = scans.captions() if captions and _captions_wanted(scans, layout, manifest) else None
    _refuse_foreign_files(layout, manifest, todo)
    _check_disk(scans, layout, {subject: tables[subject] for subject in todo})
    more_pictures = not layout.images().exists() or (
        scans.grows and (len(Stimuli(layout)) < scans.pictures.number or bool(scans.exchanged()))
    )
    scratch = layout.root / ".preparing"
    with disk_errors_as_sentences(layout.root):
        scratch.mkdir(parents=True, exist_ok=True)
        with only_writer(scratch):
            write_json(layout.prepared(), manifest)
            if todo or more_pictures:
                for path in scans.tables(layout.root):
                    manifest["shared"][path.name] = {"sha256": sha256_of(path)}
            for subject in todo:
                before = manifest["subjects"].get(str(subject))
                entry = _write_subject(scans, layout, subject, tables[subject], scratch, accept)
                manifest["subjects"][str(subject)] = entry | (
                    {"made_from": made_from[subject]} if made_from[subject]["sources"] else {}
                )
                write_json(layout.prepared(), manifest)
                tell(
                    summary_of(
                        scans, subject, tables[subject], manifest["subjects"][str(subject)], before
                    )
                )
            if more_pictures:
                manifest["shared"][layout.images().name] = _write_images(scans, layout, scratch)
            if texts is not None:
                with replaced_file(layout.captions(), "w") as handle:
                    json.dump({str(image): found for image, found in sorted(texts.items())}, handle)
                file = scans.caption_file()
                stamp = {"made_from": sha256_of(file)} if file is not None else {}
                manifest["shared"][layout.captions().name] = {
                    "sha256": sha256_of(layout.captions())
                } | stamp
            write_json(layout.prepared(), manifest)
        shutil.rmtree(scratch, ignore_errors=True)
    done = [subject for subject in subjects if subject not in todo]
    again = ["pictures"] * more_pictures + ["captions"] * (texts is not None)
    if done:
        which = (
            f"Subject{'s' if len(done) > 1 else ''} {', '.join(map(str, done))}: prepared already,"
            " and nothing has changed since; "
        )
        tell(which + (f"{' and '.join(again)} were written." if again else "nothing was done."))
    if more_pictures and scans.exchanged():
        tell(
            f"CHANGED: {len(scans.exchanged())} pictures are other pictures than when they were"
            " prepared; they stand under their ids now, for all subjects of the folder."
        )
    return layout


def _refuse_unknown(scans: Scans, subject: int) -> None:
    if subject not in scans.subjects():
        there = ", ".join(map(str, scans.subjects())) or "none"
        raise UserError(
            f"There is no subject {subject} among the scans (there: {there}); name one of these"
            f" with --subj, or {scans.get_it}."
        )


def _table(scans: Scans, subject: int, num_sessions: int) -> np.ndarray:
    """The trials of a subject, with every session's files looked for, before anything is
    written.
    """
    behav_T17 = scans.trials(subject, num_sessions)
    if not len(behav_T17):
        raise UserError(f"Subject {subject} has no trials; {scans.get_it}.")
    test_T = behav_T17[:, _SHARED] == 1
    if not test_T.any():
        raise UserError(
            f"Subject {subject}: no trial shows a test picture, so nothing could be scored;"
            f" {scans.get_it}."
        )
    for session in np.unique(behav_T17[:, _SESSION]).astype(int):
        scans.session_files(subject, session)
    training = int((~test_T).sum())
    if training < 2:
        raise UserError(
            f"Subject {subject} has {training} training trials in"
            f" {len(np.unique(behav_T17[:, _SESSION]))} sessions, at least 2 are needed: take some"
            " pictures out of the test pictures (column split, or --test_images)."
        )
    return behav_T17


def _manifest(layout: Layout, settings: dict[str, Any], scans: Scans) -> dict[str, Any]:
    """The manifest of the folder, new or continued; refuses a folder prepared with other settings,
    or from other data.
    """
    settings = json.loads(json.dumps(settings))
    ours = {
        "made_by": "braingen prepare",
        "format": scans.format,
        "settings": settings,
        "data": scans.called,
        "origin": scans.origin,
    }
    path = layout.prepared()
    if not path.exists():
        if scans.grows and layout.images().exists() and not (layout.root / ".preparing").exists():
            whose = Stimuli(layout).data_name
            raise UserError(
                f"{layout.root} holds pictures of {whose} ({layout.images().name}), which were not"
                " written from these scans: picture 0 of yours would be picture 0 of theirs."
                " Choose another data folder with --data_path FOLDER."
            )
        return {**ours, "subjects": {}, "shared": {}}
    try:
        found = read_json(path)
        theirs = {"format": found["format"], **found["settings"]}
        data = found.get("data", "NSD")
        kept = {"subjects": dict(found["subjects"]), "shared": dict(found["shared"])}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path} is not a manifest of `braingen prepare`; choose another data folder with"
            " --data_path FOLDER."
        ) from error
    if data != scans.called:
        raise UserError(
            f"{layout.root} was prepared from {data}, these are {scans.called}: choose another data"
            " folder with --data_path FOLDER."
        )
    now = {"format": scans.format, **settings}
    names = [*now, *(name for name in theirs if name not in now)]
    different = [
        f"{name} {_told(theirs.get(name))} (now {_told(now.get(name))})"
        for name in names
        if theirs.get(name) != now.get(name)
    ]
    if different:
        raise UserError(
            f"{layout.root} was prepared with {', '.join(different)}: ask for the same again, or"
            " choose another data folder with --data_path FOLDER."
        )
    return {**ours, **kept}


def _told(value: Any) -> str:
    return "the default" if value is None else str(value)


def _sources(
    scans: Scans, subject: int, behav_T17: np.ndarray, manifest: dict[str, Any]
) -> dict[str, Any]:
    """What a subject is made from: its trials, and size, time and digest of every file; a digest is
    read again where size or time " "changed.
    """
    known = manifest["subjects"].get(str(subject), {}).get("made_from", {}).get("sources", {})
    found = {}
    for path in scans.sources(subject):
        name, stamp = Path(os.path.relpath(path, scans.root)).as_posix(), identity(path)
        same = known.get(name, {}).get("stamp") == stamp
        found[name] = {"stamp": stamp, "sha256": known[name]["sha256"] if same else sha256_of(path)}
    return {"trials": _digest(behav_T17), "folder": str(scans.root.absolute()), "sources": found}


def _files(layout: Layout, subject: int) -> list[Path]:
    """Files of a prepared subject besides its volumes and training tars."""
    return [
        layout.betas(subject),
        statistics_path(layout, subject),
        *(layout.wds_test(subject, which) for which in ("new_test", "test")),
    ]


def _is_done(
    layout: Layout, manifest: dict[str, Any], subject: int, made_from: dict[str, Any]
) -> bool:
    entry = manifest["subjects"].get(str(subject))
    if entry is None or not all(path.exists() for path in _files(layout, subject)):
        return False
    if not all((layout.root / name).exists() for name in entry["sha256"]):
        return False
    before = entry.get("made_from")
    if before is None:
        return True
    digests = (
        {name: file["sha256"] for name, file in each["sources"].items()}
        for each in (before, made_from)
    )
    return before["trials"] == made_from["trials"] and next(digests) == next(digests)


def _captions_wanted(scans: Scans, layout: Layout, manifest: dict[str, Any]) -> bool:
    """Whether captions are missing, or those of own scans have changed or more pictures
    need some.
    """
    if not layout.captions().exists():
        return True
    file, known = (
        scans.caption_file(),
        manifest["shared"].get(layout.captions().name, {}).get("made_from"),
    )
    if file is None or known is None:
        return False
    written = len(read_json(layout.captions()))
    return sha256_of(file) != known or written < scans.pictures.number


def _refuse_foreign_files(
    layout: Layout, manifest: dict[str, Any], subjects: Iterable[int]
) -> None:
    """What somebody else wrote is never overwritten; pictures and captions that are there are left
    as they are.
    """
    for subject in subjects:
        for path in (layout.betas(subject), layout.wds_train(subject, 0).parent):
            mine = (
                str(subject) in manifest["subjects"]
                or (layout.root / ".preparing" / subject_name(subject)).exists()
            )
            if path.exists() and not mine:
                raise UserError(
                    f"{path} is there and was not written by `braingen prepare`; choose another"
                    " data folder with --data_path FOLDER, or remove it."
                )


def _check_disk(scans: Scans, layout: Layout, tables: dict[int, np.ndarray]) -> None:
    needed = 0 if layout.images().exists() else scans.pictures.number * 3 * PICTURE_SIDE**2 * 2
    for subject, behav_T17 in tables.items():
        needed += len(behav_T17) * (4 * scans.candidates(subject)[0] + 2 * _BYTES_PER_SAMPLE)
    scratch = layout.root / ".preparing"
    there = (
        sum(file.stat().st_blocks * 512 for file in scratch.rglob("*") if file.is_file())
        if scratch.exists()
        else 0
    )
    refuse_small_disk(
        layout.root,
        needed - there,
        "The prepared data",
        "choose another --data_path, or fewer subjects or sessions",
    )


# --- pieces ---------------------------------------------------------------------------------------


class _Pieces:
    """What of a large file is finished: a mark per piece with the digest of what was written and of
    what it was made from.

    Parameters
    ----------
    folder : Path
        Of the marks.
    part : Path
        The unfinished file; where it is not there, no mark counts.
    """

    def __init__(self, folder: Path, part: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        if not part.exists():
            for mark in folder.glob("*.json"):
                mark.unlink()

    def known(self, name: str, made_from: str) -> dict[str, Any] | None:
        """The mark of a piece, or None where it is not finished or its source has changed since."""
        try:
            mark = read_json(self.folder / f"{name}.json")
        except (OSError, ValueError):
            return None
        return mark if mark.get("made_from") == made_from else None

    def finish(self, name: str, made_from: str, sha256: str) -> dict[str, Any]:
        mark = {"made_from": made_from, "sha256": sha256}
        write_json(self.folder / f"{name}.json", mark)
        return mark


def _digest(array: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).data).hexdigest()


def _made_from(files: Iterable[Path], *more: Any) -> str:
    return " ".join([*(f"{path.name} {identity(path)}" for path in files), *map(str, more)])


def _verified(array: ArrayOnDisk, parts: dict[str, tuple[slice, str]], path: Path) -> None:
    """Read back what was written before the file gets its name."""
    found = array.map()
    row_bytes = max(1, found.dtype.itemsize * int(np.prod(found.shape[1:])))
    for name, (rows, digest) in parts.items():
        read = hashlib.sha256()
        for first, last in blocks(rows.stop - rows.start, max(1, _VERIFIED_BYTES // row_bytes)):
            read.update(np.ascontiguousarray(found[rows.start + first : rows.start + last]).data)
            release(found)
        if read.hexdigest() != digest:
            raise UserError(
                f"{name} of {path} is not on the disk as it was written: remove"
                f" {path.parent / '.preparing'} and start the same command again; look at the disk"
                " if it happens twice."
            )


# --- a subject ------------------------------------------------------------------------------------


def _write_subject(
    scans: Scans,
    layout: Layout,
    subject: int,
    behav_T17: np.ndarray,
    scratch: Path,
    accept: Sequence[str],
) -> dict[str, Any]:
    folder = scratch / subject_name(subject)
    folder.mkdir(exist_ok=True)
    inside = scans.places(subject)
    looked = _look(scans, subject, behav_T17, inside, folder, accept)
    places = inside if inside is None or looked.kept_V.all() else inside.restricted(looked.kept_V)
    _write_betas(scans, layout, subject, behav_T17, inside, looked, folder)
    known = places if places is not None else ColumnPlaces(int(looked.kept_V.sum()), scans.origin)
    written = [
        *_write_volumes(scans, layout, subject, known),
        *_write_tars(layout, subject, behav_T17),
    ]
    _add_regions(layout, subject, scans.regions(subject, places, looked.kept_V))
    found = reliability(
        in_hdf5(layout.betas(subject), nsd.BETAS_DATASET).map(), behav_T17[:, _IMAGE]
    )
    if found is not None:
        written += _write_reliability(layout, subject, known, found)
    checksums = {
        path.relative_to(layout.root).as_posix(): sha256_of(path)
        for path in [*written, statistics_path(layout, subject)]
    }
    checksums[layout.betas(subject).name] = sha256_of(layout.betas(subject))
    sessions = int(behav_T17[:, _SESSION].max())
    return {
        "voxels": int(looked.kept_V.sum()),
        "trials": len(behav_T17),
        "sessions": sessions,
        "zscore": looked.rule,
        "left_out_voxels": looked.left_out,
        "reliability": _told_reliability(found),
        "notes": looked.notes,
        "sha256": dict(sorted(checksums.items())),
    }


def _write_volumes(scans: Scans, layout: Layout, subject: int, places: Places) -> list[Path]:
    """Mask, order and region volumes, these copied byte for byte; or the vertices of a surface."""
    if not isinstance(places, VoxelPlaces):
        return save_other_places(layout, subject, places)
    folder = layout.volumes(subject)
    copies = dict(scans.volumes(subject))
    general = copies.get(NSDGENERAL.removesuffix(".nii.gz"))
    is_general = general is None or np.array_equal(
        np.asanyarray(load_nifti(general).dataobj) > 0, places.mask
    )
    for name, path in copies.items():
        with replaced_path(folder / f"{name}.nii.gz") as temporary:
            shutil.copyfile(path, temporary)
    name = NSDGENERAL if is_general else "mask.nii.gz"
    save_places(layout, subject, places, name)
    return [
        folder / "order.json",
        folder / name,
        *(folder / f"{name}.nii.gz" for name in copies if f"{name}.nii.gz" != NSDGENERAL),
    ]


def _write_tars(layout: Layout, subject: int, behav_T17: np.ndarray) -> list[Path]:
    trial_T, session_T, test_T = (
        np.arange(len(behav_T17)),
        behav_T17[:, _SESSION],
        behav_T17[:, _SHARED] == 1,
    )
    sessions = int(session_T.max())
    chosen = {
        layout.wds_train(subject, k): trial_T[(session_T == k + 1) & ~test_T]
        for k in range(sessions)
    }
    old = sessions - HELD_BACK if sessions > HELD_BACK else sessions
    chosen[layout.wds_test(subject, "new_test")] = trial_T[test_T]
    chosen[layout.wds_test(subject, "test")] = trial_T[test_T & (session_T <= old)]
    for path, trials in track(
        list(chosen.items()), description=f"subject {subject}: trials", disable=len(chosen) < 8
    ):
        write_tar(path, behav_T17, trials)
    return list(chosen)


class _Looked(NamedTuple):
    """What a first pass over a subject's responses has found. V voxels inside the mask, S
    sessions.
    """

    kept_V: np.ndarray
    """Those with a signal in all sessions, bool."""
    left_out: dict[str, int]
    """Why -> how many voxels are left out."""
    rule: str
    """Over which trials responses are z-scored: session, subject or none."""
    mean_SV: np.ndarray
    """Of the kept voxels."""
    sd_SV: np.ndarray
    notes: list[str]


def _look(
    scans: Scans,
    subject: int,
    behav_T17: np.ndarray,
    places: Places | None,
    folder: Path,
    accept: Sequence[str],
) -> _Looked:
    """First pass: which voxels have a signal, mean and spread of training trials, and whether these
    are responses at all.
    """
    session_T, test_T = behav_T17[:, _SESSION].astype(int), behav_T17[:, _SHARED] == 1
    moments: list[Moments] = []
    where = []
    numbers = range(1, int(session_T.max()) + 1)
    for session in track(
        numbers,
        description=f"subject {subject}: looking at the responses",
        disable=len(numbers) < 4,
    ):
        rows = np.flatnonzero(session_T == session)
        where.append(
            f"Subject {subject}, session {session}"
            f" ({', '.join(map(str, scans.session_files(subject, session)[:3]))})"
        )
        found: Moments | None = None
        first, empty = 0, []
        for block_TV in scans.responses(subject, session, len(rows), places):
            if found is None:
                found = Moments(block_TV.shape[1])
                if moments and len(moments[0].mean_V) != block_TV.shape[1]:
                    raise UserError(
                        f"{where[-1]} has {block_TV.shape[1]} voxels, the mask or the first session"
                        f" has {len(moments[0].mean_V)}; {scans.get_it}."
                    )
            lost_T = ~np.isfinite(block_TV).any(axis=1) | (block_TV == 0).all(axis=1)
            empty += (first + np.flatnonzero(lost_T)).tolist()
            found.add(block_TV[~lost_T], test_T[rows[first : first + len(block_TV)]][~lost_T])
            first += len(block_TV)
        assert found is not None and first == len(rows)
        if found.trials == 0:
            raise UserError(
                f"{where[-1]}: {len(rows)} trials have the same value in all trials, or NaN;"
                f" responses were expected; {scans.get_it}."
            )
        if empty:
            runs, trials = (
                behav_T17[rows[empty], _RUN].astype(int),
                behav_T17[rows[empty], _TRIAL].astype(int),
            )
            shown = ", ".join(f"trial {t} of run {r}" for r, t in zip(runs[:5], trials[:5])) + (
                ", ..." if len(empty) > 5 else ""
            )
            raise UserError(
                f"{where[-1]}: {shown} ({len(empty)} of {len(rows)} trials)"
                f" {'is' if len(empty) == 1 else 'are'} NaN or 0 in all voxels: the trial is lost,"
                " not the voxels. Leave it out with a column `bad` of the events (1 for such"
                f" trials; the responses stay as they are), or {scans.get_it}."
            )
        moments.append(found)
    whole = functools.reduce(Moments.merged, moments)
    kept_V, left_out = _with_signal(scans, moments, where)
    notes = _refuse_no_responses(scans, subject, whole, kept_V, behav_T17, accept)
    rule, told = _rule(scans.statistics, moments)
    statistics = [each.statistics() for each in moments]
    if rule == "subject":
        statistics = [whole.statistics()] * len(moments)
    elif rule == "none":
        statistics = [(np.zeros(len(kept_V)), np.ones(len(kept_V)))] * len(moments)
    mean_SV, sd_SV = (np.stack([each[k][kept_V] for each in statistics]) for k in (0, 1))
    return _Looked(kept_V, left_out, rule, mean_SV, sd_SV, [*notes, *told])


def _with_signal(
    scans: Scans, moments: Sequence[Moments], where: Sequence[str]
) -> tuple[np.ndarray, dict[str, int]]:
    """Voxels that have a signal in all sessions, and why others have none."""
    missing_V = np.any([each.missing_V > 0 for each in moments], axis=0)
    constant_V = (
        np.any(
            [each.constant_V for each in moments if each.trials > 2]
            or [np.zeros(len(missing_V), bool)],
            axis=0,
        )
        & ~missing_V
    )
    for each, place in zip(moments, where):
        bad, constant, voxels = (
            int((each.missing_V > 0).sum()),
            int(each.constant_V.sum()),
            len(missing_V),
        )
        if bad and not scans.drops_voxels:
            raise UserError(
                f"{place}: {bad} of {voxels} voxels are NaN or infinite in some trial, numbers were"
                f" expected; mask them out, or {scans.get_it}."
            )
        if each.trials > 2 and (
            constant == voxels or (constant > 0.5 * voxels and not scans.drops_voxels)
        ):
            raise UserError(
                f"{place}: {constant} of {voxels} voxels have the same value in all trials,"
                f" responses were expected; mask them out, or {scans.get_it}."
            )
    if not scans.drops_voxels:
        return np.ones(len(missing_V), dtype=bool), {}
    kept_V = ~(missing_V | constant_V)
    if not kept_V.any():
        raise UserError(
            f"{where[0]}: no voxel has a signal in all sessions ({int(missing_V.sum())} are NaN in"
            f" some trial, {int(constant_V.sum())} have the same value in all trials of a session);"
            f" {scans.get_it}."
        )
    found = {
        "NaN or infinite in some trial": int(missing_V.sum()),
        "constant in a session": int(constant_V.sum()),
    }
    return kept_V, {reason: count for reason, count in found.items() if count}


def _rule(asked: str, moments: Sequence[Moments]) -> tuple[str, list[str]]:
    """Over which trials responses are z-scored, and why."""
    counts = [each.training for each in moments]
    low, total = min(counts), sum(counts)
    if asked == "session" and low < 2:
        raise UserError(
            f"Session {counts.index(low) + 1} has {low} training trials, at least 2 are needed to"
            " z-score it by itself; take prepare.zscore=subject, which takes those of all"
            " sessions."
        )
    if asked != "auto":
        few = asked == "session" and low < ENOUGH_TRIALS
        return asked, (
            [
                f"a session has {low} training trials only: its mean and spread are uncertain"
                " (prepare.zscore=subject)"
            ]
            if few
            else []
        )
    if low >= ENOUGH_TRIALS:
        return "session", []
    if total >= FEWEST_TRIALS:
        why = (
            f"a session has {low} training trials, fewer than {ENOUGH_TRIALS}"
            if len(counts) > 1
            else f"there are {low} training trials"
        )
        return "subject", [
            f"z-scored over all sessions of the subject: {why} (prepare.zscore=session, subject or"
            " none)"
        ]
    return "none", [
        f"NOT z-scored: {total} training trials are too few for a mean and a spread"
        " (prepare.zscore=subject does it nevertheless)"
    ]


def _refuse_no_responses(
    scans: Scans,
    subject: int,
    whole: Moments,
    kept_V: np.ndarray,
    behav_T17: np.ndarray,
    accept: Sequence[str],
) -> list[str]:
    """Refuse a time series and columns of labels; tell of responses whose mean is far above their
    spread.
    """
    mean_V, sd_V = whole.statistics()
    ratio = float(np.median(np.abs(mean_V[kept_V]) / sd_V[kept_V]))
    signs = list(scans.signs(subject))
    files = scans.session_files(subject, 1)
    if ratio > FAR_ABOVE:
        signs.append(f"the mean of a typical voxel is {ratio:.0f} times its spread")
    if len(signs) >= 2 and "time_series" not in accept:
        raise UserError(
            f"{files[0]} looks like a time series, not like one response per trial:"
            f" {'; '.join(signs)}. Estimate single-trial responses first (GLMsingle, or nilearn's"
            " LSS); if these are responses, say so with prepare.accept=time_series."
        )
    whole_V = whole.whole_V & kept_V & ~whole.constant_V
    labels_V = whole_V | (whole.whole_V & whole.constant_V & (whole.low_V != 0))
    count, varied = int(labels_V.sum()), int(whole_V.sum())
    if (
        scans.is_array(subject)
        and 0 < count < 0.5 * len(kept_V)
        and (varied or count < 0.1 * len(kept_V))
        and "labels" not in accept
    ):
        columns = np.flatnonzero(labels_V)
        shown = ", ".join(map(str, columns[:6])) + (", ..." if count > 6 else "")
        raise UserError(
            f"{files[0]}: {count} of {len(kept_V)} columns hold whole numbers, the others do not"
            f" (columns {shown}, from 0){_equal_to(scans, subject, columns, behav_T17)}: these are"
            " labels, not voxels. Cut them off; if they are voxels, say so with"
            " prepare.accept=labels."
        )
    return (
        [f"the responses may be averages or a time series: {sign}" for sign in signs]
        if signs
        else []
    )


def _equal_to(scans: Scans, subject: int, columns: np.ndarray, behav_T17: np.ndarray) -> str:
    """Which column is the number of the picture, the trial, the run or the session, as part of a
    sentence.
    """
    first = np.concatenate(
        list(
            scans.responses(
                subject, 1, int((behav_T17[:, _SESSION] == 1).sum()), scans.places(subject)
            )
        )
    )[:, columns]
    behav = behav_T17[behav_T17[:, _SESSION] == 1]
    told = []
    for name, values in (
        ("picture", behav[:, _IMAGE]),
        ("trial", behav[:, _TRIAL]),
        ("run", behav[:, _RUN]),
        ("session", behav[:, _SESSION]),
    ):
        for column, found in zip(columns, first.T):
            pairs = set(zip(values.tolist(), found.tolist()))
            if (
                len(pairs) == len({v for v, _ in pairs}) == len({f for _, f in pairs})
                and len(pairs) > 1
            ):
                told.append(f"column {column} follows the {name} number")
    return f"; {', '.join(dict.fromkeys(told))}" if told else ""


def _write_betas(
    scans: Scans,
    layout: Layout,
    subject: int,
    behav_T17: np.ndarray,
    places: Places | None,
    looked: _Looked,
    folder: Path,
) -> None:
    """Second pass: fill the betas file, a session at a time and a block of trials in memory."""
    session_T = behav_T17[:, _SESSION].astype(int)
    sessions = range(1, int(session_T.max()) + 1)
    voxels = int(looked.kept_V.sum())
    part = folder / "betas.hdf5"
    if part.exists() and in_hdf5(part, nsd.BETAS_DATASET).shape != (len(behav_T17), voxels):
        part.unlink()  # of other voxels or trials than now
    marks, parts = _Pieces(folder, part), {}
    betas = reserve_hdf5(part, nsd.BETAS_DATASET, (len(behav_T17), voxels), "float32", {})
    key = hashlib.sha256(b"" if places is None else key_of(places)).hexdigest()[:16]
    everything = looked.kept_V.all()
    out = betas.map(writable=True)
    for session in track(
        sessions, description=f"subject {subject}: sessions", disable=len(sessions) < 4
    ):
        rows = slice(*np.searchsorted(session_T, [session, session + 1]))
        name = f"session{session:02d}"
        mean_V, sd_V = looked.mean_SV[session - 1], looked.sd_SV[session - 1]
        made_from = _made_from(
            scans.session_files(subject, session),
            key,
            _digest(behav_T17[rows]),
            _digest(np.stack([mean_V, sd_V])),
        )
        mark = marks.known(name, made_from)
        if mark is None:
            digest, first = hashlib.sha256(), rows.start
            for block_TV in scans.responses(subject, session, rows.stop - rows.start, places):
                z_TV = zscored(block_TV if everything else block_TV[:, looked.kept_V], mean_V, sd_V)
                out[first : first + len(z_TV)] = z_TV
                digest.update(np.ascontiguousarray(z_TV).data)
                first += len(z_TV)
                release(out)
            out.flush()
            mark = marks.finish(name, made_from, digest.hexdigest())
        parts[name] = (rows, mark["sha256"])
    del out
    _verified(betas, parts, layout.betas(subject))
    with replaced_file(statistics_path(layout, subject)) as handle:
        np.savez(
            handle,
            mean_SV=looked.mean_SV,
            sd_SV=looked.sd_SV,
            session_T=(session_T - 1).astype(np.int16),
        )
    publish(betas.path, layout.betas(subject))


def _write_reliability(
    layout: Layout, subject: int, places: Places, found: Reliability
) -> list[Path]:
    """Split-half reliability and noise ceiling per voxel, as a table and, where voxels have places,
    as maps.
    """
    folder = layout.volumes(subject)
    table = folder / "reliability.tsv"
    with replaced_file(table, "w") as handle:
        handle.write("voxel\tsplit_half\tnoise_ceiling_percent\n")
        for voxel, (half, oracle) in enumerate(
            zip(found.split_half_V.tolist(), found.noise_ceiling_V.tolist())
        ):
            handle.write(f"{voxel}\t{half:.4f}\t{oracle:.2f}\n")
    written = [table]
    for name, values in (
        ("split_half", found.split_half_V),
        ("noise_ceiling", found.noise_ceiling_V),
    ):
        places.write(folder / f"{name}.nii.gz", values)
        written += files_of(places, folder / f"{name}.nii.gz")
    return written


def _told_reliability(found: Reliability | None) -> dict[str, Any] | None:
    if found is None:
        return None
    return {
        "pictures": found.pictures,
        "repeats": round(found.repeats, 2),
        "split_half_median": round(float(np.median(found.split_half_V)), 3),
        "share_above_chance": round(float((found.split_half_V > found.chance).mean()), 3),
        "noise_ceiling_median_percent": round(float(np.median(found.noise_ceiling_V)), 1),
        "same_picture": None if np.isnan(found.same) else round(found.same, 3),
        "other_picture": None if np.isnan(found.other) else round(found.other, 3),
        "same_picture_error": None if np.isnan(found.same_error) else round(found.same_error, 4),
    }


def _add_regions(layout: Layout, subject: int, regions: dict[str, np.ndarray]) -> None:
    """Put a subject's group into the region masks, those of the others kept."""
    groups: dict[int, dict[str, np.ndarray]] = {}
    if layout.masks().exists():
        with h5py.File(layout.masks(), "r") as file:
            others = [
                int(group.removeprefix("subj"))
                for group in file
                if group.removeprefix("subj").isdecimal()
            ]
        groups = {other: read_regions(layout, other) for other in others}
    groups[subject] = regions
    write_regions(
        layout, {number: dict(sorted(groups[number].items())) for number in sorted(groups)}
    )


# --- pictures -------------------------------------------------------------------------------------


def _write_images(scans: Scans, layout: Layout, scratch: Path) -> dict[str, str]:
    """Write the pictures, or those that came to the ones that are there."""
    count, sources = scans.pictures
    folder = scratch / "images"
    part = folder / "images.hdf5"
    if part.exists() and in_hdf5(part, nsd.IMAGES_DATASET).shape[0] != count:
        part.unlink()
    marks, parts = _Pieces(folder, part), {}
    images = reserve_hdf5(
        part, nsd.IMAGES_DATASET, (count, 3, PICTURE_SIDE, PICTURE_SIDE), "float16", {}
    )
    out = images.map(writable=True)
    before = Stimuli(layout).rows if layout.images().exists() else None
    there = 0 if before is None else len(before)
    made_from = _made_from(sources[:1] if len(sources) == 1 else (), len(sources), count)
    for first, last in track(
        blocks(count, _PICTURES_AT_ONCE),
        description="pictures",
        disable=count < 4 * _PICTURES_AT_ONCE,
    ):
        name = f"images{first:06d}"
        mine = (
            made_from
            if len(sources) == 1
            else _made_from(dict.fromkeys(sources[first:last]), first, last)
        )
        mark = marks.known(name, mine)
        if mark is None:
            made = np.empty((last - first, 3, PICTURE_SIDE, PICTURE_SIDE), np.float16)
            new = max(first, min(there, last))
            if before is not None and new > first:
                made[: new - first] = before.take(np.arange(first, new))
            again = [image for image in sorted(scans.exchanged()) if first <= image < new]
            for one, until in [
                *((image, image + 1) for image in again),
                *([(new, last)] if new < last else []),
            ]:
                made[one - first : until - first] = (
                    scans.images(one, until, PICTURE_SIDE).astype(np.float32) / 255
                )
            out[first:last] = made
            out.flush()
            mark = marks.finish(name, mine, _digest(made))
        parts[name] = (slice(first, last), mark["sha256"])
    _verified(images, parts, layout.images())
    publish(images.path, layout.images())
    return {
        "sha256_of_parts": (
            hashlib.sha256("".join(digest for _, digest in parts.values()).encode()).hexdigest()
        )
    }


# --- the summary ----------------------------------------------------------------------------------


def summary_of(
    scans: Scans,
    subject: int,
    behav_T17: np.ndarray,
    entry: dict[str, Any],
    before: dict[str, Any] | None,
) -> str:
    """What was prepared of a subject, as a table of two columns, and what has to be known
    about it.
    """
    who = scans.who(subject)
    test_T = behav_T17[:, _SHARED] == 1
    image_T = behav_T17[:, _IMAGE]
    inside, whole = scans.candidates(subject)
    labels = who.get("sessions") or {}
    sessions = f"{entry['sessions']}" + (
        f" ({', '.join(f'{n}: {label}' for n, label in labels.items() if label)})"
        if any(labels.values())
        else ""
    )
    training, testing = (
        np.unique(image_T[which], return_counts=True)[1] for which in (~test_T, test_T)
    )
    rows = {
        "subject": (
            f"{subject}, label {who['label']}" + (f", from {who['form']}" if "form" in who else "")
        ),
        "sessions": sessions,
        "runs, trials": (
            f"{who.get('runs') or len(np.unique(behav_T17[:, [_SESSION, _RUN]], axis=0))},"
            f" {len(behav_T17)}" + (f" ({who['left_out']} left out)" if who.get("left_out") else "")
        ),
        "training": (
            f"{int((~test_T).sum())} trials of {len(training)} pictures{_repeats(training)}"
        ),
        "test": (
            f"{int(test_T.sum())} trials of {len(testing)} pictures{_repeats(testing)}; by"
            f" {who['test pictures']}"
        ),
        "voxels": (
            f"{entry['voxels']} kept of {inside} in the mask ({whole} in all)"
            + "".join(f"; {count} {reason}" for reason, count in entry["left_out_voxels"].items())
        ),
        "z-scored over": entry["zscore"],
        "captions": who.get("captions", ""),
    }
    found = entry["reliability"]
    if found is None:
        rows["reliability"] = (
            "not known: nothing repeats, or fewer than four pictures do (no noise ceiling, no"
            " averaging over repeats)"
        )
    else:
        rows["reliability"] = (
            f"split-half {found['split_half_median']:.2f} (median),"
            f" {found['share_above_chance']:.0%} of voxels above chance (5 %), noise ceiling"
            f" {found['noise_ceiling_median_percent']:.0f} % (median), over {found['pictures']}"
            " repeated pictures"
        )
        if found["same_picture"] is not None:
            rows["likeness"] = (
                f"responses to the same picture correlate by {found['same_picture']:.2f}, to others"
                f" by {found['other_picture']:.2f}"
            )
    notes = [*entry["notes"], *scans.notes(subject)]
    if (testing < 2).all():
        notes.append(
            "no test picture was shown twice: test responses cannot be averaged, and their noise"
            " oracle is not known"
        )
    alike = found is not None and found["same_picture"] is not None
    if alike and found["same_picture"] - found["other_picture"] < 3 * found["same_picture_error"]:
        notes.append(
            "responses to the same picture are no more alike than to others: noise, or trials in"
            " another order than the responses"
        )
    if before is not None and before["voxels"] != entry["voxels"]:
        notes.append(
            f"{before['voxels']} voxels before, {entry['voxels']} now: encoders trained before do"
            " not fit any more"
        )
    width = max(map(len, rows))
    lines = [f"  {name:<{width}}  {value}" for name, value in rows.items() if value]
    return "\n".join([*lines, *(f"  note: {note}" for note in dict.fromkeys(notes))]) + "\n"


def _repeats(counts: np.ndarray) -> str:
    if not len(counts) or counts.max() < 2:
        return ", each once"
    return (
        f", {counts.min()} to {counts.max()} times each"
        if counts.min() < counts.max()
        else f", {counts.max()} times each"
    )
