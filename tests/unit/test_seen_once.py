"""A score sheet reads every picture once, and what several scores ask of the judge comes from one
forward pass; large sets are streamed.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch

from braingen.evaluation import feature_store
from braingen.evaluation import image_pairs as pairs
from braingen.evaluation.feature_store import as_scored
from braingen.evaluation.image_pairs import ImageSource
from braingen.evaluation.metric_table import SceneReadout, score_images
from braingen.evaluation.scene_observers import (
    CachedSceneClassifier,
    classifier_networks,
    load_scene_classifier,
)

IDS = np.arange(5)


class Read(Sequence):
    """Pictures as they come from files; counts how often."""

    def __init__(self, seed: int) -> None:
        draws = np.random.default_rng(seed)
        self.pictures = [draws.integers(0, 256, (3, 32, 32), dtype=np.uint8) for _ in IDS]
        self.times = 0

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, row):  # type: ignore[no-untyped-def]
        self.times += 1
        return self.pictures[row]


class Judge(torch.nn.Module):
    """The shipped judge; counts how often it looks."""

    def __init__(self) -> None:
        super().__init__()
        self.judge = load_scene_classifier()
        self.looks = 0

    def forward(self, images_B3HW: torch.Tensor):  # type: ignore[no-untyped-def]
        self.looks += 1
        return self.judge(images_B3HW)


def sheet(truth: Read, recons: Read, judge: Judge):  # type: ignore[no-untyped-def]
    once = CachedSceneClassifier(judge)  # type: ignore[arg-type]
    readouts = [
        SceneReadout(
            "object",
            lambda x: once(x).object_BC.argmax(1),
            {int(image): 0 for image in IDS},
            1 / 18,
        )
    ]
    return score_images(
        truth, IDS, recons, IDS, classifier_networks(once), readouts=readouts, resamples=20
    )


@pytest.mark.parametrize("in_memory", [pairs.IN_MEMORY, 0])
@pytest.mark.slow
def test_what_is_kept_changes_no_score(monkeypatch, in_memory):
    monkeypatch.setattr(pairs, "IN_MEMORY", in_memory)
    monkeypatch.setattr(feature_store, "IN_MEMORY", in_memory)
    truth, recons, judge = Read(0), Read(1), Judge()
    found = sheet(truth, recons, judge)
    if in_memory:
        assert truth.times == recons.times == len(IDS)
        assert judge.looks == 2  # at the true pictures, and at the others
    else:
        assert min(truth.times, recons.times) > len(IDS) and judge.looks > 2
    with torch.no_grad():
        verdicts = [
            judge.judge(as_scored(ImageSource(each, IDS, "pictures"), slice(0, 5)))
            for each in (truth, recons)
        ]
    r = np.corrcoef(*(each.late_BF.double().numpy() for each in verdicts))[:5, 5:]
    np.testing.assert_allclose(
        found.table["two_way_classifier_late"], (r < np.diag(r)[None]).sum(0) / 4
    )
    np.testing.assert_array_equal(
        found.table["object_accuracy"], (verdicts[1].object_BC.argmax(1) == 0).numpy()
    )


def test_a_batch_that_is_gone_is_forgotten():
    judge = Judge()
    once = CachedSceneClassifier(judge)  # type: ignore[arg-type]
    for seed in range(3):
        batch = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(seed))
        assert torch.equal(once(batch).late_BF, once(batch).late_BF) and judge.looks == seed + 1
        torch.testing.assert_close(once(batch).late_BF, judge.judge(batch).late_BF)
    del batch
    assert len(once._predictions) == 0
