"""The recipe of the judge: supervised on scene descriptions, with blur and noise so that imperfect
pictures can be judged too.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import avg_pool2d, cross_entropy, interpolate

from braingen.simulation.backbones.corpus import Corpus
from braingen.simulation.backbones.training import Losses, train
from braingen.simulation.scene_classifier import SceneClassifier
from braingen.simulation.scenes import BACKGROUNDS, COLOURS, OBJECTS, POSITIONS


def train_judge(data: Corpus, folder: Path, steps: int = 1500, batch: int = 64) -> SceneClassifier:
    """Train the judge; colour is asked only of objects that come in several colours."""
    torch.manual_seed(2)
    batch = min(batch, len(data.images_N3HW))
    judge = SceneClassifier(
        objects=len(OBJECTS),
        backgrounds=len(BACKGROUNDS),
        colours=len(COLOURS),
        positions=len(POSITIONS),
    )
    labels = {name: torch.from_numpy(values) for name, values in data.labels.items()}

    def losses_of(step: int, generator: torch.Generator) -> Losses:
        rows = torch.sort(torch.randperm(len(data.images_N3HW), generator=generator)[:batch]).values
        images = torch.from_numpy(data.images_N3HW[rows.numpy()]).float() / 255
        images = interpolate(images, size=(judge.config.side,) * 2, mode="bilinear", antialias=True)
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
            verdict = judge(images)
        return {
            "object": cross_entropy(
                verdict.object_BC.float(), labels["object"][rows], label_smoothing=0.05
            ),
            "background": 0.5
            * cross_entropy(
                verdict.background_BC.float(), labels["background"][rows], label_smoothing=0.05
            ),
            "colour": 0.5
            * cross_entropy(
                verdict.colour_BC.float(),
                labels["colour"][rows],
                ignore_index=-1,
                label_smoothing=0.05,
            ),
            "position": 0.3
            * cross_entropy(
                verdict.position_BC.float(), labels["position"][rows], label_smoothing=0.05
            ),
        }

    train(
        judge,
        losses_of,
        folder,
        name="judge",
        steps=steps,
        learning_rate=2e-3,
        weight_decay=0.02,
        ema=0.99,
    )
    return judge


def accuracies(judge: SceneClassifier, data: Corpus, rows: np.ndarray) -> dict[str, float]:
    """Share of pictures whose object, background, colour and position the judge names rightly."""
    from braingen.simulation.scene_classifier import predictions

    said = predictions(judge, torch.from_numpy(data.images_N3HW[rows]).float() / 255)
    answers = {
        "object": said.object_BC,
        "background": said.background_BC,
        "colour": said.colour_BC,
        "position": said.position_BC,
    }
    result = {}
    for name, logits in answers.items():
        truth = torch.from_numpy(data.labels[name][rows])
        asked = truth >= 0
        result[name] = float((logits.argmax(1) == truth)[asked].float().mean())
    return result
