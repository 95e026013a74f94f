"""Whether an encoder knows how close its embeddings are: shares of test images inside the limits
that held-out training images gave, and the order of images by expected cosine.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.stats import spearmanr
import torch

from braingen.config import Config
from braingen.data.batches import RepeatBatches
from braingen.data.betas import Betas
from braingen.data.trials import group_repeats, test_trials
from braingen.encoders.confidence import angle, read_features
from braingen.encoders.trained import load_embedding_decoder
from braingen.evaluation.uncertainty import share_interval
from braingen.runtime.data_layout import Layout
from braingen.runtime.device import device_of
from braingen.targets.tables import Targets

LEVELS = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
CERTAINTY = "certainty.json"
MOST_RESAMPLES = 2000


@torch.no_grad()
def calibration_of(config: Config, targets: Targets) -> dict[str, Any] | None:
    """Compare expected with true cosines of the first subject's test images.

    Returns
    -------
    dict[str, Any] | None
        ``levels``, each with the share of images above the limit for that level and its exact
        binomial 95 % interval; ``rank``, Spearman's correlation of expected and true cosine with
        its bootstrap interval; ``images``, the expected, least (level 0.9) and true cosine of
        every image. None for an encoder that was not calibrated for these presentations.
    """
    decoder = load_embedding_decoder(config, "image").to(device_of(config)).eval()
    confidence = decoder.confidence
    if confidence is None:
        return None
    layout, subject = Layout.of(config.data.root), config.data.subjects[0]
    repeats = group_repeats(test_trials(layout, subject))
    limits: dict[float, list[np.ndarray]] = {level: [] for level in LEVELS}
    expected, true = [], []
    for batch in RepeatBatches(repeats, Betas.of(layout, subject), subject, 64):
        present_BR = batch.present_BR.to(decoder.device)
        voxels_BV = batch.voxels_BRV.flatten(0, 1).to(decoder.device)
        each_BRTD = decoder(voxels_BV, subject).backbone_BTD.unflatten(0, present_BR.shape)
        read = read_features(each_BRTD, present_BR, decoder.predicted)
        truth_BTD = decoder.standardised(targets.image(batch.image_B.numpy()).to(decoder.device))
        true.append(angle(read.embedding_BTD, truth_BTD).cos().cpu().numpy())
        for level, found in limits.items():
            close = confidence(read.features_BF, present_BR.sum(1), level)
            found.append(close.least_B.cpu().numpy())
        expected.append(close.expected_B.cpu().numpy())
    expected_N, true_N = np.concatenate(expected), np.concatenate(true)
    known_N = np.isfinite(expected_N)
    if known_N.sum() < 2:
        return None
    rows = []
    for level, found in limits.items():
        inside = share_interval((true_N >= np.concatenate(found))[known_N].astype(float))
        rows.append({"level": level, **inside._asdict()})
    least_N = np.concatenate(limits[0.9])
    images = [
        {"image": int(image), "expected": float(e), "least": float(low), "true": float(t)}
        for image, e, low, t in zip(repeats.image_N, expected_N, least_N, true_N)
        if np.isfinite(e)
    ]
    return {
        "levels": rows,
        "rank": _rank(expected_N[known_N], true_N[known_N], config),
        "images": images,
    }


def _rank(expected_N: np.ndarray, true_N: np.ndarray, config: Config) -> dict[str, float]:
    """Spearman's correlation with its bootstrap 95 % interval over images."""
    draws = np.random.default_rng(config.run.seed)
    count = min(config.evaluation.bootstrap, MOST_RESAMPLES)
    rows_KN = draws.integers(len(true_N), size=(count, len(true_N)))
    resampled_K = [spearmanr(expected_N[rows], true_N[rows]).statistic for rows in rows_KN]
    low, high = np.nanpercentile(resampled_K, (2.5, 97.5))
    value = spearmanr(expected_N, true_N).statistic
    return {"value": float(value), "low": float(low), "high": float(high)}
