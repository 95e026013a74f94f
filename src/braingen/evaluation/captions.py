"""Captions: the nearest caption of the training set to what was decoded, and how well it says what
was seen.

N images, M training captions, D text embedding width. A caption of the test set is never a
candidate.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from braingen.evaluation import identification as identify
from braingen.evaluation import uncertainty
from braingen.runtime.errors import UserError
from braingen.types import Score

METEOR_LINE = "pip install nltk && python -m nltk.downloader wordnet"
"""METEOR counts synonyms, for which it needs the word list of WordNet."""


def nearest_captions(
    decoded_ND: np.ndarray,
    training_MD: np.ndarray,
    captions: Sequence[str],
    training_image_M: np.ndarray,
    test_image_N: np.ndarray,
) -> list[str]:
    """For every decoded text embedding, the training caption whose embedding has the highest cosine
    with it.

    Raises
    ------
    UserError
        When a caption is of a test image, or shapes disagree.
    """
    shared = np.intersect1d(training_image_M, test_image_N)
    if len(shared):
        raise UserError(
            f"{len(shared)} captions to choose from are of test images, e.g. of image {shared[0]};"
            " leave them out."
        )
    if len(captions) != len(training_MD):
        raise UserError(
            f"There are {len(captions)} captions for {len(training_MD)} embeddings; they must be of"
            " equal number."
        )
    decoded = identify.unit_rows(decoded_ND, "decoded text embeddings").astype(np.float32)
    training = identify.unit_rows(training_MD, "training text embeddings").astype(np.float32)
    nearest = [
        (decoded[start : start + 64] @ training.T).argmax(1) for start in range(0, len(decoded), 64)
    ]
    return [captions[int(i)] for i in np.concatenate(nearest)]


def rouge_l(said: Sequence[str], seen: Sequence[Sequence[str]]) -> np.ndarray:
    """ROUGE-L F measure (longest common subsequence of words) against the best of an image's
    captions, N values; by torchmetrics.
    """
    from torchmetrics.functional.text.rouge import rouge_score

    return np.array(
        [
            float(
                rouge_score(one, [list(true)], accumulate="best", rouge_keys="rougeL")[
                    "rougeL_fmeasure"
                ]
            )
            for one, true in zip(said, seen)
        ]
    )


def meteor(said: Sequence[str], seen: Sequence[Sequence[str]]) -> np.ndarray:
    """METEOR against the best of an image's captions, N values; by NLTK.

    Raises
    ------
    UserError
        When NLTK or the word list of WordNet is not on this machine; with the line that gets them.
    """
    try:
        from nltk.corpus import wordnet
        from nltk.translate.meteor_score import meteor_score

        wordnet.ensure_loaded()
    except (ImportError, LookupError) as error:
        raise UserError(f"METEOR is missing its word list; get it with:  {METEOR_LINE}") from error
    words = [one.lower().split() for one in said]
    return np.array(
        [
            meteor_score([caption.lower().split() for caption in true], one)
            for one, true in zip(words, seen)
        ]
    )


def text_similarity(
    said: Sequence[str], seen: Sequence[Sequence[str]], embed: Callable[[Sequence[str]], np.ndarray]
) -> np.ndarray:
    """Cosine in CLIP's text space with the most similar of an image's captions, N values.

    Parameters
    ----------
    embed : Callable[[Sequence[str]], np.ndarray]
        Texts to embeddings (texts x D).
    """
    flat = [caption for true in seen for caption in true]
    said_ND, seen_MD = (
        identify.unit_rows(embed(said), "captions"),
        identify.unit_rows(embed(flat), "captions"),
    )
    ends = np.cumsum([len(true) for true in seen])
    return np.array(
        [
            (seen_MD[end - len(true) : end] @ one).max()
            for one, true, end in zip(said_ND, seen, ends)
        ]
    )


def caption_scores(
    said: Sequence[str],
    seen: Sequence[Sequence[str]],
    embed: Callable[[Sequence[str]], np.ndarray] | None = None,
    resamples: int = uncertainty.RESAMPLES,
    seed: int = 0,
) -> tuple[dict[str, Score], dict[str, np.ndarray], dict[str, str]]:
    """Every caption score that can be computed here.

    Parameters
    ----------
    said : Sequence[str]
        Retrieved caption of every image.
    seen : Sequence[Sequence[str]]
        The captions people wrote for it.
    embed : Callable[[Sequence[str]], np.ndarray] | None, optional
        Texts to CLIP text embeddings; without it that score is left out.

    Returns
    -------
    tuple[dict[str, Score], dict[str, np.ndarray], dict[str, str]]
        Scores by name, their values per image, and for each that is missing the sentence that says
        how to get it.

    Raises
    ------
    UserError
        When an image has no caption to compare with.
    """
    bare = [number for number, true in enumerate(seen) if not true]
    if len(said) != len(seen) or bare:
        raise UserError(
            f"{len(said)} captions were retrieved for {len(seen)} images, of which {len(bare)} have"
            " no caption to compare with."
        )
    values: dict[str, np.ndarray] = {"rouge_l": rouge_l(said, seen)}
    missing: dict[str, str] = {}
    try:
        values = {"meteor": meteor(said, seen)} | values
    except UserError as error:
        missing["meteor"] = str(error)
    if embed is not None:
        values["clip_text"] = text_similarity(said, seen, embed)
    scores = {}
    for name, each in values.items():
        interval = uncertainty.mean_interval(each, resamples, seed)
        scores[name] = Score(
            *interval, random=None, oracle=None, ridge=None, chance=None, n=len(each), pool=None
        )
    return scores, values, missing
