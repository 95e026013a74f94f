"""The refinement section: scores and images before and after, with paired differences."""

from __future__ import annotations

from typing import Any

from braingen.data import image_grid as pictures
from braingen.evaluation.metrics import in_report, metric
from braingen.report import tables
from braingen.report.inputs import ReportInputs

SHOWN = 8
"""Test images shown: the first ones, not selected."""
LEVEL = 0.05
"""Significance level for the corrected p."""


def _conclusion(name: str, each: dict[str, Any]) -> str:
    if each.get("difference") is None:
        return tables.NONE
    if each["p"] is None or each["p"] > LEVEL:
        return "no difference"
    return "better" if each["difference"] * tables.direction(name) > 0 else "worse"


def _amount(settings: dict[str, Any], steps: int | None) -> str:
    """Strength of the refinement in words, with the steps run (None: unknown, older version)."""
    if settings.get("denoising_start") is not None:
        amount = f"from {settings['denoising_start']:g} of the denoising on"
    else:
        amount = f"strength {settings['strength']:g}"
    return amount if steps is None else f"{amount}, {steps} of {settings['steps']} steps run"


def context(inputs: ReportInputs) -> dict[str, Any] | None:
    """Values for the template, or None without refinement."""
    found = inputs.refinement
    if not found or not inputs.refined:
        return None
    rows = []
    for name in in_report(found["scores"]):
        each = found["scores"][name]
        interval = (
            f"{tables.number(each['low'])} to {tables.number(each['high'])}"
            if each.get("difference") is not None
            else ""
        )
        rows.append(
            {
                "title": metric(name).words,
                "before": tables.number(each["before"]["value"]),
                "after": tables.number(each["after"]["value"]),
                "difference": tables.number(each.get("difference")),
                "interval": interval,
                "p": tables.p_value(each.get("p")),
                "conclusion": _conclusion(name, each),
            }
        )
    images = [image for image in inputs.images if image in inputs.refined][:SHOWN]
    cards = [
        {
            "image": image,
            "seen": pictures.data_uri(seen),
            "before": pictures.data_uri(pictures.open_picture(inputs.pictures["brain"][image])),
            "after": pictures.data_uri(pictures.open_picture(inputs.refined[image])),
        }
        for image, seen in pictures.seen_pictures(inputs.stimuli, images)
    ]
    conclusions = [row["conclusion"] for row in rows]
    return {
        "rows": rows,
        "cards": cards,
        "amount": _amount(found["settings"], found.get("steps")),
        "guidance": f"{found['settings']['guidance_scale']:g}",
        "better": conclusions.count("better"),
        "worse": conclusions.count("worse"),
        "compared": sum(each != tables.NONE for each in conclusions),
    }
