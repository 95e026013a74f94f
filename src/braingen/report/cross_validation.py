"""Page of a cross-validation: scores with intervals, ridge regression and random voxels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from braingen.data.response_reliability import KnownReliability
from braingen.evaluation.folds import Difference, FoldRow
from braingen.report import figures, reliability, tables
from braingen.report.rendering import render_page

WORDS = {
    "clip_cos": ("Cosine", "of decoded and true embedding"),
    "clip_cos_centred": (
        "Cosine around the training mean",
        "of decoded and true embedding, minus the training mean",
    ),
    "two_way_embedding": (
        "Two-way identification of the embedding",
        "the decoded embedding is closer to its image's embedding than to another left-out image's",
    ),
    "retrieval_brain_to_image": (
        "Retrieval",
        "the nearest embedding of the left-out fold is that of the image",
    ),
}
"""Score -> title and meaning."""


def render_cross_validation(
    rows: Sequence[FoldRow],
    differences: Sequence[Difference],
    facts: Mapping[str, Any],
    methods: Mapping[str, str],
    reliable: Mapping[int, KnownReliability],
) -> str:
    """The page as one self-contained HTML text.

    Parameters
    ----------
    rows, differences : Sequence[FoldRow]
        Of :func:`braingen.evaluation.folds.pooled`.
    facts : Mapping[str, Any]
        Data, modality, backbone, encoder, folds, subjects, seed.
    methods : Mapping[str, str]
        Method -> its name.
    reliable : Mapping[int, KnownReliability]
        Reliability of the responses by subject.
    """
    reach = max((abs(x) for each in differences for x in (each.low, each.high)), default=1.0) or 1.0
    scores = list(dict.fromkeys(row.score for row in rows))
    return render_page(
        "cross_validation",
        facts=facts,
        images=max(row.n for row in rows),
        scores=[(*WORDS[score], [row for row in rows if row.score == score]) for score in scores],
        differences=[
            (WORDS[each.score][0], each, figures.difference_chart(each._asdict(), reach))
            for each in differences
        ],
        methods=methods,
        simulated=False,
        reliability=[reliability.of_subject(*each) for each in reliable.items()],
        number=tables.number,
        p_value=tables.p_value,
    )
