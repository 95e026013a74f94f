"""Retrieve captions for decoded text embeddings, and score them against the true captions.

N images, M training captions, D text embedding width. Captions of test images are never
candidates.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from braingen.evaluation import identification, uncertainty
from braingen.runtime.errors import UserError
from braingen.types import Score

METEOR_LINE = "pip install nltk && python -m nltk.downloader wordnet"
"""METEOR counts synonyms, so it needs the WordNet corpus."""


def nearest_captions(
    decoded_ND: np.ndarray,
    training_MD: np.ndarray,
    captions: Sequence[str],
    training_image_M: np.ndarray,
    test_image_N: np.ndarray,
) -> list[str]:
    """Return the training caption of highest cosine similarity for every decoded text embedding.

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
    decoded = identification.unit_rows(decoded_ND, "decoded text embeddings").astype(np.float32)
    training = identification.unit_rows(training_MD, "training text embeddings").astype(np.float32)
    nearest = [
        (decoded[start : start + 64] @ training.T).argmax(1) for start in range(0, len(decoded), 64)
    ]
    return [captions[int(i)] for i in np.concatenate(nearest)]


def rouge_l(predicted: Sequence[str], references: Sequence[Sequence[str]]) -> np.ndarray:
    """ROUGE-L F measure against the best reference of each image, N values (torchmetrics)."""
    from torchmetrics.functional.text.rouge import rouge_score

    return np.array(
        [
            float(
                rouge_score(one, [list(true)], accumulate="best", rouge_keys="rougeL")[
                    "rougeL_fmeasure"
                ]
            )
            for one, true in zip(predicted, references)
        ]
    )


def meteor(predicted: Sequence[str], references: Sequence[Sequence[str]]) -> np.ndarray:
    """METEOR against the best reference of each image, N values (NLTK).

    Raises
    ------
    UserError
        When NLTK or the WordNet corpus is missing; names the command that installs them.
    """
    try:
        from nltk.corpus import wordnet
        from nltk.translate.meteor_score import meteor_score

        wordnet.ensure_loaded()
    except (ImportError, LookupError) as error:
        raise UserError(f"METEOR needs the WordNet corpus; get it with:  {METEOR_LINE}") from error
    words = [one.lower().split() for one in predicted]
    return np.array(
        [
            meteor_score([caption.lower().split() for caption in true], one)
            for one, true in zip(words, references)
        ]
    )


def text_similarity(
    predicted: Sequence[str],
    references: Sequence[Sequence[str]],
    embed: Callable[[Sequence[str]], np.ndarray],
) -> np.ndarray:
    """Cosine with the most similar reference in CLIP's text space, N values.

    Parameters
    ----------
    embed : Callable[[Sequence[str]], np.ndarray]
        Texts to embeddings (texts x D).
    """
    flat = [caption for true in references for caption in true]
    predicted_ND = identification.unit_rows(embed(predicted), "captions")
    reference_MD = identification.unit_rows(embed(flat), "captions")
    ends = np.cumsum([len(true) for true in references])
    return np.array(
        [
            (reference_MD[end - len(true) : end] @ one).max()
            for one, true, end in zip(predicted_ND, references, ends)
        ]
    )


def caption_scores(
    predicted: Sequence[str],
    references: Sequence[Sequence[str]],
    embed: Callable[[Sequence[str]], np.ndarray] | None = None,
    resamples: int = uncertainty.RESAMPLES,
    seed: int = 0,
) -> tuple[dict[str, Score], dict[str, np.ndarray], dict[str, str]]:
    """Compute every caption score whose requirements are installed.

    Parameters
    ----------
    predicted : Sequence[str]
        Retrieved caption of every image.
    references : Sequence[Sequence[str]]
        True captions of every image.
    embed : Callable[[Sequence[str]], np.ndarray] | None, optional
        Texts to CLIP text embeddings; without it that score is left out.

    Returns
    -------
    tuple[dict[str, Score], dict[str, np.ndarray], dict[str, str]]
        Scores by name, their values per image, and for each missing score how to get it.

    Raises
    ------
    UserError
        When an image has no caption to compare with.
    """
    bare = [number for number, true in enumerate(references) if not true]
    if len(predicted) != len(references) or bare:
        raise UserError(
            f"{len(predicted)} captions were retrieved for {len(references)} images, of which"
            f" {len(bare)} have no caption to compare with."
        )
    values: dict[str, np.ndarray] = {"rouge_l": rouge_l(predicted, references)}
    missing: dict[str, str] = {}
    try:
        values = {"meteor": meteor(predicted, references)} | values
    except UserError as error:
        missing["meteor"] = str(error)
    if embed is not None:
        values["clip_text"] = text_similarity(predicted, references, embed)
    scores = {}
    for name, each in values.items():
        interval = uncertainty.mean_interval(each, resamples, seed)
        scores[name] = Score(
            *interval, random=None, oracle=None, ridge=None, chance=None, n=len(each), pool=None
        )
    return scores, values, missing
