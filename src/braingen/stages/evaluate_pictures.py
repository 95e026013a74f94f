"""Score anybody's reconstructions: a folder of pictures or an array, beside what was seen. No decoder is asked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import Progress

from braingen.config import Config
from braingen.data.nsd import Layout
from braingen.data.stimuli import Stimuli
from braingen.data.trials import group_repeats, test_trials
from braingen.errors import UserError
from braingen.scores.feature_store import FeatureStore
from braingen.scores.pictures import Loaded, load_pictures
from braingen.scores.sheet import score_images
from braingen.stages.observers import observers
from braingen.stages.picture_sets import Seen
from braingen.stages.score_files import print_scores, told_by, write_scores


def _test_images(config: Config) -> np.ndarray:
    """Test images of the subject by ascending id, the order of MindEye2's evals files."""
    return group_repeats(test_trials(Layout.of(config.data.root), config.data.subjects[0])).image_N


def _given(config: Config) -> Loaded:
    path = Path(config.scores.all_recons_path).expanduser()
    try:
        return load_pictures(path)
    except UserError:
        if not path.is_file() or not Layout.of(config.data.root).images().exists():
            raise
    ids = _test_images(config)
    found = load_pictures(path, ids)  # a file without ids, such as MindEye2's *_all_recons.pt
    if len(found.pictures) != len(ids):
        raise UserError(
            f"{path} holds {len(found.pictures)} pictures without image ids, and subject {config.data.subjects[0]} has {len(ids)} test "
            f"images: put the ids of the pictures into {path.with_name(path.stem + '_ids.npy')}."
        )
    return found


def _truth(config: Config, recons: Loaded) -> tuple[Loaded, Stimuli | None]:
    """What was seen, and the data folder's pictures where it is from there."""
    if config.scores.true_images_path:
        path = Path(config.scores.true_images_path).expanduser()
        try:
            return load_pictures(path), None
        except UserError:
            if not path.is_file():
                raise
        # an array without ids, such as MindEye2's all_images.pt, is in the order of the reconstructions
        return load_pictures(path, recons.image_N), None
    stimuli = Stimuli(Layout.of(config.data.root))
    wanted = _test_images(config) if not config.scores.partial else np.unique(recons.image_N)
    outside = wanted[(wanted < 0) | (wanted >= len(stimuli))]
    if len(outside):
        raise UserError(f"There is a reconstruction of image {outside[0]}, but {stimuli.path} has {len(stimuli)} images (ids from 0).")
    return Loaded(Seen(stimuli, wanted), wanted), stimuli


def evaluate_pictures(config: Config) -> Path:
    """Score the pictures of ``scores.all_recons_path``; they are matched with what was seen by image id.

    Returns
    -------
    path of scores.json in the run folder; decoder scores, random voxels and ceiling are absent, since only pictures are given
    """
    recons = _given(config)
    truth, stimuli = _truth(config, recons)
    folder = config.run.folder
    networks, named, missing = observers(config, stimuli is not None and stimuli.simulated, truth.image_N)
    settings: dict[str, Any] = {"readouts": named, "missing": missing, "resamples": config.scores.bootstrap, "seed": config.run.seed}
    kept = Layout.of(config.data.root).cache() / "features" if stimuli is not None else None
    with Progress() as progress, FeatureStore(kept, progress=told_by(progress)) as store:
        partial = config.scores.partial
        sheet = score_images(truth.pictures, truth.image_N, recons.pictures, recons.image_N, networks, partial, store=store, **settings)
    data = "simulated data" if stimuli is not None and stimuli.simulated else "pictures given"
    path = write_scores(folder, f"{data}, {config.scores.all_recons_path}", sheet.scores, [sheet.table], sheet, missing)
    print_scores(sheet.scores, missing)
    return path
