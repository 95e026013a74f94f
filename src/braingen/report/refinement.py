"""The section on refinement: scores and pictures before and after, and which of them differ by more
than chance.
"""

from __future__ import annotations

from typing import Any

from braingen.data import image_grid as pictures
from braingen.evaluation.metrics import in_report, metric
from braingen.report import tables
from braingen.report.inputs import ReportInputs

SHOWN = 8
"""Test images shown: the first ones, not chosen."""
LEVEL = 0.05
"""Largest corrected p at which a difference is called one."""


def _verdict(name: str, each: dict[str, Any]) -> str:
    if each.get("difference") is None:
        return tables.NONE
    if each["p"] is None or each["p"] > LEVEL:
        return "no difference"
    return "better" if each["difference"] * tables.direction(name) > 0 else "worse"


def _amount(settings: dict[str, Any], steps: int | None) -> str:
    """How much was generated anew, in words, with the steps that were really run; None where an
    older version left them out.
    """
    if settings.get("denoising_start") is not None:
        amount = f"from {settings['denoising_start']:g} of the denoising on"
    else:
        amount = f"strength {settings['strength']:g}"
    return amount if steps is None else f"{amount}, {steps} of {settings['steps']} steps run"


def context(inputs: ReportInputs) -> dict[str, Any] | None:
    """What the template needs, or None where nothing was refined."""
    told = inputs.refinement
    if not told or not inputs.refined:
        return None
    rows = []
    for name in in_report(told["scores"]):
        each = told["scores"][name]
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
                "verdict": _verdict(name, each),
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
    verdicts = [row["verdict"] for row in rows]
    return {
        "rows": rows,
        "cards": cards,
        "amount": _amount(told["settings"], told.get("steps")),
        "guidance": f"{told['settings']['guidance_scale']:g}",
        "better": verdicts.count("better"),
        "worse": verdicts.count("worse"),
        "compared": sum(verdict != tables.NONE for verdict in verdicts),
    }
