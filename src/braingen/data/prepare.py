"""From scans to the working layout: masked, z-scored by session, cut into training and test trials.

Responses are z-scored per voxel and session with the mean and standard deviation of that session's *training* trials; test trials are
normalised with the same two numbers, which are kept (`zscore.py`). Nothing large is held in memory: a session at a time goes into a
reserved file. Killed at any moment, the same call continues after the last finished piece.

T trials, V voxels, S sessions.
"""

from __future__ import annotations

from collections.abc import Iterable
import hashlib
import json
from pathlib import Path
import shutil
from typing import Any

import h5py
import numpy as np

from braingen.console import track
from braingen.data import nsd
from braingen.data.large_files import ArrayOnDisk, blocks, publish, reserve_hdf5
from braingen.data.nsd import Layout
from braingen.data.scans import Scans
from braingen.data.tars import write_tar
from braingen.data.volumes import NSDGENERAL, VoxelPlaces, load_nifti, read_regions, save_places, write_regions
from braingen.data.zscore import statistics_path, zscore_session
from braingen.errors import UserError
from braingen.files import disk_errors_as_sentences, identity, refuse_small_disk, replaced_file, replaced_path, sha256_of, write_json
from braingen.locks import only_writer
from braingen.text_files import read_json

FORMAT = 1
"""Raised when the same scans and settings come to mean other data."""
PICTURE_SIDE = 224
HELD_BACK = 3
"""Sessions at the end that `test/0.tar` leaves out: NSD held back its last three when that test set was made."""
_PICTURES_AT_ONCE = 100
_BYTES_PER_SAMPLE = 9216  # of a tar
_SESSION, _IMAGE, _SHARED = (nsd.BEHAV_COLUMNS.index(name) for name in ("session", "image", "is_shared1000"))


# --- the folder ----------------------------------------------------------------------------------------------------------------------


def prepare(
    scans: Scans, root: Path, subjects: Iterable[int], settings: dict[str, Any], num_sessions: int = 0, captions: bool = True
) -> Layout:
    """Write the working layout of some subjects, or what is missing of it.

    Parameters
    ----------
    scans : where it all comes from
    root : the data folder; further subjects may be added to one that is there
    subjects : numbers
    settings : what determines the result besides the scans; a folder made with others is refused
    num_sessions : the first so many (0: all)
    captions : whether captions are written

    Raises
    ------
    UserError
        When something is missing or wrong in the scans, the folder holds other data, the disk is too small, or another process writes
        there.
    """
    layout = Layout.of(root)
    subjects = list(subjects)
    tables = {subject: _table(scans, subject, num_sessions) for subject in subjects}
    manifest = _manifest(layout, {**settings, "num_sessions": num_sessions}, scans)
    todo = [subject for subject in subjects if not _is_done(layout, manifest, subject)]
    texts = scans.captions() if captions and not layout.captions().exists() else None
    _refuse_foreign_files(layout, manifest, todo)
    _check_disk(scans, layout, {subject: tables[subject] for subject in todo})
    scratch = layout.root / ".preparing"
    with disk_errors_as_sentences(layout.root):
        scratch.mkdir(parents=True, exist_ok=True)
        with only_writer(scratch):
            write_json(layout.prepared(), manifest)
            for subject in todo:
                manifest["subjects"][str(subject)] = _write_subject(scans, layout, subject, tables[subject], scratch)
                write_json(layout.prepared(), manifest)
            if not layout.images().exists():
                manifest["shared"][layout.images().name] = _write_images(scans, layout, scratch)
            if texts is not None:
                with replaced_file(layout.captions(), "w") as handle:
                    json.dump({str(image): found for image, found in sorted(texts.items())}, handle)
                manifest["shared"][layout.captions().name] = {"sha256": sha256_of(layout.captions())}
            write_json(layout.prepared(), manifest)
        shutil.rmtree(scratch, ignore_errors=True)
    return layout


