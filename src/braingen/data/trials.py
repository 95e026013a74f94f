"""Which picture was shown when: the tars, read once into a trial table.

A tar is read as a stream, one small `behav.npy` per sample. What was read is kept beside the data
(or, where that cannot be written, in memory), keyed by the tar's size and modification time.
"""

from __future__ import annotations

from functools import lru_cache
import io
import os
from pathlib import Path
import sys
import tarfile
from typing import NamedTuple

import h5py
import numpy as np
import pandas as pd

from braingen.data import nsd
from braingen.data.sealed import is_sealed, refuse_sealed
from braingen.data.tars import NO_TRIALS
from braingen.runtime.arrays import read_header
from braingen.runtime.data_layout import Layout, subject_name
from braingen.runtime.errors import UserError
from braingen.runtime.files import UNREADABLE_ARRAY, identity, refuse_stand_in, replaced_file
from braingen.types import Trials

_TAR_END = 1024  # a complete tar ends with two blocks of 512 zero bytes


LARGEST_SAMPLE = 1 << 16
"""Bytes of a behav.npy; it has 17 numbers."""


class Repeats(NamedTuple):
    """Presentations grouped by image. N images, R presentations at most."""

    image_N: np.ndarray
    """Image ids, int64, ascending."""
    rows_NR: np.ndarray
    """Rows of the betas file in order of presentation, int64; -1 where an image was shown less
    often.
    """


def read_behav(path: Path) -> np.ndarray:
    """Read `behav.npy` of every sample of a tar.

    Returns
    -------
    np.ndarray
        (samples, 17) float64, columns `nsd.BEHAV_COLUMNS`, in the order of the tar.

    Raises
    ------
    UserError
        When the tar is missing, cut short, a stand-in, or holds something else than NSD samples.
    """
    refuse_stand_in(path, nsd.GET_IT)
    size = os.path.getsize(path)
    with open(path, "rb") as handle:
        handle.seek(max(size - _TAR_END, 0))
        tail = handle.read()
    # tarfile ends silently at a missing end mark, so a cut between two samples would pass unnoticed
    # without this
    if size < _TAR_END or tail.strip(b"\0"):
        raise UserError(
            f"{path} is cut short: {size} bytes without the end mark of a tar; {nsd.GET_IT}."
        )
    rows = []
    name = "its first member"
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                name = member.name
                if member.name.rpartition("/")[2].partition(".")[2] != "behav.npy":
                    continue
                if not member.isfile():  # a link could lead anywhere
                    raise ValueError("not a plain file")
                if member.size > LARGEST_SAMPLE:
                    raise ValueError(
                        f"{member.size:,} bytes where {len(nsd.BEHAV_COLUMNS)} numbers were"
                        " expected"
                    )
                data = tar.extractfile(member)
                content = io.BytesIO(b"" if data is None else data.read())
                shape, _ = read_header(content)  # before anything of that size is allocated
                if shape != (1, len(nsd.BEHAV_COLUMNS)):
                    raise ValueError(
                        f"shape {shape} where (1, {len(nsd.BEHAV_COLUMNS)}) was expected"
                    )
                content.seek(0)
                rows.append(np.load(content, allow_pickle=False)[0].astype(np.float64))
    except (tarfile.TarError, *UNREADABLE_ARRAY) as error:
        raise UserError(f"{path} is damaged at {name} ({error}); {nsd.GET_IT}.") from error
    if not rows and name == NO_TRIALS:
        return np.empty((0, len(nsd.BEHAV_COLUMNS)))
    if not rows:
        raise UserError(f"{path} holds no sample with a behav.npy; {nsd.GET_IT}.")
    behav = np.stack(rows)
    for column in (nsd.BEHAV_COLUMNS.index("image"), nsd.BEHAV_COLUMNS.index("global_trial")):
        wrong = ~(
            np.isfinite(behav[:, column]) & (behav[:, column] >= 0) & (behav[:, column] % 1 == 0)
        )
        if wrong.any():
            raise UserError(
                f"{path}: sample {int(np.flatnonzero(wrong)[0])} has {nsd.BEHAV_COLUMNS[column]} "
                f"{behav[wrong, column][0]}, a whole number from 0 was expected; {nsd.GET_IT}."
            )
    return behav


@lru_cache(maxsize=1024)
def _read_once(path: Path, key: str, cache: Path) -> np.ndarray:
    """`read_behav` through the cache file; `key` is the tar's identity."""
    try:
        with np.load(cache, allow_pickle=False) as stored:
            if str(stored["key"]) == key and stored["behav"].shape[1:] == (len(nsd.BEHAV_COLUMNS),):
                return stored["behav"].astype(np.float64)
    except UNREADABLE_ARRAY:
        pass  # no cache yet, or one that a newer tar has outdated: read the tar
    behav = read_behav(path)
    try:
        with replaced_file(cache) as handle:
            np.savez(handle, behav=behav, key=np.array(key))
    except (UserError, OSError):
        pass  # data folders are often read-only; the table then stays in memory
    return behav


