"""Whether an encoder knows how close its embeddings are: shares of test images inside the limits
that held-out training images gave, and the order of images by expected cosine.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.stats import spearmanr

from braingen.config import Config
from braingen.encoders.confidence import angle
from braingen.evaluation.decoded_images import DecodedImages
from braingen.evaluation.uncertainty import share_interval

LEVELS = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
CERTAINTY = "certainty.json"
MOST_RESAMPLES = 2000


def calibration_of(config: Config, decoded: DecodedImages) -> dict[str, Any] | None:
    """Compare expected with true cosines of the first subject's test images.

    Returns
    -------
    dict[str, Any] | None
        ``levels``, each with the share of images above the limit for that level and its exact
        binomial 95 % interval; ``rank``, Spearman's correlation of expected and true cosine with
        its bootstrap interval; ``images``, the expected, least (level 0.9) and true cosine of
        every image. None for an encoder that was not calibrated for these presentations.
    """
    confidence, read = decoded.confidence, decoded.read
    if confidence is None or read is None:
        return None
    true_N = angle(read.embedding_BTD, decoded.true_NTD).cos().numpy()
    close = {level: confidence(read.features_BF, decoded.times_N, level) for level in LEVELS}
    expected_N = close[0.9].expected_B.numpy()
    known_N = np.isfinite(expected_N)
    if known_N.sum() < 2:
        return None
    rows = []
    for level, found in close.items():
        inside = share_interval((true_N >= found.least_B.numpy())[known_N].astype(float))
        rows.append({"level": level, **inside._asdict()})
    images = [
        {"image": int(image), "expected": float(e), "least": float(low), "true": float(t)}
        for image, e, low, t in zip(decoded.image_N, expected_N, close[0.9].least_B.numpy(), true_N)
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