def _table(scans: Scans, subject: int, num_sessions: int) -> np.ndarray:
    """The trials of a subject, with every session's files looked for, before anything is written."""
    if subject not in scans.subjects():
        there = ", ".join(map(str, scans.subjects())) or "none"
        raise UserError(
            f"There is no subject {subject} among the scans (there: {there}); name one of these with --subj, or {scans.get_it}."
        )
    behav_T17 = scans.trials(subject, num_sessions)
    if not len(behav_T17):
        raise UserError(f"Subject {subject} has no trials; {scans.get_it}.")
    test_T = behav_T17[:, _SHARED] == 1
    if not test_T.any():
        raise UserError(f"Subject {subject}: no trial shows a test picture, so nothing could be scored; {scans.get_it}.")
    for session in np.unique(behav_T17[:, _SESSION]).astype(int):
        scans.session_files(subject, session)
        training = int((~test_T & (behav_T17[:, _SESSION] == session)).sum())
        if training < 2:
            raise UserError(
                f"Subject {subject}: session {session} has {training} training trials, at least 2 are needed to z-score it; leave test "
                "pictures out of it or the session out."
            )
    return behav_T17


def _manifest(layout: Layout, settings: dict[str, Any], scans: Scans) -> dict[str, Any]:
    """The manifest of the folder, new or continued; refuses a folder prepared with other settings."""
    settings = json.loads(json.dumps(settings))
    ours = {"made_by": "braingen prepare", "format": FORMAT, "settings": settings, "data": scans.called, "origin": scans.origin}
    path = layout.prepared()
    if not path.exists():
        return {**ours, "subjects": {}, "shared": {}}
    try:
        found = read_json(path)
        theirs = {"format": found["format"], **found["settings"]}
        kept = {"subjects": dict(found["subjects"]), "shared": dict(found["shared"])}
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is not a manifest of `braingen prepare`; choose another data folder with --data_path FOLDER.") from error
    now = {"format": FORMAT, **settings}
    different = [f"{name} {theirs.get(name)} (now {value})" for name, value in now.items() if theirs.get(name) != value]
    if different:
        raise UserError(
            f"{layout.root} was prepared with {', '.join(different)}: ask for the same again, or choose another data folder with "
            "--data_path FOLDER."
        )
    return {**ours, **kept}


def _files(layout: Layout, subject: int) -> list[Path]:
    """Files of a prepared subject besides its volumes and training tars."""
    return [layout.betas(subject), statistics_path(layout, subject), *(layout.wds_test(subject, which) for which in ("new_test", "test"))]


def _is_done(layout: Layout, manifest: dict[str, Any], subject: int) -> bool:
    entry = manifest["subjects"].get(str(subject))
    if entry is None or not all(path.exists() for path in _files(layout, subject)):
        return False
    return all((layout.root / name).exists() for name in entry["sha256"])


def _refuse_foreign_files(layout: Layout, manifest: dict[str, Any], subjects: Iterable[int]) -> None:
    """What somebody else wrote is never overwritten; pictures and captions that are there are left as they are."""
    for subject in subjects:
        for path in (layout.betas(subject), layout.wds_train(subject, 0).parent):
            mine = str(subject) in manifest["subjects"] or (layout.root / ".preparing" / nsd.subject_name(subject)).exists()
            if path.exists() and not mine:
                raise UserError(
                    f"{path} is there and was not written by `braingen prepare`; choose another data folder with --data_path FOLDER, or "
                    "remove it."
                )


def _check_disk(scans: Scans, layout: Layout, tables: dict[int, np.ndarray]) -> None:
    needed = 0 if layout.images().exists() else scans.pictures.number * 3 * PICTURE_SIDE**2 * 2
    for subject, behav_T17 in tables.items():
        places = scans.places(subject)
        voxels = places.voxels if places is not None else 0
        needed += len(behav_T17) * (4 * voxels + 2 * _BYTES_PER_SAMPLE)
    scratch = layout.root / ".preparing"
    there = sum(file.stat().st_blocks * 512 for file in scratch.rglob("*") if file.is_file()) if scratch.exists() else 0
    refuse_small_disk(layout.root, needed - there, "The prepared data", "choose another --data_path, or fewer subjects or sessions")


# --- pieces --------------------------------------------------------------------------------------------------------------------------


