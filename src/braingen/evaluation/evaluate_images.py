"""Score reconstructions of any method: a folder of images or an array. No decoder is needed."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from braingen.config import Config
from braingen.data.stimuli import Stimuli
from braingen.data.trials import group_repeats, test_trials
from braingen.evaluation.feature_store import FeatureStore
from braingen.evaluation.image_files import LoadedImages, load_images
from braingen.evaluation.image_sets import SeenImages
from braingen.evaluation.metric_table import score_images
from braingen.evaluation.observers import observers
from braingen.evaluation.score_files import (
    Origin,
    feature_progress,
    print_scores,
    write_extremes,
    write_scores,
)
from braingen.runtime.console import Progress
from braingen.runtime.data_layout import Layout
from braingen.runtime.errors import UserError

ALL_IMAGES = "all_images.pt"
"""MindEye2's file of the true images, one folder above ``<model>/<model>_all_recons.pt``."""


class ScoringRequest(NamedTuple):
    """The images to score, and the true ones."""

    recons: LoadedImages
    truth: LoadedImages
    protocol: str
    """Where the true images come from, and how the two sets were matched."""
    stimuli: Stimuli | None
    """The data folder's images, where the true ones are from there."""


def _test_images(config: Config) -> np.ndarray:
    """Test images of the subject by ascending id, the order of MindEye2's evals files."""
    return group_repeats(test_trials(Layout.of(config.data.root), config.data.subjects[0])).image_N


def _opened(path: Path, otherwise: np.ndarray | None) -> LoadedImages:
    """Load images with the ids in their file, or with ``otherwise`` where it has none."""
    stated = _stated(path)
    if stated is not None or otherwise is None:
        return stated or load_images(path)
    found = load_images(path, otherwise)
    if len(found.images) != len(otherwise):
        raise UserError(
            f"{path} holds {len(found.images)} images without image ids; {len(otherwise)} images"
            " were expected: put the image ids into"
            f" {path.with_name(path.stem + '_ids.npy')}."
        )
    return found


def _stated(path: Path) -> LoadedImages | None:
    """Load images with the ids in their file; None where it has none."""
    try:
        return load_images(path)
    except UserError:
        if not path.is_file():
            raise
        load_images(path, np.arange(0))  # raises for any other fault of the file
        return None


def _truth_file(config: Config, recons: Path) -> Path | None:
    """Find the file of true images: the one in the settings, else MindEye2's near the images."""
    if config.evaluation.true_images_path:
        return Path(config.evaluation.true_images_path).expanduser()
    near = (
        [folder / ALL_IMAGES for folder in (recons.parent, recons.parent.parent)]
        if recons.is_file()
        else []
    )
    return next((path for path in near if path.is_file() and path != recons), None)


def _request(config: Config) -> ScoringRequest:
    path = Path(config.evaluation.all_recons_path).expanduser()
    layout, subject = Layout.of(config.data.root), config.data.subjects[0]
    there = layout.images().exists() and layout.wds_test(subject).exists()
    file = _truth_file(config, path)
    if file is not None:
        recons, truth = _stated(path), _stated(file)
        how = "matched by image id"
        if recons is None and truth is None:
            # MindEye2's files have no ids: they are the test images by ascending id, else any
            # images in the same order
            count = len(load_images(path, np.arange(0)).images)
            ids = _test_images(config) if there else np.arange(count)
            recons = load_images(path, ids if len(ids) == count else np.arange(count))
            how = f"no image ids: in the order of {file.name}"
        recons = recons or _opened(path, truth.image_N if truth else None)
        return ScoringRequest(
            recons, truth or _opened(file, recons.image_N), f"{file.name}; {how}", None
        )
    _stated(path)  # faults of the images are reported before missing true images
    if not layout.images().exists():
        raise UserError(
            f"The true images are not known: {layout.images()} does not exist. Name the data folder"
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


def evaluate_images(config: Config) -> Path:
    """Score the images of ``evaluation.all_recons_path``.

    Returns
    -------
    Path
        Path of scores.json in the run folder. Decoder scores, random voxels and oracle are absent,
        since only images are given.
    """
    request = _request(config)
    simulated = request.stimuli is not None and request.stimuli.simulated
    folder = config.run.folder
    networks, named, missing = observers(config, simulated, request.truth.image_N)
    settings: dict[str, Any] = {
        "readouts": named,
        "missing": missing,
        "resamples": config.evaluation.bootstrap,
        "seed": config.run.seed,
    }
    kept = Layout.of(config.data.root).cache() / "features" if request.stimuli is not None else None
    with Progress() as progress, FeatureStore(kept, progress=feature_progress(progress)) as store:
        (truth, true_ids), (recons, ids) = request.truth, request.recons
        metric_table = score_images(
            truth,
            true_ids,
            recons,
            ids,
            networks,
            config.evaluation.partial,
            store=store,
            **settings,
        )
    subject = config.data.subjects[0] if request.stimuli is not None else None
    origin = Origin(config.evaluation.method, request.protocol, subject, config.run.seed)
    path = write_scores(folder, origin, metric_table.scores, metric_table, [], missing)
    write_extremes(folder, metric_table.table, request.truth, request.recons)
    print_scores(metric_table.scores, missing)
    return path
