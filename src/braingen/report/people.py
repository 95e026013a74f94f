"""The human evaluation section: scores with intervals, agreement, and excluded raters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from markupsafe import Markup

from braingen.evaluation.metric_type import LIKERT, SHARE
from braingen.report import figures, tables
from braingen.report.inputs import ReportInputs

QUESTIONS = {
    "identification": (
        "Which image was viewed?",
        "seen or another test image, given the reconstruction",
    ),
    "preference": ("Which reconstruction is more similar?", "of two methods, given the seen image"),
    "similarity": ("How similar are they?", "reconstruction and seen image, from 1 to 7"),
}
SCALES = {"nominal": "same choice or not", "ordinal": "ranks of the ratings"}


def _interval(low: Any, high: Any) -> str:
    return (
        "" if low is None or high is None else f"{tables.number(low)}\u00a0to {tables.number(high)}"
    )


def _chart(finding: Mapping[str, Any], title: str) -> Markup:
    """Value and interval of a question; prefers the interval over raters and images."""
    rating = finding["task"] == "similarity"
    wide = finding.get("wide") or {}
    plotted = {
        "value": finding["value"],
        "low": wide.get("low", finding["low"]),
        "high": wide.get("high", finding["high"]),
    }
    figures_there = {name: float(value) for name, value in plotted.items() if value is not None}
    if not rating:
        figures_there["chance"] = 0.5
    value = tables.number(finding["value"])
    interval = _interval(plotted["low"], plotted["high"])
    axis = LIKERT if rating else SHARE
    return figures.interval_chart(
        tables.ScoreRow(finding["task"], title, "", value, interval, (), figures_there, axis)
    )


def context(inputs: ReportInputs) -> dict[str, Any] | None:
    """Values for the template, or None without a study."""
    study = inputs.study
    if not study:
        return None
    if study["stale"]:
        return {"stale": True}
    found = []
    for each in study["findings"]:
        title, meaning = QUESTIONS[each["task"]]
        wide = each.get("wide") or {}
        by = "1 rater" if each["raters"] == 1 else f"{each['raters']} raters"
        found.append(
            {
                "title": title,
                "meaning": meaning,
                "method": each["method"],
                "value": tables.number(each["value"]),
                "exact": _interval(each["low"], each["high"]),
                "wide": _interval(wide.get("low"), wide.get("high")),
                "p": "" if each["p"] is None else tables.p_value(each["p"]),
                "asked": (f"{each['answers']} answers by {by} about {each['images']} images"),
                "chart": _chart(each, f"{title} {each['method']}"),
            }
        )
    raters: dict[str, list[str]] = {}
    for row in study["raters"]:
        if row["value"] is not None:
            share = (
                f"{row['hits']} of {row['n']}"
                if row["low"] is not None
                else f"{tables.number(row['value'])} (mean of {row['n']})"
            )
            interval = _interval(row["low"], row["high"])
            raters.setdefault(row["rater"], []).append(
                f"{row['task']}, {row['method']}: {share}{f' ({interval})' if interval else ''}"
            )
    files = {row["rater"]: row for row in study["files"] if row["used"]}
    used = sum(row["used"] for row in study["files"])
    return {
        "stale": False,
        "simulated_raters": study["who"] != "human",
        "draft": study["draft"],
        "used": used,
        "left_out": len(study["files"]) - used,
        "findings": found,
        "agreement": [
            {
                "title": QUESTIONS[each["task"]][0],
                "alpha": tables.number(each["alpha"]),
                "scale": SCALES.get(each["level"], each["level"]),
                "about": (
                    f"{each['raters']} raters, {each['units']} questions that at least two of them"
                    " answered"
                ),
            }
            for each in study["agreement"]
        ],
        "raters": [
            {
                "rater": rater,
                "lines": lines,
                "checks": f"{files[rater]['failed']} of {files[rater]['checks']} checks failed",
            }
            for rater, lines in raters.items()
        ],
        "notes": study["notes"],
    }
