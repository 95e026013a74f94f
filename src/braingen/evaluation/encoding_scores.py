"""Decoding by an encoding model, as a baseline of a run beside ridge regression."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from braingen.config import Config
from braingen.data.betas import Betas
from braingen.data.trials import Repeats, group_repeats, test_trials
from braingen.encoding_model.run import decode_with, load_encoding, mean_responses
from braingen.runtime.data_layout import Layout
from braingen.targets.tables import Targets


def test_responses(config: Config, ids: np.ndarray) -> np.ndarray:
    """Responses to test images in the order of ``ids``, averaged as ``generation.repeats`` says."""
    layout, subject = Layout.of(config.data.root), config.data.subjects[0]
    repeats = group_repeats(test_trials(layout, subject))
    place = {int(image): row for row, image in enumerate(repeats.image_N)}
    rows_NR = repeats.rows_NR[[place[int(image)] for image in ids]]
    first = config.generation.repeats == "first"
    return mean_responses(Repeats(ids, rows_NR), Betas.of(layout, subject), first)


test_responses.__test__ = False  # type: ignore[attr-defined]  # not a test, whatever its name says


def encoding_embeddings(config: Config, targets: Targets, ids: np.ndarray) -> Tensor:
    """Decode the test images' embeddings by the run's encoding model, in CLIP's own units."""
    trained = load_encoding(config, targets)
    true_ND = targets.image(ids).flatten(1).numpy()
    return torch.from_numpy(decode_with(trained, test_responses(config, ids), true_ND)[0])
