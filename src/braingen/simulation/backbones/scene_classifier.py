"""Train the scene classifier on scene descriptions, with blur and noise for imperfect images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import avg_pool2d, cross_entropy, interpolate

from braingen.simulation.backbones.corpus import Corpus
from braingen.simulation.backbones.training import Losses, train
from braingen.simulation.scene_classifier import SceneClassifier
from braingen.simulation.scenes import BACKGROUNDS, COLOURS, OBJECTS, POSITIONS


def train_scene_classifier(
    data: Corpus, folder: Path, steps: int = 1500, batch: int = 64
) -> SceneClassifier:
    """Train the scene classifier; colour only on objects that come in several colours."""
    torch.manual_seed(2)
    batch = min(batch, len(data.images_N3HW))
    classifier = SceneClassifier(
        objects=len(OBJECTS),
        backgrounds=len(BACKGROUNDS),
        colours=len(COLOURS),
        positions=len(POSITIONS),
    )
    labels = {name: torch.from_numpy(values) for name, values in data.labels.items()}

    def losses_of(step: int, generator: torch.Generator) -> Losses:
        rows = torch.sort(torch.randperm(len(data.images_N3HW), generator=generator)[:batch]).values
        images = torch.from_numpy(data.images_N3HW[rows.numpy()]).float() / 255
        images = interpolate(
            images, size=(classifier.config.side,) * 2, mode="bilinear", antialias=True
        )
        blurred = interpolate(avg_pool2d(images, 2), size=images.shape[-2:], mode="bilinear")
        blur = torch.rand((batch, 1, 1, 1), generator=generator) * (
            torch.rand((batch, 1, 1, 1), generator=generator) < 0.5
        )
        noise = (
            0.06
            * torch.rand((batch, 1, 1, 1), generator=generator)
            * torch.randn(images.shape, generator=generator)
        )
        images = (images.lerp(blurred, blur) + noise).clamp(0, 1)
        with torch.autocast("cpu", torch.bfloat16):
            prediction = classifier(images)
        return {
            "object": cross_entropy(
                prediction.object_BC.float(), labels["object"][rows], label_smoothing=0.05
            ),
            "background": 0.5
            * cross_entropy(
                prediction.background_BC.float(), labels["background"][rows], label_smoothing=0.05
            ),
            "colour": 0.5
            * cross_entropy(
                prediction.colour_BC.float(),
                labels["colour"][rows],
                ignore_index=-1,
                label_smoothing=0.05,
            ),
            "position": 0.3
            * cross_entropy(
                prediction.position_BC.float(), labels["position"][rows], label_smoothing=0.05
            ),
        }

    train(
        classifier,
        losses_of,
        folder,
        name="scene_classifier",
        steps=steps,
        learning_rate=2e-3,
        weight_decay=0.02,
        ema=0.99,
    )
    return classifier


def accuracies(classifier: SceneClassifier, data: Corpus, rows: np.ndarray) -> dict[str, float]:
    """Accuracy of object, background, colour and position."""
    from braingen.simulation.scene_classifier import predictions

    predicted = predictions(classifier, torch.from_numpy(data.images_N3HW[rows]).float() / 255)
    answers = {
        "object": predicted.object_BC,
        "background": predicted.background_BC,
        "colour": predicted.colour_BC,
        "position": predicted.position_BC,
    }
    result = {}
    for name, logits in answers.items():
        truth = torch.from_numpy(data.labels[name][rows])
        known = truth >= 0
        result[name] = float((logits.argmax(1) == truth)[known].float().mean())
    return result
