"""Score anybody's reconstructions: a folder of pictures or an array, beside what was seen. No
decoder is asked.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from braingen.config import Config
from braingen.data.stimuli import Stimuli
from braingen.data.trials import group_repeats, test_trials
from braingen.evaluation.feature_store import FeatureStore
from braingen.evaluation.image_files import LoadedImages, load_pictures
from braingen.evaluation.image_sets import SeenImages
from braingen.evaluation.metric_table import score_images
from braingen.evaluation.observers import observers
from braingen.evaluation.score_files import (
    Origin,
    evidence_of,
    print_scores,
    write_extremes,
    write_scores,
)
from braingen.runtime.console import Progress
from braingen.runtime.data_layout import Layout
from braingen.runtime.errors import UserError

ALL_IMAGES = "all_images.pt"
"""MindEye2's file of what was seen; it lies one folder above ``<model>/<model>_all_recons.pt``, in
the same order.
"""


class ScoringRequest(NamedTuple):
    """What is to be scored, beside what was seen."""

    recons: LoadedImages
    truth: LoadedImages
    protocol: str
    """Where what was seen comes from, and how the two were matched."""
    stimuli: Stimuli | None
    """The data folder's pictures, where these were seen."""


def _test_images(config: Config) -> np.ndarray:
    """Test images of the subject by ascending id, the order of MindEye2's evals files."""
    return group_repeats(test_trials(Layout.of(config.data.root), config.data.subjects[0])).image_N


def _opened(path: Path, otherwise: np.ndarray | None) -> LoadedImages:
    """Pictures with the ids that their file states; those of ``otherwise`` where it states none."""
    stated = _stated(path)
    if stated is not None or otherwise is None:
        return stated or load_pictures(path)
    found = load_pictures(path, otherwise)
    if len(found.pictures) != len(otherwise):
        raise UserError(
            f"{path} holds {len(found.pictures)} pictures without image ids, where there are"
            f" {len(otherwise)} images: put the ids of the pictures into"
            f" {path.with_name(path.stem + '_ids.npy')}."
        )
    return found


def _stated(path: Path) -> LoadedImages | None:
    """Pictures with the ids that their file states; None where it states none."""
    try:
        return load_pictures(path)
    except UserError:
        if not path.is_file():
            raise
        load_pictures(path, np.arange(0))  # whatever else is wrong with the file is told
        return None


def _truth_file(config: Config, recons: Path) -> Path | None:
    """The file of what was seen: the one that is named, else MindEye2's near the pictures, else
    none.
    """
    if config.evaluation.true_images_path:
        return Path(config.evaluation.true_images_path).expanduser()
    near = (
        [folder / ALL_IMAGES for folder in (recons.parent, recons.parent.parent)]
        if recons.is_file()
        else []
    )
    return next((path for path in near if path.is_file() and path != recons), None)


def _asked(config: Config) -> ScoringRequest:
    path = Path(config.evaluation.all_recons_path).expanduser()
    layout, subject = Layout.of(config.data.root), config.data.subjects[0]
    there = layout.images().exists() and layout.wds_test(subject).exists()
    file = _truth_file(config, path)
    if file is not None:
        recons, truth = _stated(path), _stated(file)
        how = "matched by image id"
        if recons is None and truth is None:
            # neither MindEye2's pictures nor its all_images.pt have ids: the test images by
            # ascending id, or just the first, second, ...
            count = len(load_pictures(path, np.arange(0)).pictures)
            ids = _test_images(config) if there else np.arange(count)
            recons = load_pictures(path, ids if len(ids) == count else np.arange(count))
            how = f"no image ids: in the order of {file.name}"
        recons = recons or _opened(path, truth.image_N if truth else None)
        return ScoringRequest(
            recons, truth or _opened(file, recons.image_N), f"{file.name}; {how}", None
        )
    _stated(path)  # what is wrong with the pictures is told before what is missing beside them
    if not layout.images().exists():
        raise UserError(
            f"What was seen is not known: {layout.images()} does not exist. Name the data folder"
            " (--root) or a file (--true_images_path)."
        )
    recons = _opened(path, _test_images(config) if there else None)
    stimuli = Stimuli(layout)
    wanted = (
        np.unique(recons.image_N)
        if config.evaluation.partial or not there
        else _test_images(config)
    )
    outside = wanted[(wanted < 0) | (wanted >= len(stimuli))]
    if len(outside):
        raise UserError(
            f"There is a reconstruction of image {outside[0]}, but {stimuli.path} has"
            f" {len(stimuli)} images (ids from 0)."
        )
    return ScoringRequest(
        recons,
        LoadedImages(SeenImages(stimuli, wanted), wanted),
        f"{stimuli.data_name}, subject {subject}; matched by image id",
        stimuli,
    )


def evaluate_pictures(config: Config) -> Path:
    """Score the pictures of ``evaluation.all_recons_path``.

    Returns
    -------
    Path
        Path of scores.json in the run folder; decoder scores, random voxels and oracle are absent,
        since only pictures are given.
    """
    asked = _asked(config)
    simulated = asked.stimuli is not None and asked.stimuli.simulated
    folder = config.run.folder
    networks, named, missing = observers(config, simulated, asked.truth.image_N)
    settings: dict[str, Any] = {
        "readouts": named,
        "missing": missing,
        "resamples": config.evaluation.bootstrap,
        "seed": config.run.seed,
    }
    kept = Layout.of(config.data.root).cache() / "features" if asked.stimuli is not None else None
    with Progress() as progress, FeatureStore(kept, progress=evidence_of(progress)) as store:
        (truth, true_ids), (recons, ids) = asked.truth, asked.recons
        sheet = score_images(
            truth,
            true_ids,
            recons,
            ids,
            networks,
            config.evaluation.partial,
            store=store,
            **settings,
        )
    subject = config.data.subjects[0] if asked.stimuli is not None else None
    origin = Origin(config.evaluation.method, asked.protocol, subject, config.run.seed)
    path = write_scores(folder, origin, sheet.scores, sheet, [], missing)
    write_extremes(folder, sheet.table, asked.truth, asked.recons)
    print_scores(sheet.scores, missing)
    return path
