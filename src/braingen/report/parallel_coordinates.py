"""A parallel-coordinates plot: one axis per setting, one line per combination, coloured by the
value that combinations are compared by.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import log10
from pathlib import Path
from typing import NamedTuple

import numpy as np

from braingen.runtime.files import replaced_path

_TICKS = 5


class Coordinate(NamedTuple):
    """An axis."""

    name: str
    values: Sequence[str]
    """Of every line, as typed."""
    order: Sequence[str] = ()
    """Values in the order in which they stand on the axis; empty for a range of numbers."""
    log: bool = False


def _placed(axis: Coordinate) -> tuple[np.ndarray, list[tuple[float, str]]]:
    """Places of the lines on an axis, 0 to 1, and its ticks."""
    from matplotlib.ticker import MaxNLocator  # slow to import

    numbers = [_number(value) for value in (axis.order or axis.values)]
    if axis.order and (None in numbers or len(axis.order) <= _TICKS):  # one place per value
        last = max(1, len(axis.order) - 1)
        place = {value: row / last for row, value in enumerate(axis.order)}
        if len(axis.order) == 1:
            place = {axis.order[0]: 0.5}
        return np.array([place[value] for value in axis.values]), [
            (where, value) for value, where in place.items()
        ]
    known = [float(value) for value in axis.values]
    scale = log10 if axis.log else float
    low, high = scale(min(known)), scale(max(known))
    spread = high - low or 1.0
    places = np.array([(scale(value) - low) / spread for value in known])
    marks = MaxNLocator(_TICKS).tick_values(low, low + spread)
    inside = [(float(x) - low) / spread for x in marks]
    ticks = [
        (share, f"{10**x if axis.log else x:.3g}")
        for share, x in zip(inside, marks)
        if -1e-9 <= share <= 1 + 1e-9
    ]
    return places, ticks


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def parallel_coordinates(
    axes: Sequence[Coordinate],
    objective: str,
    values: Sequence[float],
    higher_is_better: bool,
    path: Path,
) -> None:
    """Write the plot as ``<path>.svg`` and ``<path>.png``.

    Parameters
    ----------
    axes : Sequence[Coordinate]
        The settings.
    objective : str
        Name of the last axis.
    values : Sequence[float]
        Its value of every line.
    higher_is_better : bool
        The best line is drawn last and thickest.
    """
    from matplotlib import colormaps, rc_context  # slow to import
    from matplotlib.figure import Figure  # no window, no global state

    last = Coordinate(objective, [repr(float(value)) for value in values])
    placed = [_placed(axis) for axis in (*axes, last)]
    lines_NA = np.stack([place for place, _ in placed], axis=1)
    goodness = lines_NA[:, -1] if higher_is_better else 1 - lines_NA[:, -1]
    figure = Figure(figsize=(max(5.0, 2.1 * len(placed)), 4.2), layout="constrained")
    plot = figure.subplots()
    x = np.arange(len(placed))
    order = np.argsort(goodness, kind="stable")
    for rank, row in enumerate(order):
        best = rank == len(order) - 1
        plot.plot(
            x,
            lines_NA[row],
            color=colormaps["viridis"](0.9 * goodness[row]),
            linewidth=3.0 if best else 1.2,
            alpha=1.0 if best else 0.75,
            solid_capstyle="round",
        )
    for place, (_, ticks) in zip(x, placed):
        plot.axvline(float(place), color="0.25", linewidth=1)
        for where, label in ticks:
            plot.annotate(
                label,
                (place, where),
                xytext=(4, 0),
                textcoords="offset points",
                fontsize=8,
                va="center",
                bbox={"boxstyle": "round,pad=0.1", "fc": "white", "ec": "none", "alpha": 0.75},
            )
    names = [name.replace(".", ".\n", 1) for name in (axis.name for axis in (*axes, last))]
    plot.set_xticks(x, names, fontsize=9)
    plot.set_yticks([])
    plot.set_xlim(-0.1, len(placed) - 0.6)
    plot.set_ylim(-0.05, 1.05)
    for side in ("top", "right", "left", "bottom"):
        plot.spines[side].set_visible(False)
    for kind in ("svg", "png"):
        # without a salt matplotlib names SVG elements at random
        with (
            replaced_path(path.with_name(f"{path.name}.{kind}")) as temporary,
            rc_context({"svg.hashsalt": path.name}),
        ):
            figure.savefig(
                temporary, format=kind, dpi=150, metadata={"Date": None} if kind == "svg" else None
            )
