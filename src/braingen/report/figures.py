"""Charts as inline SVG; the style sheet of the page sets colours for light and dark mode."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import math
from typing import Any, NamedTuple

from markupsafe import Markup, escape

from braingen.report.inputs import finite
from braingen.report.tables import ScoreRow, duration, number

MARKS: dict[str, str] = {
    "random": '<circle r="4.5" class="mark random"/>',
    "ridge": '<path d="M0 -6 L6 0 L0 6 L-6 0 Z" class="mark ridge"/>',
    "encoding_model": '<rect x="-4.5" y="-4.5" width="9" height="9" class="mark encoding"/>',
    "low_level": '<path d="M-5 -5 L5 5 M-5 5 L5 -5" class="mark low_level"/>',
    "oracle": '<path d="M-6 5 L0 -6 L6 5 Z" class="mark oracle"/>',
}
"""Marks of the baselines in a chart; they differ in shape, not only in colour."""


def _share(value: float, axis: tuple[float, float]) -> str:
    """Position of a value on an axis, in percent of its length, with a margin for the marks."""
    low, high = axis
    return f"{2 + 96 * (value - low) / (high - low):.2f}%"


def _svg(content: str, label: str, kind: str, height: int) -> Markup:
    return Markup(
        f'<svg class="{kind}" role="img" aria-label="{escape(label)}" width="100%"'
        f' height="{height}">{content}</svg>'
    )


def mark(name: str) -> Markup:
    """A mark for a legend."""
    shapes = MARKS | {
        "brain": '<line x1="-9" x2="9" class="interval"/><circle r="5" class="value"/>',
        "chance": '<line y1="-8" y2="8" class="chance"/>',
    }
    return Markup(
        '<svg class="key" width="22" height="16" viewBox="-11 -8 22 16"'
        f' aria-hidden="true">{shapes[name]}</svg>'
    )


def interval_chart(row: ScoreRow) -> Markup:
    """Chart of one row of the score table: value, interval, baselines and chance."""
    parts = ['<line x1="2%" x2="98%" y1="50%" y2="50%" class="axis"/>']
    parts += [
        f'<line x1="{_share(end, row.axis)}" x2="{_share(end, row.axis)}" y1="38%" y2="62%"'
        ' class="axis"/>'
        for end in row.axis
    ]
    texts = []
    if "chance" in row.figures:
        x = _share(row.figures["chance"], row.axis)
        parts.append(f'<line x1="{x}" x2="{x}" y1="10%" y2="90%" class="chance"/>')
    for name, shape in MARKS.items():
        if name in row.figures:
            parts.append(
                f'<svg x="{_share(row.figures[name], row.axis)}" y="50%"'
                f' overflow="visible">{shape}</svg>'
            )
            texts.append(f"{name} {number(row.figures[name])}")
    if {"low", "high"} <= set(row.figures):
        low, high = (_share(row.figures[end], row.axis) for end in ("low", "high"))
        parts.append(f'<line x1="{low}" x2="{high}" y1="50%" y2="50%" class="interval"/>')
    if "value" in row.figures:
        start, end = sorted((min(max(0.0, row.axis[0]), row.axis[1]), row.figures["value"]))
        reach = 96 * (end - start) / (row.axis[1] - row.axis[0])
        parts.insert(
            0,
            f'<rect x="{_share(start, row.axis)}" width="{reach:.2f}%" y="30%" height="40%" rx="3"'
            ' class="reach"/>',
        )
        parts.append(
            f'<circle cx="{_share(row.figures["value"], row.axis)}" cy="50%" r="5.5"'
            ' class="value"/>'
        )
        texts.insert(
            0, f"brain {row.value}" + (f", interval {row.interval}" if row.interval else "")
        )
    return _svg("".join(parts), f"{row.title}: {'; '.join(texts) or 'no figure'}", "chart", 30)


def difference_chart(comparison: Mapping[str, Any], reach: float) -> Markup:
    """A difference with its interval and zero, on an axis from -reach to reach."""
    axis = (-reach, reach)
    zero = _share(0.0, axis)
    parts = [
        '<line x1="2%" x2="98%" y1="50%" y2="50%" class="axis"/>',
        f'<line x1="{zero}" x2="{zero}" y1="10%" y2="90%" class="chance"/>',
    ]
    low, high, value = (comparison.get(key) for key in ("low", "high", "difference"))
    if finite(low) and finite(high):
        parts.append(
            f'<line x1="{_share(low, axis)}" x2="{_share(high, axis)}" y1="50%" y2="50%"'  # type: ignore[arg-type]
            ' class="interval"/>'
        )
    if finite(value):
        parts.append(f'<circle cx="{_share(value, axis)}" cy="50%" r="5.5" class="value"/>')  # type: ignore[arg-type]
    return _svg(
        "".join(parts),
        f"difference {number(value)}, interval {number(low)} to {number(high)}",
        "chart",
        30,
    )


def times_chart(timings: Mapping[str, float]) -> list[tuple[str, str, Markup]]:
    """Stages with their times and a bar each: (stage, time, bar)."""
    longest = max(timings.values(), default=0) or 1.0
    rows = []
    for stage, seconds in timings.items():
        bar = (
            f'<rect x="0" y="20%" width="{max(0.4, 100 * seconds / longest):.2f}%" height="60%"'
            ' rx="3" class="bar"/>'
        )
        rows.append(
            (
                stage.replace("_", " "),
                duration(seconds),
                _svg(bar, f"{stage} {duration(seconds)}", "chart", 22),
            )
        )
    return rows


def histogram(share: float, greatest: float, label: str) -> Markup:
    """One bar of a histogram, as long as its share of the greatest."""
    width = max(0.4, 100 * share / (greatest or 1))
    bar = f'<rect x="0" y="20%" width="{width:.2f}%" height="60%" rx="3" class="bar"/>'
    return _svg(bar, f"{label}: {share:.0%}", "chart", 18)


# --- learning curves ------------------------------------------------------------------------------


class Panel(NamedTuple):
    """One quantity over the epochs."""

    title: str
    group: str
    """held-out | training | other."""
    chart: Markup


_TITLES = {"validation": "held-out", "train": "training"}
_RISING = ("cosine", "retrieval", "accuracy", "correlation", "top")
_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 340, 190, 44, 12, 14, 30


def curve_panels(metrics: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[Panel]:
    """Small panels, one per quantity, with a line per encoder; held-out quantities first.

    Parameters
    ----------
    metrics : Mapping[str, Sequence[Mapping[str, Any]]]
        Encoder (image, text) -> one record per epoch.
    """
    lines: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for encoder, records in metrics.items():
        for record in records:
            x = record.get("epoch", record.get("step"))
            for key, value in record.items():
                if key not in ("epoch", "step") and finite(value) and finite(x):
                    lines.setdefault(key, {}).setdefault(encoder, []).append(
                        (float(x), float(value))
                    )  # type: ignore[arg-type]
    unit = (
        "epoch"
        if any("epoch" in record for records in metrics.values() for record in records)
        else "step"
    )
    panels = []
    for prefix in ("validation", "train", ""):
        for key in lines:
            first, slash, rest = key.partition("/")
            if (first if slash and first in _TITLES else "") == prefix:
                name = (rest if prefix else key).replace("_", " ").replace("/", " ")
                panels.append(
                    Panel(
                        name,
                        _TITLES.get(prefix, "other"),
                        _panel(key, lines[key], prefix == "validation", unit),
                    )
                )
    return panels


def ticks(low: float, high: float, about: int = 4) -> list[float]:
    """Round numbers that cover an interval."""
    step = 10 ** math.floor(math.log10((high - low) / about))
    step *= min((1, 2, 2.5, 5, 10), key=lambda factor: abs((high - low) / (factor * step) - about))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [float(f"{step * k:.12g}") for k in range(first, last + 1)]


def _panel(
    key: str, lines: Mapping[str, Sequence[tuple[float, float]]], held_out: bool, unit: str
) -> Markup:
    values = [y for points in lines.values() for _, y in points]
    low, high = min(values), max(values)
    if high - low <= 1e-9 * max(abs(low), abs(high)):  # constant, but for rounding
        low, high = low - (abs(low) or 1) / 2, high + (abs(high) or 1) / 2
    marks = ticks(low, high)
    low, high = marks[0], marks[-1]
    digits = max(0, 2 - math.floor(math.log10(high - low)))
    last = max(x for points in lines.values() for x, _ in points)
    first = min(x for points in lines.values() for x, _ in points)
    span = (last - first) or 1.0

    def place(x: float, y: float) -> tuple[float, float]:
        across = _LEFT + (_WIDTH - _LEFT - _RIGHT) * (x - first) / span
        return across, _TOP + (_HEIGHT - _TOP - _BOTTOM) * (high - y) / (high - low)

    parts = []
    for tick in marks:
        _, y = place(first, tick)
        parts.append(
            f'<line x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}" class="grid"/>'
        )
        parts.append(f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{tick:g}</text>')
    for x, anchor in ((first, "start"), (last, "end")):
        parts.append(
            f'<text x="{place(x, low)[0]:.1f}" y="{_HEIGHT - 8}"'
            f' text-anchor="{anchor}">{x:g}</text>'
        )
    parts.append(
        f'<text x="{(_LEFT + _WIDTH - _RIGHT) / 2}" y="{_HEIGHT - 8}"'
        f' text-anchor="middle">{unit}</text>'
    )
    texts = []
    for encoder, points in lines.items():
        path = " ".join(
            f"{'M' if k == 0 else 'L'}{x:.1f} {y:.1f}"
            for k, (x, y) in enumerate(place(*point) for point in points)
        )
        parts.append(f'<path d="{path}" class="line {escape(encoder)}"/>')
        first_value, last_value = (
            round(point[1], digits) + 0.0 for point in (points[0], points[-1])
        )  # no "-0.00"
        end = f"{encoder}: from {first_value:.{digits}f} to {last_value:.{digits}f}"
        if held_out:
            rising = any(word in key for word in _RISING)
            best = (max if rising else min)(points, key=lambda point: point[1])
            x, y = place(*best)
            parts.append(
                f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4.5" class="best {escape(encoder)}"/>'
            )
            end += f", best {best[1]:.{digits}f} at {unit} {best[0]:g}"
        texts.append(end)
    label = f"{key.replace('/', ' ')} over {unit}s; {'; '.join(texts)}"
    return Markup(
        f'<svg class="curve" role="img" aria-label="{escape(label)}" viewBox="0 0 {_WIDTH}'
        f' {_HEIGHT}">{"".join(parts)}</svg><p class="summary">{escape("; ".join(texts))}</p>'
    )
