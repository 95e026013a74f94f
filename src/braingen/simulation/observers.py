"""What looks at pictures of simulated scenes: the tiny CLIP, and the judge with its features and read-outs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from braingen.clip.cache import fingerprint_of_files
from braingen.clip.image_target import CLIPImageEncoder
from braingen.data.nsd import Layout
from braingen.diffusion.sdxl import TINY
from braingen.scores.sheet import ReadOut
from braingen.simulation.judge import Judge, Verdict
from braingen.simulation.pictures import load_scenes
from braingen.simulation.scenes import BACKGROUNDS, COLOUR_NAMES, NO_COLOUR, OBJECTS, POSITIONS


class ClipFeatures:
    """Image embeddings of the backbone's CLIP; the sampler is conditioned on them, so they flatter it (the judge does not)."""

    name = "clip"

    def __init__(self, encoder: CLIPImageEncoder, weights: str) -> None:
        self._encoder, self.weights = encoder, weights

    @torch.inference_mode()
    def features(self, images_B3HW: Tensor) -> Tensor:
        """B x D."""
        return self._encoder(images_B3HW).target_BTD.flatten(1)


class JudgeOnce:
    """The judge, whose features and read-outs of the same batch come from one forward pass.

    Parameters
    ----------
    judge : Judge
    """

    def __init__(self, judge: Judge) -> None:
        self._judge = judge
        self._verdicts = WeakTensorKeyDictionary()

    @torch.inference_mode()
    def __call__(self, images_B3HW: Tensor) -> Verdict:
        """The verdict on a batch; it is kept for as long as the batch is."""
        if images_B3HW not in self._verdicts:
            self._verdicts[images_B3HW] = self._judge(images_B3HW)
        return self._verdicts[images_B3HW]


class JudgeFeatures:
    """One layer of the judge: 'early' or 'late'."""

    def __init__(self, judge: JudgeOnce, layer: str, weights: str) -> None:
        self.name = f"judge_{layer}"
        self._judge, self._layer, self.weights = judge, f"{layer}_BF", weights

    def features(self, images_B3HW: Tensor) -> Tensor:
        """B x features of the layer."""
        return getattr(self._judge(images_B3HW), self._layer)


def load_judge(folder: Path = TINY / "judge") -> Judge:
    """The shipped judge."""
    return Judge.from_pretrained(folder, torch_dtype=torch.float32).eval()


def judge_networks(judge: JudgeOnce, folder: Path = TINY / "judge") -> list[JudgeFeatures]:
    """Its early and late features, as networks of the score sheet."""
    weights = fingerprint_of_files(folder)
    return [JudgeFeatures(judge, layer, weights) for layer in ("early", "late")]


def readouts(judge: JudgeOnce, layout: Layout, image_ids: np.ndarray) -> list[ReadOut]:
    """Object, background and position as the judge names them, beside what was in the scenes of a simulated data folder."""
    scenes = dict(zip(image_ids.tolist(), load_scenes(layout, image_ids.tolist())))
    there = {
        "object": ({image: scene.objects[0].object for image, scene in scenes.items()}, len(OBJECTS)),
        "background": ({image: scene.background for image, scene in scenes.items()}, len(BACKGROUNDS)),
        "position": ({image: scene.position for image, scene in scenes.items()}, len(POSITIONS)),
    }

    def names(what: str) -> Callable[[Tensor], Tensor]:
        def predict(images_B3HW: Tensor) -> Tensor:
            return getattr(judge(images_B3HW), f"{what}_BC").argmax(1)

        return predict

    return [ReadOut(what, names(what), truth, 1 / classes) for what, (truth, classes) in there.items()]


def spoken(judge: Judge, layout: Layout, image_ids: np.ndarray, pictures: Sequence[np.ndarray]) -> pd.DataFrame:
    """What was in every scene and what the judge sees in the picture, in words.

    Parameters
    ----------
    pictures : uint8, 3 x H x W, in the order of ``image_ids``

    Returns
    -------
    table : columns ``<what>_true`` and ``<what>_said`` for object, background, position and colour; the index is the image id. Colour is
        empty for objects that keep their own colours.
    """
    words = {"object": [thing.name for thing in OBJECTS], "background": BACKGROUNDS, "position": POSITIONS, "colour": COLOUR_NAMES}
    scenes = load_scenes(layout, image_ids.tolist())
    there = {
        "object": [scene.objects[0].object for scene in scenes],
        "background": [scene.background for scene in scenes],
        "position": [scene.position for scene in scenes],
        "colour": [scene.objects[0].colour for scene in scenes],
    }
    said: dict[str, list[int]] = {what: [] for what in words}
    for start in range(0, len(image_ids), 64):
        some = range(start, min(start + 64, len(image_ids)))
        images = torch.from_numpy(np.stack([pictures[row] for row in some])).float() / 255
        with torch.inference_mode():
            verdict: Verdict = judge(images)
        for what in words:
            said[what] += getattr(verdict, f"{what}_BC").argmax(1).tolist()
    columns = {}
    for what, names in words.items():
        asked = [truth != NO_COLOUR for truth in there[what]]
        columns[f"{what}_true"] = [names[truth] if ask else "" for truth, ask in zip(there[what], asked)]
        columns[f"{what}_said"] = [names[answer] if ask else "" for answer, ask in zip(said[what], asked)]
    return pd.DataFrame(columns, index=pd.Index(image_ids, name="image"))
