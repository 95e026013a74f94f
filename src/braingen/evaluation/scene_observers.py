"""Networks that score images of simulated scenes: the tiny CLIP and the scene classifier."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from braingen.config.shipped import TINY
from braingen.evaluation.metric_table import SceneReadout
from braingen.runtime.data_layout import Layout
from braingen.runtime.fingerprints import fingerprint_of_files
from braingen.simulation.pictures import load_scenes
from braingen.simulation.scene_classifier import SceneClassifier, ScenePrediction
from braingen.simulation.scenes import BACKGROUNDS, COLOUR_NAMES, NO_COLOUR, OBJECTS, POSITIONS
from braingen.targets.clip_image import CLIPImageEncoder


class ClipFeatures:
    """Image embeddings of the backbone's CLIP.

    The diffusion model is conditioned on them, so this score favours it; the scene classifier is
    independent.
    """

    name = "clip"

    def __init__(self, encoder: CLIPImageEncoder, weights: str) -> None:
        self._encoder, self.weights = encoder, weights

    @torch.inference_mode()
    def features(self, images_B3HW: Tensor) -> Tensor:
        """B x D."""
        return self._encoder(images_B3HW).target_BTD.flatten(1)


class CachedSceneClassifier:
    """The scene classifier, with one forward pass per batch for all features and readouts.

    Parameters
    ----------
    scene_classifier : SceneClassifier
        The network.
    """

    def __init__(self, scene_classifier: SceneClassifier) -> None:
        self._scene_classifier = scene_classifier
        self._predictions = WeakTensorKeyDictionary()

    @torch.inference_mode()
    def __call__(self, images_B3HW: Tensor) -> ScenePrediction:
        """Predict a batch; the prediction is cached as long as the batch lives."""
        if images_B3HW not in self._predictions:
            self._predictions[images_B3HW] = self._scene_classifier(images_B3HW)
        return self._predictions[images_B3HW]


class ClassifierFeatures:
    """One layer of the scene classifier: 'early' or 'late'."""

    def __init__(self, scene_classifier: CachedSceneClassifier, layer: str, weights: str) -> None:
        self.name = f"classifier_{layer}"
        self._scene_classifier, self._layer = scene_classifier, f"{layer}_BF"
        self.weights = weights

    def features(self, images_B3HW: Tensor) -> Tensor:
        """B x features of the layer."""
        return getattr(self._scene_classifier(images_B3HW), self._layer)


def load_scene_classifier(folder: Path = TINY / "scene_classifier") -> SceneClassifier:
    """Load the shipped scene classifier."""
    return SceneClassifier.from_pretrained(folder, torch_dtype=torch.float32).eval()


def classifier_networks(
    scene_classifier: CachedSceneClassifier, folder: Path = TINY / "scene_classifier"
) -> list[ClassifierFeatures]:
    """Return its early and late features as networks of the metric table."""
    weights = fingerprint_of_files(folder)
    return [ClassifierFeatures(scene_classifier, layer, weights) for layer in ("early", "late")]


def readouts(
    scene_classifier: CachedSceneClassifier, layout: Layout, image_ids: np.ndarray
) -> list[SceneReadout]:
    """Return readouts of object, background and position, with the truth of a simulated folder."""
    scenes = dict(zip(image_ids.tolist(), load_scenes(layout, image_ids.tolist())))
    truths = {
        "object": (
            {image: scene.objects[0].object for image, scene in scenes.items()},
            len(OBJECTS),
        ),
        "background": (
            {image: scene.background for image, scene in scenes.items()},
            len(BACKGROUNDS),
        ),
        "position": ({image: scene.position for image, scene in scenes.items()}, len(POSITIONS)),
    }

    def readout_of(attribute: str) -> Callable[[Tensor], Tensor]:
        def predict(images_B3HW: Tensor) -> Tensor:
            return getattr(scene_classifier(images_B3HW), f"{attribute}_BC").argmax(1)

        return predict

    return [
        SceneReadout(attribute, readout_of(attribute), truth, 1 / classes)
        for attribute, (truth, classes) in truths.items()
    ]


def scene_attributes(
    scene_classifier: SceneClassifier,
    layout: Layout,
    image_ids: np.ndarray,
    images: Sequence[np.ndarray],
) -> pd.DataFrame:
    """Tabulate the true attributes of every scene and those predicted from its image.

    Parameters
    ----------
    images : Sequence[np.ndarray]
        Uint8, 3 x H x W, in the order of ``image_ids``.

    Returns
    -------
    table : pd.DataFrame
        Columns ``<name>_true`` and ``<name>_predicted`` for object, background, position and
        colour; the index is the image id. Colour is empty for objects that have one fixed colour.
    """
    classes = {
        "object": [thing.name for thing in OBJECTS],
        "background": BACKGROUNDS,
        "position": POSITIONS,
        "colour": COLOUR_NAMES,
    }
    scenes = load_scenes(layout, image_ids.tolist())
    truths = {
        "object": [scene.objects[0].object for scene in scenes],
        "background": [scene.background for scene in scenes],
        "position": [scene.position for scene in scenes],
        "colour": [scene.objects[0].colour for scene in scenes],
    }
    predicted: dict[str, list[int]] = {name: [] for name in classes}
    for start in range(0, len(image_ids), 64):
        rows = range(start, min(start + 64, len(image_ids)))
        images_B3HW = torch.from_numpy(np.stack([images[row] for row in rows])).float() / 255
        with torch.inference_mode():
            prediction: ScenePrediction = scene_classifier(images_B3HW)
        for name in classes:
            predicted[name] += getattr(prediction, f"{name}_BC").argmax(1).tolist()
    columns = {}
    for name, labels in classes.items():
        applies = [truth != NO_COLOUR for truth in truths[name]]
        for suffix, values in (("_true", truths[name]), ("_predicted", predicted[name])):
            columns[f"{name}{suffix}"] = [
                labels[value] if known else "" for value, known in zip(values, applies)
            ]
    return pd.DataFrame(columns, index=pd.Index(image_ids, name="image"))
