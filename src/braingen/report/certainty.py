"""The section on how sure the decoder is: expected cosines, and whether they hold."""

from __future__ import annotations

from typing import Any

from braingen.report.figures import histogram
from braingen.report.inputs import ReportInputs
from braingen.report.tables import number

SHOWN = 3
HEADS = {"expected": "Expected cosine", "least": "Exceeded by 90 %", "true": "True cosine"}


def context(inputs: ReportInputs) -> dict[str, Any] | None:
    """Values for the template, or None for an encoder that was not calibrated."""
    found = inputs.certainty
    if not found:
        return None
    by_expected = sorted(found["images"], key=lambda each: -each["expected"])
    return {
        "images": len(by_expected),
        "levels": [
            {
                "level": f"{each['level']:.0%}",
                "share": f"{each['value']:.1%}",
                "interval": f"{each['low']:.1%} to {each['high']:.1%}",
                "bar": histogram(each["value"], 1.0, f"{each['level']:.0%} expected"),
            }
            for each in found["levels"]
        ],
        "heads": list(HEADS.values()),
        "rank": {name: number(value) for name, value in found["rank"].items()},
        "ends": [
            (title, [(int(each["image"]), [number(each[name]) for name in HEADS]) for each in some])
            for title, some in (
                ("Most certain", by_expected[:SHOWN]),
                ("Least certain", by_expected[::-1][:SHOWN]),
            )
        ],
    }
