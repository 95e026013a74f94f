"""Scores of a human evaluation, as the metric table and the report use them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import hashlib
from pathlib import Path
from typing import Any

from braingen.runtime.errors import UserError
from braingen.runtime.paths import generated_in
from braingen.runtime.text_files import read_json
from braingen.types import Score

STUDY = "study.json"
"""In the run folder: `braingen.human_eval.analysis.as_json` of the study that was analysed last."""


def fingerprint(run: Path, images: Sequence[int]) -> str:
    """Hash of a run's images of the given ids; empty where one is missing."""
    paths = [generated_in(run, "brain") / f"{image:06d}.png" for image in images]
    if not all(path.is_file() for path in paths):
        return ""
    whole = hashlib.sha256()
    for path in paths:
        whole.update(path.read_bytes())
    return whole.hexdigest()[:16]


def read_study(run: Path) -> dict[str, Any]:
    """Read the results of a human evaluation of a run's images.

    Empty without a study; only ``stale`` when the images were generated again since.

    Raises
    ------
    UserError
        When the file is damaged.
    """
    path = run / STUDY
    if not path.is_file():
        return {}
    content = read_json(path, "remove it and run `braingen human-eval analyse` again")
    try:
        stale = content["fingerprint"] != fingerprint(run, content["images"])
    except (KeyError, TypeError) as error:
        raise UserError(
            f"{path} is damaged ({error!r}); remove it and run `braingen human-eval analyse` again."
        ) from error
    return {"stale": True} if stale else {**content, "stale": False}


def scores_in(study: Mapping[str, Any]) -> dict[str, Score]:
    """Scores of a study, by name."""
    return {name: Score(**score) for name, score in study.get("scores", {}).items()}
