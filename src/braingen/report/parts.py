"""The section on parts of the decoder: scores of every level and expert alone."""

from __future__ import annotations

from typing import Any

from braingen.evaluation.metrics import metric
from braingen.report import tables
from braingen.report.inputs import ReportInputs


def context(inputs: ReportInputs) -> dict[str, Any] | None:
    """Values for the template, or None without scores of parts."""
    if not inputs.parts:
        return None
    names = list(dict.fromkeys(row["score"] for row in inputs.parts))
    found: dict[str, dict[str, dict[str, str]]] = {}
    for row in inputs.parts:
        found.setdefault(row["part"], {})[row["score"]] = row
    lines = [
        (part, [_cell(name, scores.get(name, {})) for name in names])
        for part, scores in found.items()
    ]
    return {
        "heads": [metric(name).words for name in names],
        "levels": [line for line in lines if "expert" not in line[0]],
        "experts": [line for line in lines if "expert" in line[0]],
        "chances": [
            (metric(name).words, tables.number(chance))
            for name in names
            if (chance := _chance(found, name)) is not None
        ],
    }


def _cell(name: str, row: dict[str, str]) -> dict[str, str]:
    value, low, high = (tables.figure(row.get(key, "")) for key in ("value", "low", "high"))
    interval = (
        "" if low is None or high is None else f"{tables.number(low)} to {tables.number(high)}"
    )
    return {"label": metric(name).words, "value": tables.number(value), "interval": interval}


def _chance(found: dict[str, dict[str, dict[str, str]]], name: str) -> float | None:
    """Chance level, the same for every part."""
    return next(
        (
            tables.figure(scores[name].get("chance", ""))
            for scores in found.values()
            if name in scores
        ),
        None,
    )