class _Pieces:
    """What of a large file is finished: a mark per piece with the digest of what was written and of what it was made from.

    Parameters
    ----------
    folder : of the marks
    part : the unfinished file; where it is not there, no mark counts
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

    def finish(self, name: str, made_from: str, written: np.ndarray) -> dict[str, Any]:
        mark = {"made_from": made_from, "sha256": _digest(written)}
        write_json(self.folder / f"{name}.json", mark)
        return mark


def _digest(array: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).data).hexdigest()


def _made_from(files: Iterable[Path], *more: Any) -> str:
    return " ".join([*(f"{path.name} {identity(path)}" for path in files), *map(str, more)])


def _verified(array: ArrayOnDisk, parts: dict[str, tuple[slice, str]], path: Path) -> None:
    """Read back what was written before the file gets its name."""
    found = array.map()
    for name, (rows, digest) in parts.items():
        if _digest(found[rows]) != digest:
            raise UserError(
                f"{name} of {path} is not on the disk as it was written: remove {path.parent / '.preparing'} and start the same command "
                "again; look at the disk if it happens twice."
            )


# --- a subject -----------------------------------------------------------------------------------------------------------------------


def _write_subject(scans: Scans, layout: Layout, subject: int, behav_T17: np.ndarray, scratch: Path) -> dict[str, Any]:
    folder = scratch / nsd.subject_name(subject)
    folder.mkdir(exist_ok=True)
    places = scans.places(subject)
    voxels = _write_betas(scans, layout, subject, behav_T17, places, folder)
    written = [*_write_volumes(scans, layout, subject, places), *_write_tars(layout, subject, behav_T17)]
    _add_regions(layout, subject, scans.regions(subject, places, voxels))
    checksums = {path.relative_to(layout.root).as_posix(): sha256_of(path) for path in [*written, statistics_path(layout, subject)]}
    checksums[layout.betas(subject).name] = sha256_of(layout.betas(subject))
    sessions = int(behav_T17[:, _SESSION].max())
    return {"voxels": voxels, "trials": len(behav_T17), "sessions": sessions, "sha256": dict(sorted(checksums.items()))}


def _write_volumes(scans: Scans, layout: Layout, subject: int, places: VoxelPlaces | None) -> list[Path]:
    """Mask, order and region volumes, these copied byte for byte."""
    if places is None:
        return []
    folder = layout.volumes(subject)
    copies = dict(scans.volumes(subject))
    general = copies.get(NSDGENERAL.removesuffix(".nii.gz"))
    is_general = general is None or np.array_equal(np.asanyarray(load_nifti(general).dataobj) > 0, places.mask)
    for name, path in copies.items():
        with replaced_path(folder / f"{name}.nii.gz") as temporary:
            shutil.copyfile(path, temporary)
    name = NSDGENERAL if is_general else "mask.nii.gz"
    save_places(layout, subject, places, name)
    return [folder / "order.json", folder / name, *(folder / f"{name}.nii.gz" for name in copies if f"{name}.nii.gz" != NSDGENERAL)]


def _write_tars(layout: Layout, subject: int, behav_T17: np.ndarray) -> list[Path]:
    trial_T, session_T, test_T = np.arange(len(behav_T17)), behav_T17[:, _SESSION], behav_T17[:, _SHARED] == 1
    sessions = int(session_T.max())
    chosen = {layout.wds_train(subject, k): trial_T[(session_T == k + 1) & ~test_T] for k in range(sessions)}
    old = sessions - HELD_BACK if sessions > HELD_BACK else sessions
    chosen[layout.wds_test(subject, "new_test")] = trial_T[test_T]
    chosen[layout.wds_test(subject, "test")] = trial_T[test_T & (session_T <= old)]
    for path, trials in track(list(chosen.items()), description=f"subject {subject}: trials", disable=len(chosen) < 8):
        write_tar(path, behav_T17, trials)
    return list(chosen)


def _write_betas(scans: Scans, layout: Layout, subject: int, behav_T17: np.ndarray, places: VoxelPlaces | None, folder: Path) -> int:
    """Fill the betas file session by session; returns the number of voxels."""
    session_T, test_T = behav_T17[:, _SESSION].astype(int), behav_T17[:, _SHARED] == 1
    sessions = range(1, int(session_T.max()) + 1)
    part = folder / "betas.hdf5"
    marks, means, deviations, parts = _Pieces(folder, part), [], [], {}
    betas: ArrayOnDisk | None = None
    voxels = 0 if places is None else places.voxels
    key = hashlib.sha256(b"" if places is None else places.indices_V3.tobytes()).hexdigest()[:16]
    for session in track(sessions, description=f"subject {subject}: sessions", disable=len(sessions) < 4):
        rows = slice(*np.searchsorted(session_T, [session, session + 1]))
        name = f"session{session:02d}"
        made_from = _made_from(scans.session_files(subject, session), key, _digest(behav_T17[rows]))
        mark, kept = marks.known(name, made_from), folder / f"{name}.npz"
        if mark is None or not kept.exists():
            read = list(scans.responses(subject, session, rows.stop - rows.start, places))
            response_TV = np.concatenate(read)
            where = f"Subject {subject}, session {session} ({', '.join(map(str, scans.session_files(subject, session)))})"
            _check_responses(where, response_TV, voxels, scans.get_it)
            z_TV, mean_V, sd_V = zscore_session(response_TV, test_T[rows])
            voxels = voxels or z_TV.shape[1]
            betas = betas or reserve_hdf5(part, nsd.BETAS_DATASET, (len(behav_T17), voxels), "float32", {})
            out = betas.map(writable=True)
            out[rows] = z_TV
            out.flush()
            with replaced_file(kept) as handle:
                np.savez(handle, mean=mean_V, sd=sd_V)
            mark = marks.finish(name, made_from, z_TV)
        with np.load(kept) as stored:
            means.append(stored["mean"])
            deviations.append(stored["sd"])
        voxels = voxels or len(means[-1])
        parts[name] = (rows, mark["sha256"])
    betas = betas or reserve_hdf5(part, nsd.BETAS_DATASET, (len(behav_T17), voxels), "float32", {})
    _verified(betas, parts, layout.betas(subject))
    with replaced_file(statistics_path(layout, subject)) as handle:
        np.savez(handle, mean_SV=np.stack(means), sd_SV=np.stack(deviations), session_T=(session_T - 1).astype(np.int16))
    publish(betas.path, layout.betas(subject))
    return voxels


def _check_responses(where: str, response_TV: np.ndarray, voxels: int, get_it: str) -> None:
    if voxels and response_TV.shape[1] != voxels:
        raise UserError(f"{where} has {response_TV.shape[1]} voxels, the mask or the first session has {voxels}; {get_it}.")
    bad_V = ~np.isfinite(response_TV).all(axis=0)
    if bad_V.any():
        raise UserError(
            f"{where}: {int(bad_V.sum())} of {response_TV.shape[1]} voxels are NaN or infinite in some trial, numbers were expected; mask "
            f"them out, or {get_it}."
        )
    constant = int((response_TV.min(axis=0) == response_TV.max(axis=0)).sum())
    if constant > 0.5 * response_TV.shape[1]:
        raise UserError(
            f"{where}: {constant} of {response_TV.shape[1]} voxels have the same value in all trials, responses were expected; mask them "
            f"out, or {get_it}."
        )


def _add_regions(layout: Layout, subject: int, regions: dict[str, np.ndarray]) -> None:
    """Put a subject's group into the region masks, those of the others kept."""
    groups: dict[int, dict[str, np.ndarray]] = {}
    if layout.masks().exists():
        with h5py.File(layout.masks(), "r") as file:
            others = [int(group.removeprefix("subj")) for group in file if group.removeprefix("subj").isdecimal()]
        groups = {other: read_regions(layout, other) for other in others}
    groups[subject] = regions
    write_regions(layout, {number: dict(sorted(groups[number].items())) for number in sorted(groups)})


