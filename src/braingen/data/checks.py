"""Is the data what it should be? Everything that goes wrong in practice, told in one sentence each,
before any training.

Files are opened by the readers that training uses, so what they refuse is refused here in the same
words; checks that span several files (widths, rows, ids) are made here.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from contextlib import suppress
import logging
from typing import Literal, NamedTuple

import h5py
import numpy as np

from braingen.data import nsd
from braingen.data.betas import Betas, report_voxels
from braingen.data.captions import NO_CAPTIONS, has_captions, load_captions
from braingen.data.places import SurfacePlaces, load_any_places
from braingen.data.stimuli import Stimuli
from braingen.data.trials import listed, sessions_on_disk, test_trials, train_trials
from braingen.data.volumes import VoxelPlaces, read_regions
from braingen.runtime.data_layout import Layout, subject_name
from braingen.runtime.errors import UserError
from braingen.types import Trials

_CONSTANT_TOLERATED = (
    0.01  # share of voxels; a few dead ones are common at the rim of a mask and harmless
)
_IMAGES_LOOKED_AT = 512
_ROWS_LOOKED_AT = 512
_NAMED = 5  # entries named in a sentence

logger = logging.getLogger(__name__)


class Problem(NamedTuple):
    """One thing that was looked at."""

    level: Literal["ok", "note", "warning", "error"]
    """An error stops training; a warning is printed; a note tells of something optional that is not
    there.
    """
    subject: int | None
    """Whose data it is about; None for what all subjects share."""
    what: str
    """One word for tables: root, trials, test, betas, masks, volumes, images, captions."""
    sentence: str
    """What was found and, where something is wrong, what was expected and what to do."""


def all_checks(
    layout: Layout,
    subjects: Sequence[int],
    num_sessions: int = 0,
    captions: Literal["needed", "optional"] = "needed",
) -> list[Problem]:
    """Look at everything the given subjects need and tell all that was found.

    Parameters
    ----------
    layout : Layout
        The data folder.
    subjects : Sequence[int]
        Subject numbers.
    num_sessions : int, optional
        Sessions that will be used (0: all).
    captions : Literal['needed', 'optional'], optional
        "optional": a data folder without a file of captions is a note, since only text needs them.

    Returns
    -------
    list[Problem]
        In the order of looking: cheap things first within a subject, then what all subjects share.
    """
    found = _findings(layout, subjects, num_sessions, captions)
    return [one._replace(sentence=nsd.fitting_advice(one.sentence, layout.root)) for one in found]


def check_before_training(
    layout: Layout, subjects: Sequence[int], num_sessions: int = 0, captions: bool = True
) -> list[Problem]:
    """Stop at the first thing that is wrong; log what is merely strange.

    Returns
    -------
    list[Problem]
        The warnings.

    Raises
    ------
    UserError
        With the sentence of the first error.
    """
    warnings = []
    for finding in _findings(layout, subjects, num_sessions, "needed" if captions else None):
        if finding.level == "error":
            raise UserError(finding.sentence)
        if finding.level == "warning":
            logger.warning(finding.sentence)
            warnings.append(finding)
    return warnings


def _findings(
    layout: Layout,
    subjects: Sequence[int],
    num_sessions: int,
    captions: Literal["needed", "optional"] | None,
) -> Iterator[Problem]:
    if not layout.root.is_dir():
        what = "is a file" if layout.root.exists() else "does not exist"
        yield Problem(
            "error",
            None,
            "root",
            f"The data folder {layout.root} {what}; name yours with --data_path, or write a"
            " simulated one with `braingen simulate`.",
        )
        return
    if (
        not layout.wds_train(1, 0).parent.parent.parent.is_dir()
        and (layout.root / "webdataset_avg_split").is_dir()
    ):
        yield Problem(
            "error",
            None,
            "root",
            f"{layout.root} is in MindEye1's layout (webdataset_avg_split: tars of averaged"
            " samples); BrainGen reads MindEye2's: wds/subj01/train/0.tar,"
            " betas_all_subj01_fp32_renorm.hdf5, coco_images_224_float16.hdf5 (docs/data.md); get"
            " it from the Hugging Face dataset pscotti/mindeyev2, or write it from the raw release"
            " of NSD with `braingen prepare`.",
        )
        return
    yield Problem("ok", None, "root", f"The data folder {layout.root} is there.")
    used: list[np.ndarray] = []
    for subject in subjects:
        yield from _subject(layout, subject, num_sessions, used)
    ids = np.unique(np.concatenate(used)) if used else np.empty(0, dtype=np.int64)
    yield from _images(layout, ids)
    if captions == "optional" and not has_captions(layout):
        sentence = NO_CAPTIONS.format(path=layout.captions())
        yield Problem("note", None, "captions", sentence)
    elif captions:
        yield from _captions(layout, ids)


def _subject(
    layout: Layout, subject: int, num_sessions: int, used: list[np.ndarray]
) -> Iterator[Problem]:
    """Everything of one subject; the image ids found are added to `used`."""
    if subject < 1:
        yield Problem(
            "error",
            subject,
            "trials",
            f"There is no subject {subject}: subjects count from 1; name one with --subj.",
        )
        return
    training = testing = None
    try:
        training = train_trials(layout, subject, num_sessions)
        table = training.table
        used.append(table["image"].to_numpy())
        sessions = table["session"].nunique()
        sentence = (
            f"Subject {subject}: {len(table)} training trials of {table['image'].nunique()} images"
            f" in {sessions} sessions."
        )
        yield Problem("ok", subject, "trials", sentence)
        if sessions < num_sessions:
            sentence = (
                f"Subject {subject} was scanned in {sessions} sessions, fewer than --num_sessions"
                f" {num_sessions}: all are used."
            )
            yield Problem("warning", subject, "trials", sentence)
    except UserError as error:
        yield Problem("error", subject, "trials", str(error))
    try:
        testing = test_trials(layout, subject)
        used.append(testing.table["image"].to_numpy())
        images = testing.table["image"].nunique()
        yield Problem(
            "ok",
            subject,
            "test",
            f"Subject {subject}: {len(testing.table)} test trials of {images} images.",
        )
    except UserError as error:
        # training does not look at test trials, so that they are not there yet is no reason to wait
        yield Problem(
            "error" if layout.wds_test(subject).exists() else "warning", subject, "test", str(error)
        )
    if training is not None and testing is not None:
        yield from _leak(training, testing)
    betas = None
    try:
        betas = Betas.of(layout, subject)
    except UserError as error:
        yield Problem("error", subject, "betas", str(error))
    width = yield from _masks(layout, subject)
    if betas is not None:
        yield from _width(layout, subject, betas, width)
        yield from _completeness(layout, subject, betas, num_sessions, testing)
        present = [trials for trials in (training, testing) if trials is not None]
        yield from _responses(layout, subject, betas, present)
        yield from _volumes(layout, subject, betas.voxels)


def _leak(training: Trials, testing: Trials) -> Iterator[Problem]:
    both = np.intersect1d(training.table["image"], testing.table["image"])
    if len(both):
        yield Problem(
            "error",
            training.subject,
            "trials",
            f"Subject {training.subject}: {len(both)} images ({_some(both)}) are both in the"
            " training and the test tars, none was expected: scores would be worthless;"
            f" {nsd.GET_IT}.",
        )


def _masks(layout: Layout, subject: int) -> Generator[Problem, None, int | None]:
    """Region masks; returns the number of voxels they say the subject has, or None."""
    if not layout.masks().exists():
        yield Problem(
            "warning",
            subject,
            "masks",
            f"{layout.masks()} is missing: maps and scores by region will not be made;"
            f" {nsd.GET_IT}.",
        )
        return None
    try:
        regions = read_regions(layout, subject)
    except UserError as error:
        yield Problem("error", subject, "masks", str(error))
        return None
    lengths = {name: len(region) for name, region in regions.items()}
    if len(set(lengths.values())) != 1:
        shown = (
            ", ".join(f"{name} {length}" for name, length in lengths.items()) or "no region at all"
        )
        sentence = (
            f"{layout.masks()}: the regions of subject {subject} have different lengths ({shown}),"
            f" one was expected; {nsd.GET_IT}."
        )
        yield Problem("error", subject, "masks", sentence)
        return None
    wrong = None
    areas = [regions[name] for name in ("V1", "V2", "V3", "V4") if name in regions]
    if len(areas) == 4 and np.sum(areas, axis=0).max(initial=0) > 1:
        wrong = "V1 to V4 overlap"
    elif (
        len(areas) == 4
        and "early_vis" in regions
        and not np.array_equal(np.any(areas, axis=0), regions["early_vis"])
    ):
        wrong = "early_vis is not the union of V1 to V4"
    elif {"early_vis", "higher_vis"} <= set(regions) and (
        regions["early_vis"] & regions["higher_vis"]
    ).any():
        wrong = "early_vis and higher_vis overlap"
    if wrong:
        yield Problem(
            "warning",
            subject,
            "masks",
            f"{layout.masks()}: for subject {subject} {wrong}; maps by region will show it.",
        )
    else:
        yield Problem("ok", subject, "masks", f"Subject {subject}: regions {', '.join(regions)}.")
    return next(iter(lengths.values()))


def _whose(layout: Layout, width: int, subject: int) -> str:
    """Whose voxel count that is, as the end of a clause."""
    with (
        suppress(OSError, AttributeError, TypeError, StopIteration),
        h5py.File(layout.masks(), "r") as file,
    ):
        for group in file:
            if group != subject_name(subject) and len(next(iter(file[group].values()))) == width:
                return f", the width of {group}"
    other = nsd.subject_of_width(width)
    return f", the width of NSD's {subject_name(other)}" if other not in (None, subject) else ""


def _width(layout: Layout, subject: int, betas: Betas, masks: int | None) -> Iterator[Problem]:
    whose = _whose(layout, betas.voxels, subject)
    expected = masks
    source = f"the masks in {layout.masks()}"
    if masks is None and whose:
        expected, source = nsd.VOXELS.get(subject), "NSD"
    if expected is not None and expected != betas.voxels:
        yield Problem(
            "error",
            subject,
            "betas",
            f"{betas.path} has {betas.voxels} voxels{whose}; subject {subject} has {expected} by"
            f" {source}: exchange the file for subject {subject}'s, or {nsd.GET_IT}.",
        )
    else:
        sentence = (
            f"Subject {subject}: betas of {betas.trials} trials x {betas.voxels} voxels,"
            f" {betas.rows_on_disk.dtype}."
        )
        yield Problem("ok", subject, "betas", sentence)


def _completeness(
    layout: Layout, subject: int, betas: Betas, num_sessions: int, testing: Trials | None
) -> Iterator[Problem]:
    """For a subject who by the width is NSD's: is all there that NSD has?"""
    if betas.voxels != nsd.VOXELS.get(subject):
        return
    there, all_of_them = len(sessions_on_disk(layout, subject)), nsd.SESSIONS[subject]
    if not num_sessions and 0 < there < all_of_them:
        sentence = (
            f"Subject {subject}: {there} of NSD's {all_of_them} training sessions are there; those"
            f" are used; to have all, {nsd.GET_IT}."
        )
        yield Problem("warning", subject, "trials", sentence)
    expected = nsd.TEST_TRIALS["new_test"][subject]
    if (
        testing is not None
        and len(testing.table) != expected
        and betas.trials == all_of_them * nsd.TRIALS_PER_SESSION
    ):
        found = len(testing.table)
        sentence = (
            f"{layout.wds_test(subject)} has {found} trials, {expected} were expected of NSD's"
            f" subject {subject}; {nsd.GET_IT}."
        )
        yield Problem("warning", subject, "test", sentence)