def behav(layout: Layout, subject: int, path: Path) -> np.ndarray:
    """All 17 columns of one tar (samples, 17), read once."""
    refuse_stand_in(path, nsd.GET_IT)
    cache = (
        layout.cache() / "trials" / f"{subject_name(subject)}_{path.parent.name}_{path.stem}.npz"
    )
    table = _read_once(path, identity(path), cache)
    subjects = np.unique(table[:, nsd.BEHAV_COLUMNS.index("subject")])
    if len(table) and subjects.tolist() != [subject]:
        found = ", ".join(f"{s:g}" for s in subjects)
        raise UserError(
            f"{path} holds trials of subject {found}, subject {subject} was expected; {nsd.GET_IT}."
        )
    return table


def sessions_on_disk(layout: Layout, subject: int) -> list[int]:
    """Numbers of the training tars that exist, ascending."""
    folder = layout.wds_train(subject, 0).parent
    return (
        sorted(int(path.stem) for path in folder.glob("*.tar") if path.stem.isdigit())
        if folder.is_dir()
        else []
    )


def subjects_on_disk(layout: Layout) -> list[int]:
    """Numbers of the subjects whose training tars are there, ascending."""
    found = (
        folder.name.removeprefix("subj")
        for folder in layout.wds_train(1, 0).parent.parent.parent.glob("subj*")
    )
    return sorted(int(number) for number in found if number.isdecimal())


def _sessions_to_read(layout: Layout, subject: int, num_sessions: int) -> range:
    """Sessions 0..n-1 that were asked for (0: all), at most those there are of the subject; every
    one of them has to be there.
    """
    found = sessions_on_disk(layout, subject)
    folder = layout.wds_train(subject, 0).parent
    if num_sessions < 0:
        raise UserError(
            f"--num_sessions is {num_sessions}: give the number of sessions to use, or 0 for all."
        )
    if not found:
        refuse_sealed(layout)
        raise UserError(
            f"There are no training trials of subject {subject}: no tar in {folder}; {nsd.GET_IT}."
        )
    wanted = range(
        min(num_sessions, scanned_sessions(layout, subject)) if num_sessions else found[-1] + 1
    )
    missing = [session for session in wanted if session not in set(found)]
    if missing:
        raise UserError(
            f"Subject {subject}: training session {listed(missing)} of {len(wanted)} missing in"
            f" {folder}, which has session {listed(found)}; {nsd.GET_IT}, or ask for fewer with"
            " --num_sessions."
        )
    return wanted


def scanned_sessions(layout: Layout, subject: int) -> int:
    """In how many sessions a subject was scanned, as far as that is known; a number that no request
    exceeds where it is not.

    Of NSD's subjects it is known, of a simulated subject it is what was written. A download of NSD
    that is not complete has a gap between what is there and what was scanned, so that a missing
    session is not taken for one that never was.
    """
    found = sessions_on_disk(layout, subject)
    try:
        places = (layout.images(), nsd.IMAGES_DATASET), (layout.features(), nsd.EMBEDDING_DATASET)
        path, dataset = places[0] if layout.images().exists() else places[1]
        with h5py.File(path, "r") as file:
            simulated = bool(file[dataset].attrs.get(nsd.SIMULATED_ATTRIBUTE, False))
    except (OSError, KeyError):  # reported where the pictures are looked at
        simulated = False
    if simulated and found:
        return found[-1] + 1
    return nsd.SESSIONS.get(subject, sys.maxsize) if not layout.prepared().exists() else sys.maxsize


