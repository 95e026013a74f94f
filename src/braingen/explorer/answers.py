"""Answers in the form in which the page reads them."""

from __future__ import annotations

import base64
from functools import lru_cache
import io
from typing import Any

import matplotlib
import numpy as np
from PIL import Image

from braingen import __version__
from braingen.data.places import ColumnPlaces
from braingen.evaluation.metrics import METRICS, metric
from braingen.explorer.ablating import level_sizes
from braingen.explorer.explored_run import ExploredRun
from braingen.explorer.generating import ExploredImage
from braingen.explorer.maps import BrainMap, form_of
from braingen.explorer.session import Session, Spread

SPREAD_TOP = 0.3
"""Standard deviation at the bright end of the colours of a spread, images in [0, 1]."""
SHOWN_SCORES = ("two_way_clip", "retrieval_brain_to_image", "clip_cos", "pixcorr", "ssim")


def described(session: Session) -> dict[str, Any]:
    """All that the page has to know before anything is computed."""
    return {
        "version": __version__,
        "candidates": session.candidates,
        "spread_top": SPREAD_TOP,
        "runs": [_run(run) for run in session.runs],
        "comparable": _comparable(session),
    }


def _run(run: ExploredRun) -> dict[str, Any]:
    return {
        "name": run.name,
        "folder": run.folder,
        "simulated": run.simulated,
        "subject": run.subject,
        "images": [each._asdict() for each in run.images],
        "presentations": len(run.responses(run.images[0].image)),
        "voxels": run.decoder.voxel_count(run.subject),
        "levels": {
            encoder: list(sizes)
            for encoder in ("image", "text")
            if (sizes := level_sizes(run, encoder))
        },
        "routed": {
            "image": run.decoder.router_image is not None,
            "text": run.decoder.router_text is not None,
        },
        "steps": run.generation.steps,
        "preview_steps": run.generation.preview_steps,
        "notes": run.notes,
        "regions": [
            {"name": name, "voxels": int(inside_V.sum())} for name, inside_V in run.regions.items()
        ],
        "tuning": list(run.tuning),
        "form": form_of(run),
        "where": (
            "Where the columns of the responses lie is not known."
            if isinstance(run.places, ColumnPlaces)
            else ""
        ),
        "scores": {
            name: {
                "title": metric(name).words,
                **{key: run.scores[name].get(key) for key in ("value", "low", "high", "n")},
            }
            for name in SHOWN_SCORES
            if name in run.scores and name in METRICS
        },
    }


@lru_cache(maxsize=1)  # reads all images of two runs
def _comparable(session: Session) -> list[int]:
    """Test images that two runs have in common: same id, same picture."""
    if len(session.runs) < 2:
        return []
    first, second = session.runs
    shared = set(second.image_ids())
    return [
        image
        for image in first.image_ids()
        if image in shared and _alike(first.seen(image), second.seen(image))
    ]


def _alike(first: Image.Image, second: Image.Image) -> bool:
    """Whether two pictures are the same, small differences of their storage aside."""
    pair = [
        np.asarray(picture.convert("RGB").resize((32, 32)), dtype=np.float32)
        for picture in (first, second)
    ]
    return float(np.abs(pair[0] - pair[1]).mean()) < 4


def uri(picture_HW3: np.ndarray) -> str:
    """An image as text that can stand in ``src``; PNG, so that nothing is lost."""
    buffer = io.BytesIO()
    Image.fromarray(picture_HW3).save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def encoded_image(found: ExploredImage) -> dict[str, Any]:
    """A generated image and its measures."""
    return {
        "picture": uri(found.picture_HW3),
        "frames": [uri(frame) for frame in found.frames],
        "frame_steps": found.frame_steps,
        "times": found.times,
        "weights": found.weights,
        "voxels": found.voxels,
        "cosine": found.cosine,
        "pixcorr": found.pixcorr,
        "steps": found.steps,
        "seconds": found.seconds,
    }


def encoded_spread(found: Spread) -> dict[str, Any]:
    """A spread as a picture, and the images that it is of."""
    share_HW = np.clip(found.deviation_HW / SPREAD_TOP, 0, 1)
    coloured_HW4 = matplotlib.colormaps["inferno"](share_HW)
    return {
        "picture": uri((coloured_HW4[..., :3] * 255).round().astype(np.uint8)),
        "candidates": [uri(picture) for picture in found.pictures],
        "mean": found.mean,
    }


def encoded_map(found: BrainMap) -> dict[str, Any]:
    """What is written beside a map; its values come as a file."""
    return {
        "kind": found.kind,
        "limit": found.limit,
        "labels": found.labels,
        "note": found.note,
        "regions": [
            {"name": name, "voxels": voxels, "value": value}
            for name, voxels, value in found.regions
        ],
    }
