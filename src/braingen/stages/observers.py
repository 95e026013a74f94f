"""Who looks at the pictures: the tiny CLIP and the judge for simulated pictures, the field's networks for photographs."""

from __future__ import annotations

import numpy as np

from braingen.clip.cache import fingerprint_of_files
from braingen.config import Config
from braingen.data.nsd import Layout
from braingen.scores import features as published_networks
from braingen.scores.features import FeatureNetwork, Features
from braingen.scores.sheet import ReadOut
from braingen.simulation.observers import ClipFeatures, JudgeOnce, judge_networks, load_judge, readouts
from braingen.stages.machine import device_of
from braingen.stages.targets import Targets


def observers(config: Config, simulated: bool, ids: np.ndarray) -> tuple[list[Features], list[ReadOut], dict[str, str]]:
    """Networks, read-outs of what is in a picture, and what is missing with the line that gets it.

    Parameters
    ----------
    ids : image ids of the pictures that are looked at

    Raises
    ------
    MissingWeights
        With ``scores.strict``, for the first network whose weights are not on this machine.
    """
    published, missing = _published(config, simulated)
    if not simulated:
        return list(published), [], missing
    judge, targets = JudgeOnce(load_judge()), Targets(config)
    clip = ClipFeatures(targets.image_encoder, fingerprint_of_files(targets.image_path))
    return [clip, *judge_networks(judge), *published], readouts(judge, Layout.of(config.data.root), ids), missing


def _published(config: Config, simulated: bool) -> tuple[list[FeatureNetwork], dict[str, str]]:
    """The field's networks that are here; for simulated pictures when asked for, and without CLIP, whose place the tiny one has."""
    if simulated and not config.scores.published_networks:
        return [], {}
    names = [name for name in published_networks.recipes() if not (simulated and name == "clip")]
    return published_networks.load_all(names, config.scores.feature_weights or None, str(device_of(config)), config.scores.strict)
