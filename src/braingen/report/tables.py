"""Scores, per-image results, settings and times as text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import math
from typing import Any, NamedTuple

import numpy as np
from scipy.stats import rankdata

from braingen.config import Config
from braingen.evaluation.metric_type import GROUPS, Metric
from braingen.evaluation.metrics import ATTRIBUTES, METRICS, in_report, metric, score_columns
from braingen.runtime.run_folder import flat

NONE = "–"
"""Text of a missing figure."""


TILES = ("retrieval_brain_to_image", "object_accuracy", "background_accuracy", "two_way_clip")
"""Scores at the top of the page."""
TILE_TEXT = {
    "retrieval_brain_to_image": (
        "of the seen images are retrieved among {pool} from brain activity"
    ),
    "object_accuracy": "of the generated images show the correct object (independent classifier)",
    "background_accuracy": "of the generated images show the correct background",
    "two_way_clip": ("of pairs are identified correctly by CLIP (two-way identification)"),
}


def number(value: Any) -> str:
    """A figure with its significant digits."""
    if value is None or isinstance(value, str) or not math.isfinite(value):
        return NONE
    size = abs(value)
    if size >= 100:
        text = f"{value:.0f}"
    elif size >= 10:
        text = f"{value:.1f}"
    elif size >= 0.005 or value == 0:
        text = f"{value:.3f}"
    else:
        text = f"{value:.2g}"
    return text.replace("-", "−", 1) if value < 0 else text


def p_value(value: Any) -> str:
    """A p value with three digits."""
    if value is None or not math.isfinite(value):
        return NONE
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def percent(value: float) -> str:
    """A share in percent; one digit more where rounding would give 0 or 100."""
    text = f"{100 * value:.0f}"
    if text in ("0", "100") and 0 < value < 1:
        text = f"{100 * value:.1f}"
    return text


def direction(name: str) -> int:
    """1 for a score that is better when higher, -1 for one that is better when lower."""
    return 1 if metric(name).higher_is_better else -1


class ScoreRow(NamedTuple):
    """One line of the score table."""

    name: str
    title: str
    meaning: str
    value: str
    interval: str
    others: tuple[tuple[str, str], ...]
    """(random | ridge | oracle | chance, figure)."""
    figures: dict[str, float]
    """All present figures, for the chart."""
    axis: tuple[float, float]


BASELINES = {
    "random": "random voxels",
    "ridge": "ridge regression",
    "encoding_model": "encoding model",
    "low_level": "coarse images alone",
    "oracle": "oracle",
    "chance": "chance",
}
"""Columns beside a score, and what the legend calls them."""


def baselines_in(scores: Mapping[str, Mapping[str, Any]]) -> tuple[str, ...]:
    """Columns of the score table: of encoding model and low-level path only where they were
    scored.
    """
    found = [score for score in scores.values() if isinstance(score, Mapping)]
    scored = {name for name in BASELINES if any(score.get(name) is not None for score in found)}
    return tuple(
        name for name in BASELINES if name in scored or name not in ("encoding_model", "low_level")
    )


def score_rows(scores: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, list[ScoreRow]]]:
    """The score table, in the groups and the order of the report."""
    groups: dict[str, list[ScoreRow]] = {group: [] for group in GROUPS}
    columns = baselines_in(scores)
    for name in in_report(scores):
        if isinstance(scores[name], Mapping):
            groups[metric(name).group].append(_score_row(name, scores[name], columns))
    return [(group, rows) for group, rows in groups.items() if rows]


def _score_row(name: str, score: Mapping[str, Any], columns: Sequence[str]) -> ScoreRow:
    kind = metric(name)
    names = ("value", "low", "high", *columns)
    figures = {
        key: float(score[key])
        for key in names
        if isinstance(score.get(key), (int, float)) and math.isfinite(score[key])
    }
    interval = (
        f"{number(figures['low'])} to {number(figures['high'])}"
        if {"low", "high"} <= set(figures)
        else ""
    )
    return ScoreRow(
        name=name,
        title=kind.words,
        meaning=kind.meaning.format(pool=score.get("pool") or "all")
        + ("" if direction(name) > 0 else "; lower is better"),
        value=number(figures.get("value")) + (kind.unit if "value" in figures else ""),
        interval=interval,
        others=tuple((key, number(figures.get(key))) for key in columns),
        figures=figures,
        axis=_axis(kind, figures.values()),
    )


def random_baseline(controls: Mapping[str, Any]) -> str:
    """Two-way scores of random voxels with intervals as a sentence; empty without any."""
    random = controls.get("random") or {}
    found = {
        name: score
        for name, score in (random.get("scores") or {}).items()
        if name.startswith("two_way") and score["low"] is not None
    }
    if not found:
        return ""
    texts = [
        f"{metric(name).words} {number(s['value'])} ({number(s['low'])} to {number(s['high'])})"
        for name, s in found.items()
    ]
    draws = "one draw" if random["draws"] == 1 else f"the mean of {random['draws']} draws"
    return (
        f"Random voxels ({draws}) with their own 95 % intervals: {'; '.join(texts)}; chance is 0.5."
    )


def _axis(kind: Metric, values: Any) -> tuple[float, float]:
    present = list(values) or [0.0]
    if kind.axis is not None:
        return min(kind.axis[0], *present), max(kind.axis[1], *present)
    low, high = min(0.0, *present), max(0.0, *present)
    return (
        (low, 1.0) if 0.3 <= high <= 1 else (low * 1.08, high * 1.08 or 1.0)
    )  # shares keep 0 and 1


def tiles(scores: Mapping[str, Mapping[str, Any]]) -> list[dict[str, str]]:
    """The tiles at the top: figure, sentence, interval and chance of a few scores."""
    found = []
    for name in TILES:
        score = scores.get(name) or {}
        value, low, high, chance = (score.get(key) for key in ("value", "low", "high", "chance"))
        if value is None:
            continue
        small = (
            [f"95 % interval {percent(low)}–{percent(high)} %"]
            if low is not None and high is not None
            else []
        )
        small += [f"chance {percent(chance)} %"] if chance is not None else []
        text = TILE_TEXT[name].format(pool=score.get("pool") or "all")
        found.append({"value": percent(value), "text": text, "small": "; ".join(small)})
    return found


# --- one image ------------------------------------------------------------------------------------


class Attribute(NamedTuple):
    """What the scene classifier predicts for one generated image."""

    name: str
    true: str
    predicted: str
    right: bool


def figure(text: str) -> float | None:
    """A cell of a table as a number; yes and no as 1 and 0; None where it holds none."""
    if text.lower() in ("true", "false"):
        return float(text.lower() == "true")
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def image_scores(row: Mapping[str, str]) -> dict[str, float]:
    """The scores of an image, in the order of the report."""
    figures = {
        name: figure(row[name])
        for name in in_report(score_columns(name for name in row if name != "image"))
    }
    return {name: value for name, value in figures.items() if value is not None}


def image_attributes(row: Mapping[str, str]) -> list[Attribute]:
    """Object, colour, position and background of an image: true, predicted, and if correct."""
    named = [column.removesuffix("_true") for column in row if column.endswith("_true")]
    found = []
    for name in [*ATTRIBUTES, *(name for name in named if name not in ATTRIBUTES)]:
        true, predicted = row.get(f"{name}_true", ""), row.get(f"{name}_predicted", "")
        accuracy = figure(row.get(f"{name}_accuracy", ""))
        if true and predicted:
            found.append(Attribute(name, true, predicted, true == predicted))
        elif accuracy is not None:
            found.append(Attribute(name, true, predicted, accuracy >= 0.5))
    return found


def overall(per_image: Mapping[int, Mapping[str, str]]) -> dict[int, float]:
    """Mean rank of every image over the described scores, 0 worst to 1 best, ties shared."""
    images = list(per_image)
    figures = [image_scores(per_image[image]) for image in images]
    ranks = []
    for name in METRICS:
        values = np.array([row.get(name, np.nan) for row in figures]) * direction(name)
        known = np.isfinite(values)
        if known.sum() > 1:
            rank = np.full(len(images), np.nan)
            rank[known] = (rankdata(values[known]) - 1) / (known.sum() - 1)
            ranks.append(rank)
    if not ranks:
        return {}
    table = np.stack(ranks)
    counted = np.isfinite(table)
    means = np.where(counted, table, 0).sum(0) / np.maximum(counted.sum(0), 1)
    return {image: float(mean) for image, mean, n in zip(images, means, counted.sum(0)) if n}


def choose(
    images: Sequence[int], rank: Mapping[int, float], limit: int, extremes: int = 12
) -> list[int]:
    """Images of a page, ascending: all, or the first and the best and worst of the rest."""
    if len(images) <= limit:
        return list(images)
    rest = sorted(
        (image for image in images[limit - 2 * extremes :] if image in rank),
        key=lambda image: rank[image],
    )
    if len(rest) < 2 * extremes:
        return list(images[:limit])
    return sorted([*images[: limit - 2 * extremes], *rest[:extremes], *rest[-extremes:]])


# --- what was run ---------------------------------------------------------------------------------


def shown(value: Any) -> str:
    """A setting as text."""
    if isinstance(value, (list, tuple)):
        return ", ".join(shown(item) for item in value) or "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}"
    return NONE if value is None or value == "" else str(value)


def changed_settings(settings: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Settings that differ from the defaults: name, here, default."""
    defaults = flat(Config().model_dump(mode="json"))
    here = flat(settings)
    return [
        (name, shown(value), shown(defaults[name]) if name in defaults else NONE)
        for name, value in here.items()
        if name not in defaults or value != defaults[name]
    ]