def _responses(
    layout: Layout, subject: int, betas: Betas, trials: Sequence[Trials]
) -> Iterator[Problem]:
    """Rows that are not there, values that are none, voxels that say nothing."""
    parts = [part.table[["trial", "session"]] for part in trials]
    if not parts:
        return
    rows = np.concatenate([part["trial"].to_numpy() for part in parts])
    sessions = np.concatenate([part["session"].to_numpy() for part in parts])
    beyond = rows >= betas.trials
    if beyond.any():
        whole = int(sessions[beyond].min())
        fewer = (
            f", or use the sessions that are there with --num_sessions {whole}"
            if whole > 0 and not (trials[-1].table["trial"] >= betas.trials).any()
            else ""
        )
        yield Problem(
            "error",
            subject,
            "betas",
            f"{betas.path} has {betas.trials} rows, the tars name trials up to {rows.max()} (from"
            f" 0), so {rows.max() + 1} rows were expected: it is cut short or of another subject;"
            f" {nsd.GET_IT}{fewer}.",
        )
        return
    report = report_voxels(betas, layout)
    bad = np.unique(rows[report.not_finite_N[rows]])
    if len(bad):
        voxels = np.flatnonzero(report.not_finite_V)
        yield Problem(
            "error",
            subject,
            "betas",
            f"{betas.path}: {len(voxels)} of {betas.voxels} voxels ({_some(voxels)}) are NaN or"
            f" infinite in {len(bad)} of the trials used ({_some(bad)}), numbers were expected;"
            f" {nsd.GET_IT}.",
        )
    empty = np.unique(rows[report.zero_N[rows]])
    if len(empty):
        yield Problem(
            "error",
            subject,
            "betas",
            f"{betas.path}: {len(empty)} of the trials used ({_some(empty)}) are 0 in every voxel:"
            f" those rows were never written; {nsd.GET_IT}.",
        )
    constant = np.flatnonzero(report.constant_V)
    if len(constant) and not len(empty):
        many = len(constant) > _CONSTANT_TOLERATED * betas.voxels
        todo = nsd.GET_IT if many else "they carry nothing and are left as they are"
        sentence = (
            f"{betas.path}: {len(constant)} of {betas.voxels} voxels ({_some(constant)}) have the"
            f" same value in all trials; {todo}."
        )
        yield Problem("error" if many else "warning", subject, "betas", sentence)
    if not len(bad) and not len(empty):
        yield from _scale(subject, betas, rows)


