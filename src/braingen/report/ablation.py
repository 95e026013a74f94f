"""Page of an ablation: metric table, and images of every variant with the seen images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from braingen.data import image_grid as pictures
from braingen.data.stimuli import Stimuli
from braingen.evaluation.metrics import metric
from braingen.evaluation.uncertainty import Comparison
from braingen.report import tables
from braingen.report.rendering import render_page
from braingen.types import Score

SHOWN = 12
"""Test images on the page: the first ones, not selected."""
FIRST = (
    "object_accuracy",
    "two_way_classifier_late",
    "two_way_inception",
    "pixcorr",
    "ssim",
    "dreamsim",
)
"""Scores shown on the page if present; the metric table has all."""


class Line(NamedTuple):
    """A variant of the ablation."""

    key: str
    title: str
    folder: Path
    """Folder of its images."""
    scores: Mapping[str, Score]


def render_ablation(
    lines: Sequence[Line],
    stimuli: Stimuli,
    images: Sequence[int],
    data: str,
    compared: Sequence[Comparison],
) -> str:
    """The page as one self-contained HTML text.

    Parameters
    ----------
    lines : Sequence[Line]
        In the order of the table.
    images : Sequence[int]
        Ids of the test images.
    data : str
        Name of the data.
    compared : Sequence[Comparison]
        Differences between variants.
    """
    names = [name for name in FIRST if all(name in line.scores for line in lines)]
    rows = [(line, [line.scores[name] for name in names]) for line in lines]
    grid = [
        (
            image,
            pictures.data_uri(seen),
            [
                pictures.data_uri(pictures.open_picture(line.folder / f"{image:06d}.png"))
                for line in lines
            ],
        )
        for image, seen in pictures.seen_pictures(stimuli, list(images[:SHOWN]))
    ]
    titles = {line.key: line.title for line in lines}
    differences = [
        (titles[one.first], titles[one.second], metric(one.score).words, one)
        for one in compared
        if one.score in names
    ]
    return render_page(
        "ablation",
        rows=rows,
        heads=[metric(name).words for name in names],
        lines=lines,
        grid=grid,
        data=data,
        count=len(images),
        number=tables.number,
        compared=differences,
    )