def listed(numbers: list[int]) -> str:
    """Numbers as people write them: 0-4, 7."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)


def _table(behav: np.ndarray, subject: int, session: np.ndarray, split: str) -> pd.DataFrame:
    column = {name: index for index, name in enumerate(nsd.BEHAV_COLUMNS)}
    table = pd.DataFrame(
        {
            "subject": np.full(len(behav), subject, dtype=np.int64),
            "session": session.astype(np.int64),
            "trial": behav[:, column["global_trial"]].astype(np.int64),
            "image": behav[:, column["image"]].astype(np.int64),
        }
    )
    table = table.sort_values("trial", kind="stable").reset_index(drop=True)
    twice = table["trial"].duplicated()
    if twice.any():
        raise UserError(
            f"Subject {subject}: {split} trial {int(table['trial'][twice].iloc[0])} occurs twice in"
            f" the tars under wds/{subject_name(subject)}, every trial was expected once;"
            f" {nsd.GET_IT}."
        )
    table["repeat"] = table.groupby("image").cumcount().astype(np.int64)
    table["split"] = split
    return table


def train_trials(layout: Layout, subject: int, num_sessions: int = 0) -> Trials:
    """Training trials of the first `num_sessions` sessions (0: all), in order of presentation.

    The session of a trial is the number of its tar, counted from 0.

    Raises
    ------
    UserError
        When a session is missing or a tar is damaged.
    """
    wanted = _sessions_to_read(layout, subject, num_sessions)
    parts = [behav(layout, subject, layout.wds_train(subject, session)) for session in wanted]
    sessions = np.repeat(np.array(wanted), [len(part) for part in parts])
    return Trials(_table(np.concatenate(parts), subject, sessions, "train"), subject)


def test_trials(layout: Layout, subject: int, which: str = "new_test") -> Trials:
    """All test trials (`which`: "new_test", or the older, smaller "test"), in order of
    presentation.

    Sessions are those of the session column, shifted so that they count from 0 like the tars of the
    training trials.
    """
    table = behav(layout, subject, layout.wds_test(subject, which))
    column = nsd.BEHAV_COLUMNS.index("session")
    first = 0.0
    for session in sessions_on_disk(layout, subject):
        training = behav(layout, subject, layout.wds_train(subject, session))
        if len(training):  # a session may hold test pictures only
            first = training[0, column] - session
            break
    found = Trials(_table(table, subject, table[:, column] - first, "test"), subject)
    if is_sealed(layout):
        return found._replace(presentations=1 + int(found.table["repeat"].max()))
    return found


test_trials.__test__ = False  # type: ignore[attr-defined]  # not a test, whatever its name makes pytest think


def group_repeats(trials: Trials, max_repeats: int | None = None) -> Repeats:
    """Group the trials by image, at most `max_repeats` presentations of each, in order of
    presentation.

    Without `max_repeats` as many as the trials have of it: three, as NSD, or all of a sealed test
    set.
    """
    max_repeats = trials.presentations if max_repeats is None else max_repeats
    table = trials.table
    image_N, group = np.unique(table["image"].to_numpy(), return_inverse=True)
    repeat = table["repeat"].to_numpy()
    kept = repeat < max_repeats
    rows_NR = np.full((len(image_N), int(repeat[kept].max()) + 1), -1, dtype=np.int64)
    rows_NR[group[kept], repeat[kept]] = table["trial"].to_numpy()[kept]
    return Repeats(image_N, rows_NR)


def _lottery(image: np.ndarray, seed: int) -> np.ndarray:
    """A number in [0, 1) for every image id: the splitmix64 finaliser of id and seed, so it depends
    on nothing else.
    """
    with np.errstate(over="ignore"):
        x = image.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(
            seed % 2**64
        ) * np.uint64(0xD1B54A32D192ED03)
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
            x = (x ^ (x >> np.uint64(shift))) * np.uint64(factor)
        x ^= x >> np.uint64(31)
    return (x >> np.uint64(11)).astype(np.float64) * 2.0**-53


def hold_out_images(trials: Trials, share: float, seed: int) -> tuple[Trials, Trials]:
    """Split training trials by image: all presentations of an image fall on the same side.

    Whether an image is held out depends on its id and the seed only, so it does not change with the
    number of sessions, and an image seen by several subjects is held out for all. The share is
    therefore met on average, not to the image; at least one image is held out and at least one
    kept.

    Parameters
    ----------
    trials : Trials
        Training trials.
    share : float
        Expected share of the images held out, in (0, 1).
    seed : int
        Seed of the draw.

    Returns
    -------
    tuple[Trials, Trials]
        What remains for training, and the held-out trials (split "validation").
    """
    images = np.unique(trials.table["image"].to_numpy())
    if not 0 < share < 1 or len(images) < 2:
        raise UserError(
            f"Cannot hold out a share of {share} of {len(images)} training images: give a share"
            " between 0 and 1, of at least 2."
        )
    ticket = _lottery(images, seed)
    drawn = ticket < share
    drawn[ticket.argmin()] = True
    drawn[ticket.argmax()] = False
    return hold_out(trials, images[drawn])


def fold_of_images(images: np.ndarray, folds: int, seed: int) -> np.ndarray:
    """Share images out to folds of equal size, by chance.

    Parameters
    ----------
    images : np.ndarray
        Ids, each once; with several subjects those of all, so that an image is in one fold for
        everybody.

    Returns
    -------
    np.ndarray
        Fold of every image, 0 to folds - 1.

    Raises
    ------
    UserError
        When a fold would have no image to be judged by or to learn from.
    """
    if folds < 2 or len(images) < 2 * folds:
        raise UserError(
            f"{len(images)} training images cannot be shared out to {folds} folds: take"
            " training.checkpoint=held_out."
        )
    return np.argsort(np.argsort(_lottery(images, seed), kind="stable"), kind="stable") % folds


def hold_out(trials: Trials, images: np.ndarray) -> tuple[Trials, Trials]:
    """Split training trials into those of other images and those of the given ones (split
    "validation").
    """
    held = trials.table["image"].isin(images).to_numpy()
    validation = trials.table[held].reset_index(drop=True).assign(split="validation")
    return Trials(trials.table[~held].reset_index(drop=True), trials.subject), Trials(
        validation, trials.subject
    )
