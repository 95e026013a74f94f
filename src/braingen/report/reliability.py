"""The section on how reliable the responses are: split-half reliability and noise ceiling."""

from __future__ import annotations

from typing import Any

import numpy as np

from braingen.data.response_reliability import KnownReliability
from braingen.report.figures import histogram
from braingen.report.inputs import ReportInputs

_BINS = tuple(range(0, 101, 10))


def context(inputs: ReportInputs) -> dict[str, Any] | None:
    """Values for the template, or None for a data folder that `prepare` did not write."""
    return None if inputs.reliability is None else of_subject(inputs.subject, inputs.reliability)


def of_subject(subject: int, found: KnownReliability) -> dict[str, Any]:
    """Values for the template of one subject."""
    known = found.label.lstrip("0") in ("", str(subject))
    named = f"{subject}" if known else f"{subject} ({found.label})"
    if not found.facts:
        return {"subject": named, "facts": []}
    facts = found.facts
    rows = [
        (
            "Images shown more than once",
            f"{facts['pictures']}, {facts['repeats']:g} times on average",
        ),
        ("Split-half reliability", f"{facts['split_half_median']:.2f} (median over voxels)"),
        ("Voxels above chance", f"{facts['share_above_chance']:.0%} (5 % by chance)"),
        ("Noise ceiling", f"{facts['noise_ceiling_median_percent']:.0f} % (median over voxels)"),
    ]
    if facts.get("same_picture") is not None:
        same, other = facts["same_picture"], facts["other_picture"]
        rows.append(
            ("Correlation of responses", f"same image {same:.2f}, other images {other:.2f}")
        )
        if same - other < 3 * facts["same_picture_error"]:
            rows.append(("", "no more alike for the same image than for others: noise"))
    counts, _ = np.histogram(np.clip(found.noise_ceiling_V, 0, 100), _BINS)
    shares = (counts / max(1, counts.sum())).tolist()
    ends = [f"{low} to {low + 10} %" for low in _BINS[:-1]]
    return {
        "subject": named,
        "facts": rows,
        "bars": [
            (end, f"{share:.0%}", histogram(share, max(shares), end))
            for end, share in zip(ends, shares)
        ],
        "regions": [
            (
                name,
                int(inside_V.sum()),
                f"{np.median(found.split_half_V[inside_V]):.2f}",
                f"{np.median(found.noise_ceiling_V[inside_V]):.0f} %",
            )
            for name, inside_V in found.regions.items()
            if inside_V.any() and not inside_V.all()
        ],
    }
