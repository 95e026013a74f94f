"""Is the data what it should be? One sentence for everything that goes wrong, before any training.

Files are opened by the readers that training uses, so that what they refuse is refused here in the
same words; checks that span several files (widths, rows, ids) are made here.

problem    what a check finds
voxels     betas, region masks and volumes of a subject
responses  values of the betas
pictures   images and captions
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
import logging
from typing import Literal

import numpy as np

from braingen.data import nsd
from braingen.data.captions import NO_CAPTIONS, has_captions
from braingen.data.checks.pictures import check_captions, check_images
from braingen.data.checks.problem import Problem, some
from braingen.data.checks.voxels import check_voxels
from braingen.data.trials import test_trials, train_trials
from braingen.runtime.data_layout import Layout
from braingen.runtime.errors import UserError
from braingen.types import Trials

logger = logging.getLogger(__name__)


def all_checks(
    layout: Layout,
    subjects: Sequence[int],
    num_sessions: int = 0,
    captions: Literal["needed", "optional"] = "needed",
) -> list[Problem]:
    """Check everything that the given subjects need.

    Parameters
    ----------
    layout : Layout
        The data folder.
    subjects : sequence of int
        Subject numbers.
    num_sessions : int
        Sessions that will be used (0: all).
    captions : Literal['needed', 'optional'], optional
        "needed" or "optional" "optional": a data folder without captions is a note, since only text
        needs them.

    Returns
    -------
    list of Problem
        Cheap checks first within a subject, then what all subjects share.
    """
    found = _findings(layout, subjects, num_sessions, captions)
    return [f._replace(sentence=nsd.fitting_advice(f.sentence, layout.root)) for f in found]


def check_before_training(
    layout: Layout, subjects: Sequence[int], num_sessions: int = 0, captions: bool = True
) -> list[Problem]:
    """Stop at the first error; log warnings and return them.

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
            logger.warning(nsd.fitting_advice(finding.sentence, layout.root))
            warnings.append(finding)
    return warnings


def _findings(
    layout: Layout,
    subjects: Sequence[int],
    num_sessions: int,
    captions: Literal["needed", "optional"] | None,
) -> Iterator[Problem]:
    root = _check_root(layout)
    yield root
    if root.level == "error":
        return
    used: list[np.ndarray] = []
    for subject in subjects:
        yield from _check_subject(layout, subject, num_sessions, used)
    ids = np.unique(np.concatenate(used)) if used else np.empty(0, dtype=np.int64)
    yield check_images(layout, ids)
    if captions == "optional" and not has_captions(layout):
        yield Problem("note", None, "captions", NO_CAPTIONS.format(path=layout.captions()))
    elif captions:
        yield check_captions(layout, ids)


def _check_root(layout: Layout) -> Problem:
    root = layout.root
    if not root.is_dir():
        what = "is a file" if root.exists() else "does not exist"
        sentence = (
            f"The data folder {root} {what}; name yours with --data_path, or write a simulated one "
            "with `braingen simulate`."
        )
        return Problem("error", None, "root", sentence)
    if not (root / "wds").is_dir() and (root / "webdataset_avg_split").is_dir():
        sentence = (
            f"{root} is in MindEye1's layout (webdataset_avg_split: tars of averaged samples); "
            "BrainGen reads MindEye2's: wds/subj01/train/0.tar, "
            "betas_all_subj01_fp32_renorm.hdf5, coco_images_224_float16.hdf5 (docs/data.md); get "
            "it from the Hugging Face dataset pscotti/mindeyev2, or write it from the raw release "
            "of NSD with `braingen prepare`."
        )
        return Problem("error", None, "root", sentence)
    return Problem("ok", None, "root", f"The data folder {root} is there.")


def _check_subject(
    layout: Layout, subject: int, num_sessions: int, used: list[np.ndarray]
) -> Iterator[Problem]:
    """Everything of one subject; the image ids found are added to `used`."""
    if subject < 1:
        sentence = f"There is no subject {subject}: subjects count from 1; name one with --subj."
        yield Problem("error", subject, "trials", sentence)
        return
    trials: list[Trials] = []
    try:
        training = train_trials(layout, subject, num_sessions)
        trials.append(training)
        images, sessions = (training.table[name].nunique() for name in ("image", "session"))
        sentence = (
            f"Subject {subject}: {len(training.table)} training trials of {images} images in "
            f"{sessions} sessions."
        )
        yield Problem("ok", subject, "trials", sentence)
        if sessions < num_sessions:
            sentence = (
                f"Subject {subject} was scanned in {sessions} sessions, fewer than --num_sessions "
                f"{num_sessions}: all are used."
            )
            yield Problem("warning", subject, "trials", sentence)
    except UserError as error:
        yield Problem("error", subject, "trials", str(error))
    testing = None
    try:
        testing = test_trials(layout, subject)
        trials.append(testing)
        count, images = len(testing.table), testing.table["image"].nunique()
        sentence = f"Subject {subject}: {count} test trials of {images} images."
        yield Problem("ok", subject, "test", sentence)
    except UserError as error:
        # training does not read test trials, so that it need not wait for a missing tar
        level: Literal["error", "warning"] = (
            "error" if layout.wds_test(subject).exists() else "warning"
        )
        yield Problem(level, subject, "test", str(error))
    used += [part.table["image"].to_numpy() for part in trials]
    if len(trials) == 2:
        both = np.intersect1d(used[-2], used[-1])
        if len(both):
            sentence = (
                f"Subject {subject}: {len(both)} images ({some(both)}) are both in the training "
                "and the test tars, none was expected: scores would be worthless; "
                f"{nsd.GET_IT}."
            )
            yield Problem("error", subject, "trials", sentence)
    yield from check_voxels(layout, subject, num_sessions, trials, testing)
