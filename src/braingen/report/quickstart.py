"""The page of `braingen quickstart`: seen images and images decoded from simulated activity."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from PIL import Image

from braingen.data.image_grid import data_uri
from braingen.report import tables
from braingen.report.rendering import render_page


class ImagePair(NamedTuple):
    """One test image."""

    image: int
    """Its id."""
    seen: Image.Image
    decoded: Image.Image
    caption: str
    """Caption of the seen image."""


def render(pairs: Sequence[ImagePair], scores: dict[str, dict[str, Any]]) -> str:
    """The page as one self-contained HTML text: no request leaves it.

    Parameters
    ----------
    pairs : Sequence[ImagePair]
        In display order.
    scores : dict[str, dict[str, Any]]
        Score name -> value, low, high, chance, n, measured over all test images of the subject.
    """
    cards = [
        {
            "image": pair.image,
            "seen": data_uri(pair.seen),
            "decoded": data_uri(pair.decoded),
            "caption": pair.caption,
        }
        for pair in pairs
    ]
    numbers = sorted({int(score["n"]) for score in scores.values() if score.get("n")})
    return render_page(
        "quickstart", cards=cards, tiles=tables.tiles(scores), total=max(numbers, default=0)
    )
