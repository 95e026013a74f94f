"""Networks that score images: the tiny CLIP and the scene classifier, or the published networks."""

from __future__ import annotations

import numpy as np

from braingen.config import Config
from braingen.evaluation.features import FeatureNetwork, Features, load_all, recipes
from braingen.evaluation.metric_table import SceneReadout
from braingen.evaluation.scene_observers import (
    CachedSceneClassifier,
    ClipFeatures,
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
    """Load networks and readouts, and list the missing networks with how to get them.

    Parameters
    ----------
    ids : np.ndarray
        Ids of the images to score.

    Raises
    ------
    MissingWeights
        With ``evaluation.strict``, for the first network whose weights are not on this machine.
    """
    published, missing = _published(config, simulated)
    if not simulated:
        return list(published), [], missing
    scene_classifier, targets = CachedSceneClassifier(load_scene_classifier()), Targets(config)
    clip = ClipFeatures(targets.image_encoder, fingerprint_of_files(targets.image_path))
    return (
        [clip, *classifier_networks(scene_classifier), *published],
        readouts(scene_classifier, Layout.of(config.data.root), ids),
        missing,
    )


def published_names(config: Config, simulated: bool) -> list[str]:
    """The published networks that score; simulated images only on request, and without CLIP."""
    if simulated and not config.evaluation.published_networks:
        return []
    return [name for name in recipes() if not (simulated and name == "clip")]


def _published(config: Config, simulated: bool) -> tuple[list[FeatureNetwork], dict[str, str]]:
    """Load the published networks."""
    return load_all(
        published_names(config, simulated),
        config.evaluation.feature_weights or None,
        str(device_of(config)),
        config.evaluation.strict,
    )