def provenance_facts(provenance: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Provenance of a run as pairs of name and text; of several starts the last."""
    content = dict(provenance)
    starts = content.pop("starts", None)
    if isinstance(starts, list) and starts and isinstance(starts[-1], Mapping):
        if len(starts) > 1:
            content = {"started": f"{len(starts)} times; the last is shown", **content}
        content = {**starts[-1], **content}
    facts = []
    for name, value in content.items():
        label = name.replace("_", " ")
        if name == "command" and isinstance(value, list):
            facts.append((label, " ".join(map(str, value))))
        elif name == "git" and isinstance(value, Mapping) and "commit" in value:
            note = " with uncommitted changes" if value.get("modified") else ""
            facts.append(("git commit", f"{str(value['commit'])[:12]}{note}"))
        elif name == "time":
            facts.append((label, str(value).replace("T", " ").replace("+00:00", " UTC")))
        elif isinstance(value, Mapping):
            facts.append(
                (
                    label,
                    ", ".join(f"{key} {shown(item)}" for key, item in flat(value).items()) or NONE,
                )
            )
        elif value is not None:
            facts.append((label, shown(value)))
    return facts


def duration(seconds: float) -> str:
    """A duration as text."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def comparison_name(name: str) -> str:
    """Name of a comparison, with the score named as in the table."""
    for score, kind in METRICS.items():
        if name.endswith(score) and not name.endswith(f"_{score}"):
            return name.removesuffix(score) + kind.words
    return name