def _scale(subject: int, betas: Betas, rows: np.ndarray) -> Iterator[Problem]:
    """Raw betas are in percent signal change; z-scored ones have mean 0 and standard deviation 1,
    whoever's they are.
    """
    rows = np.unique(rows)
    sample = betas.rows(
        rows[np.linspace(0, len(rows) - 1, min(len(rows), _ROWS_LOOKED_AT)).astype(np.int64)]
    ).astype(np.float64)
    if len(sample) < 20:  # too few to tell
        return
    mean, deviation = (
        float(np.median(np.abs(sample.mean(axis=0)))),
        float(np.median(sample.std(axis=0))),
    )
    if mean > 0.5 or not 0.5 < deviation < 2:
        yield Problem(
            "warning",
            subject,
            "betas",
            f"{betas.path}: a typical voxel has mean {mean:.2g} and standard deviation"
            f" {deviation:.2g} over trials, z-scored responses (0 and 1) were expected; if these"
            " are raw, run `braingen prepare`.",
        )


def _volumes(layout: Layout, subject: int, voxels: int) -> Iterator[Problem]:
    folder = layout.volumes(subject)
    if not folder.is_dir():
        sentence = (
            f"{folder} is missing: training does not need it, but maps of subject {subject} cannot"
            " be put into the volume."
        )
        yield Problem("note", subject, "volumes", sentence)
        return
    try:
        places = load_any_places(layout, subject)
    except UserError as error:
        yield Problem(
            "warning",
            subject,
            "volumes",
            f"Maps of subject {subject} cannot be put into the volume: {error}",
        )
        return
    if places.voxels != voxels:
        whose = _whose(layout, places.voxels, subject)
        what = "a mask" if isinstance(places, VoxelPlaces) else "places"
        sentence = (
            f"{folder} has {what} of {places.voxels} voxels{whose}, the betas have {voxels}:"
            f" exchange one of them for subject {subject}'s."
        )
        yield Problem("error", subject, "volumes", sentence)
    elif isinstance(places, VoxelPlaces):
        yield Problem(
            "ok",
            subject,
            "volumes",
            f"Subject {subject}: every voxel has its place in a volume {places.mask.shape}.",
        )
    elif isinstance(places, SurfacePlaces):
        yield Problem(
            "ok",
            subject,
            "volumes",
            f"Subject {subject}: every column has its vertex on the surface {places.surface}.",
        )
    else:
        sentence = (
            f"Subject {subject}: where the {places.voxels} columns lie is not known: there will be"
            " tables by region, and no maps."
        )
        yield Problem("note", subject, "volumes", sentence)


