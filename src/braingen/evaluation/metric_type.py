"""What a metric is: title, meaning, group of the report, direction, axis and digits of a score.

Apart from the registry (metrics.py), since the files that register themselves there need it.
"""

from __future__ import annotations

from typing import NamedTuple

WHICH, WHAT, ALIKE, CLOSE, BRAIN, CAPTION, PEOPLE = (
    "Which image was seen?",
    "What was in the image?",
    "How similar are the two images?",
    "How close is the decoded embedding, without an image?",
    "Do the generated images predict the measured responses?",
    "How well does the decoded caption describe the image?",
    "How do people rate the images?",
)
GROUPS = (WHICH, WHAT, ALIKE, CLOSE, BRAIN, CAPTION, PEOPLE)
"""In the order of the report."""
SHARE, LIKERT = (0.0, 1.0), (1.0, 7.0)


class Metric(NamedTuple):
    """A score."""

    title: str
    """In tables."""
    words: str
    """In the report."""
    meaning: str
    """How it is computed, one line; {pool} is the number of candidates."""
    group: str
    place: int
    """In the report's group."""
    higher_is_better: bool = True
    percent: bool = False
    """Published, and printed in tables, in per cent; stored as a fraction."""
    digits: int = 3
    axis: tuple[float, float] | None = SHARE
    """Ends of its axis; None for an axis that fits the figures."""
    unit: str = ""
    yes_or_no: bool = False
    """Whether an image is either right or wrong, so that the score is a share of images."""
