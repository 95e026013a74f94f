"""Page of a sweep: its plot, and a table of combinations, the best one first."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import NamedTuple

from braingen.evaluation.metrics import metric
from braingen.report import tables
from braingen.report.rendering import render_page


class SweepLine(NamedTuple):
    """One combination."""

    settings: Sequence[str]
    value: float | None
    scores: Sequence[float | None]
    """Of test images, in the order of the columns."""
    state: str
    seconds: float
    message: str
    folder: str
    best: bool


def render_sweep(
    title: str,
    settings: Sequence[str],
    objective: str,
    direction: str,
    scores: Sequence[str],
    lines: Sequence[SweepLine],
    plot: bytes,
) -> str:
    """The page as one self-contained HTML text.

    Parameters
    ----------
    title : str
        Name of the run.
    settings : Sequence[str]
        Settings that are swept.
    objective, direction : str
        What combinations are compared by; maximize or minimize.
    scores : Sequence[str]
        Names of the test scores that some combination has.
    plot : bytes
        The plot as PNG; empty for none.
    """
    sign = 1 if direction == "maximize" else -1

    def rank(line: SweepLine) -> tuple[bool, float]:
        return line.value is None, 0.0 if line.value is None else -sign * line.value

    uri = "data:image/png;base64," + base64.b64encode(plot).decode() if plot else ""
    return render_page(
        "sweep",
        title=title,
        settings=settings,
        objective=objective,
        more="more" if direction == "maximize" else "less",
        scores=[metric(name).words for name in scores],
        lines=sorted(lines, key=rank),
        finished=sum(line.value is not None for line in lines),
        plot=uri,
        number=lambda value: "" if value is None else tables.number(value),
        precise=lambda value: "" if value is None else f"{value:.5g}",
        duration=tables.duration,
    )
