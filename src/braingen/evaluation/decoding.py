"""Score decoded embeddings (CLIP-cos, retrieval) of a decoder, its levels or its experts.

N images, T tokens, D width.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from braingen.evaluation import identification, uncertainty
from braingen.evaluation.image_pairs import check_ids
from braingen.types import Score

FEWEST_CANDIDATES = 5
"""Retrieval among fewer images is not scored: with one or two candidates, chance is high."""


def decoder_scores(
    decoded_ND: np.ndarray,
    true_ND: np.ndarray,
    image_N: np.ndarray,
    pool: int = identification.RETRIEVAL_POOL,
    draws: int = identification.RETRIEVAL_DRAWS,
    resamples: int = uncertainty.RESAMPLES,
    seed: int = 0,
) -> tuple[dict[str, Score], pd.DataFrame]:
    """Compute CLIP-cos, and retrieval in both directions.

    Parameters
    ----------
    decoded_ND, true_ND : np.ndarray
        Decoded and true CLIP embeddings in the same order, tokens flattened or not.
    image_N : np.ndarray
        Their image ids.
    pool, draws : int, optional
        Candidates of a retrieval, and random pools to average over. With at most ``pool`` images
        all of them are candidates of a single draw, and the score's ``pool`` is their number.

    Returns
    -------
    tuple[dict[str, Score], pd.DataFrame]
        Scores by name, and the values of every image (index: image id). With fewer than
        `FEWEST_CANDIDATES` images retrieval is left out.
    """
    ids = check_ids(image_N, len(decoded_ND), "decoded embeddings")
    order = np.argsort(ids)  # pools hold the same images in whatever order they are given
    decoded, true, ids = np.asarray(decoded_ND)[order], np.asarray(true_ND)[order], ids[order]
    count = len(ids)
    cosines = identification.cosine(decoded, true)
    interval = uncertainty.mean_interval(cosines, resamples, seed)
    scores = {
        "clip_cos": Score(
            *interval, random=None, oracle=None, ridge=None, chance=None, n=count, pool=None
        )
    }
    table = pd.DataFrame({"clip_cos": cosines}, index=pd.Index(ids, name="image"))
    if count < FEWEST_CANDIDATES:
        return scores, table
    pools = identification.draw_pools(count, pool, draws, seed)
    both = identification.retrieval(decoded, true, pools)
    for name, way in zip(identification.BothWays._fields, both):
        interval = uncertainty.ratio_interval(way.found_N, way.queries_N, resamples, seed)
        scores[f"retrieval_{name}"] = Score(
            *interval,
            random=None,
            oracle=None,
            ridge=None,
            chance=1 / way.pool,
            n=count,
            pool=way.pool,
        )
        table[f"retrieval_{name}"] = way.found_N / np.maximum(way.queries_N, 1)
    return scores, table


def scores_by_part(
    parts: Mapping[str, np.ndarray], true_ND: np.ndarray, image_N: np.ndarray, **settings: int
) -> pd.DataFrame:
    """Compute `decoder_scores` for every part of a decoder.

    Parameters
    ----------
    parts : Mapping[str, np.ndarray]
        Decoded embeddings by part, e.g. ``{"level 0": ..., "level 1, expert 3": ...}``.
    **settings : int
        As for `decoder_scores`.

    Returns
    -------
    pd.DataFrame
        One row per part and score: part, score, value, low, high, chance, n, pool.
    """
    rows = []
    for part, decoded_ND in parts.items():
        for name, score in decoder_scores(decoded_ND, true_ND, image_N, **settings)[0].items():
            fields = score._asdict()
            rows.append(
                {"part": part, "score": name}
                | {key: fields[key] for key in ("value", "low", "high", "chance", "n", "pool")}
            )
    return pd.DataFrame(rows)
