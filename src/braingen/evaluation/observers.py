"""Who looks at the pictures: the tiny CLIP and the judge for simulated pictures, the field's
networks for photographs.
"""

from __future__ import annotations

import numpy as np

from braingen.config import Config
from braingen.evaluation import features as published_networks
from braingen.evaluation.features import FeatureNetwork, Features
from braingen.evaluation.metric_table import SceneReadout
from braingen.evaluation.scene_observers import (
    ClipFeatures,
    JudgeOnce,
    classifier_networks,
    load_scene_classifier,
    readouts,
)
from braingen.runtime.data_layout import Layout
from braingen.runtime.device import device_of
from braingen.runtime.fingerprints import fingerprint_of_files
from braingen.targets.tables import Targets


def observers(
    config: Config, simulated: bool, ids: np.ndarray
) -> tuple[list[Features], list[SceneReadout], dict[str, str]]:
    """Networks, read-outs of what is in a picture, and what is missing with the line that gets it.

    Parameters
    ----------
    ids : np.ndarray
        Image ids of the pictures that are looked at.

    Raises
    ------
    MissingWeights
        With ``evaluation.strict``, for the first network whose weights are not on this machine.
    """
    published, missing = _published(config, simulated)
    if not simulated:
        return list(published), [], missing
    judge, targets = JudgeOnce(load_scene_classifier()), Targets(config)
    clip = ClipFeatures(targets.image_encoder, fingerprint_of_files(targets.image_path))
    return (
        [clip, *classifier_networks(judge), *published],
        readouts(judge, Layout.of(config.data.root), ids),
        missing,
    )


def _published(config: Config, simulated: bool) -> tuple[list[FeatureNetwork], dict[str, str]]:
    """The field's networks that are here; for simulated pictures when asked for, and without CLIP,
    whose place the tiny one has.
    """
    if simulated and not config.evaluation.published_networks:
        return [], {}
    names = [name for name in published_networks.recipes() if not (simulated and name == "clip")]
    return published_networks.load_all(
        names,
        config.evaluation.feature_weights or None,
        str(device_of(config)),
        config.evaluation.strict,
    )
