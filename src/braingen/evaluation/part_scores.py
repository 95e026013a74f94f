"""Scores of every level and every expert of the image encoder."""

from __future__ import annotations

import numpy as np
import pandas as pd

from braingen.config import Config
from braingen.evaluation.decoded_images import DecodedImages
from braingen.evaluation.decoding import scores_by_part


def scores_of_parts(config: Config, decoded: DecodedImages, ids: np.ndarray) -> pd.DataFrame:
    """Score every level and every expert of the image encoder on its own.

    Embeddings are averaged over presentations, before the prior, and compared after subtracting
    the training mean.

    Parameters
    ----------
    ids : np.ndarray
        The images that are scored.
    """
    kept_N = np.isin(decoded.image_N, ids)
    return scores_by_part(
        {name: rows_NTD.flatten(1).numpy()[kept_N] for name, rows_NTD in decoded.parts.items()},
        decoded.true_NTD.flatten(1).numpy()[kept_N],
        decoded.image_N[kept_N],
        resamples=config.evaluation.bootstrap,
        pool=config.evaluation.retrieval_pool,
        draws=config.evaluation.retrieval_draws,
        seed=config.run.seed,
    )