def _images(layout: Layout, ids: np.ndarray) -> Iterator[Problem]:
    try:
        stimuli = Stimuli(layout)
    except UserError as error:
        yield Problem("error", None, "images", str(error))
        return
    if len(ids) and ids[-1] >= len(stimuli):
        yield Problem(
            "error",
            None,
            "images",
            f"{stimuli.path} has {len(stimuli)} images, the tars name ids up to {ids[-1]} (from 0):"
            f" it is cut short or of other data; {nsd.GET_IT}.",
        )
        return
    try:
        sample = ids[
            np.linspace(0, len(ids) - 1, min(len(ids), _IMAGES_LOOKED_AT)).astype(np.int64)
        ]
        for start in range(0, len(sample), 32):
            stimuli.images(sample[start : start + 32])
    except UserError as error:
        yield Problem("error", None, "images", str(error))
        return
    kind = "simulated scenes" if stimuli.simulated else "images"
    height, width = stimuli.size
    yield Problem(
        "ok",
        None,
        "images",
        f"{len(stimuli)} {kind} of {height} x {width} pixels; {len(ids)} of them are used.",
    )


def _captions(layout: Layout, ids: np.ndarray) -> Iterator[Problem]:
    try:
        captions = load_captions(layout)
    except UserError as error:
        yield Problem("error", None, "captions", str(error))
        return
    missing = np.array(captions.missing(ids))
    if len(missing):
        yield Problem(
            "error",
            None,
            "captions",
            f"{captions.path} has no caption for {len(missing)} of the {len(ids)} images used"
            f" ({_some(missing)}), at least one each was expected; add them, or write the file with"
            " `braingen prepare` (from COCO's annotations).",
        )
    else:
        yield Problem("ok", None, "captions", f"All {len(ids)} images used have captions.")


def _some(numbers: np.ndarray) -> str:
    """The first few of many numbers."""
    shown = listed(numbers[:_NAMED].tolist())
    return f"{shown}, ..." if len(numbers) > _NAMED else shown
