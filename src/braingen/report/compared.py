"""The section on other runs: results of `braingen compare` inside the run folder."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from braingen.evaluation.metrics import in_report, metric
from braingen.report import tables
from braingen.report.inputs import ReportInputs


def context(inputs: ReportInputs) -> dict[str, Any] | None:
    """Values for the template, or None without a comparison."""
    if not inputs.compared and not inputs.summary:
        return None
    pairs: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for each in inputs.compared:
        pairs.setdefault((str(each["first"]), str(each["second"])), []).append(each)
    methods: dict[str, list[dict[str, str]]] = {}
    for row in inputs.summary:
        methods.setdefault(row["method"], []).append(row)
    return {
        "pairs": [
            (first, second, [_difference(each) for each in _ordered(found)])
            for (first, second), found in pairs.items()
        ],
        "methods": [
            (method, [_mean(row) for row in _ordered(rows)]) for method, rows in methods.items()
        ],
    }


def _ordered(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """In the score order of the other tables."""
    rows = list(rows)
    order = in_report(row["score"] for row in rows)
    return sorted(rows, key=lambda row: order.index(row["score"]))


def _difference(each: dict[str, Any]) -> dict[str, str]:
    return {
        "title": metric(each["score"]).words,
        "difference": tables.number(each["difference"]),
        "interval": f"{tables.number(each['low'])} to {tables.number(each['high'])}",
        "p": tables.p_value(each["p_holm"]),
        "conclusion": str(each["conclusion"]),
        "n": str(each["n"]),
    }


def _mean(row: dict[str, str]) -> dict[str, str]:
    figures = {
        name: tables.number(tables.figure(row[name]))
        for name in ("value", "low", "high", "between_seeds", "between_subjects")
    }
    return {
        "title": metric(row["score"]).words,
        "value": figures["value"],
        "interval": f"{figures['low']} to {figures['high']}",
        "seeds": figures["between_seeds"],
        "subjects": figures["between_subjects"],
        "runs": f"{row['subjects']}, {row['seeds']}",
    }
