"""The page of a run of several subjects: scores, first images and links to each page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from braingen.data import image_grid as pictures
from braingen.evaluation.metrics import metric
from braingen.report import tables
from braingen.report.inputs import ReportInputs
from braingen.report.rendering import render_page

SHOWN = 12
"""Test images of every subject on the page: the first ones, not selected."""


class SubjectPage(NamedTuple):
    """A subject of the run."""

    inputs: ReportInputs
    link: str
    """Path of its page, relative to the run folder."""


def render_subjects(
    subjects: Sequence[SubjectPage], mean: Mapping[str, Mapping[str, float | None]]
) -> str:
    """The page as one self-contained HTML text.

    Parameters
    ----------
    subjects : Sequence[SubjectPage]
        In the order of the columns.
    mean : Mapping[str, Mapping[str, float | None]]
        Score -> value, low, high and baselines of the mean over subjects; empty where nothing was
        scored.
    """
    rows = [
        (
            metric(name).words,
            score,
            [subject.inputs.scores.get(name, {}).get("value") for subject in subjects],
        )
        for name, score in mean.items()
    ]
    grids = []
    for subject in subjects:
        shown = list(subject.inputs.images[:SHOWN])
        seen = [
            (image, pictures.data_uri(picture))
            for image, picture in pictures.seen_pictures(subject.inputs.stimuli, shown)
        ]
        generated = [
            (
                image,
                pictures.data_uri(pictures.open_picture(subject.inputs.pictures["brain"][image])),
            )
            for image in shown
        ]
        grids.append((subject, seen, generated))
    simulated = subjects[0].inputs.simulated
    return render_page(
        "subjects",
        rows=rows,
        subjects=subjects,
        grids=grids,
        simulated=simulated,
        number=tables.number,
    )