# --- pictures ------------------------------------------------------------------------------------------------------------------------


def _write_images(scans: Scans, layout: Layout, scratch: Path) -> dict[str, str]:
    count, sources = scans.pictures
    folder = scratch / "images"
    part = folder / "images.hdf5"
    marks, parts = _Pieces(folder, part), {}
    images = reserve_hdf5(part, nsd.IMAGES_DATASET, (count, 3, PICTURE_SIDE, PICTURE_SIDE), "float16", {})
    out = images.map(writable=True)
    made_from = _made_from(sources[:1] if len(sources) == 1 else (), len(sources), count)
    for first, last in track(blocks(count, _PICTURES_AT_ONCE), description="pictures", disable=count < 4 * _PICTURES_AT_ONCE):
        name = f"images{first:06d}"
        mine = made_from if len(sources) == 1 else _made_from(sources[first:last])
        mark = marks.known(name, mine)
        if mark is None:
            made = (scans.images(first, last, PICTURE_SIDE).astype(np.float32) / 255).astype(np.float16)
            out[first:last] = made
            out.flush()
            mark = marks.finish(name, mine, made)
        parts[name] = (slice(first, last), mark["sha256"])
    _verified(images, parts, layout.images())
    publish(images.path, layout.images())
    return {"sha256_of_parts": hashlib.sha256("".join(digest for _, digest in parts.values()).encode()).hexdigest()}
