"""Tables and plots of a score as a function of a setting (sessions, bottleneck width)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from braingen.evaluation.metrics import metric
from braingen.evaluation.uncertainty import Summary
from braingen.runtime.files import replaced_path, write_text


class Point(NamedTuple):
    """A score at one value of the setting."""

    way: str
    """The line it belongs to."""
    x: float
    score: str
    summary: Summary
    """Value and 95 % interval over images, mean of the seeds."""
    chance: float | None


class Curve(NamedTuple):
    """Everything that the table and the plot show."""

    title: str
    x_title: str
    ways: Mapping[str, str]
    """Name of every line -> its label; lines are plotted in this order."""
    points: Sequence[Point]
    levels: Mapping[str, Mapping[str, float]] = {}
    """Horizontal lines that do not depend on the setting: name -> score -> value."""

    @property
    def scores(self) -> list[str]:
        """Names of the scores, in order of appearance."""
        return list(dict.fromkeys(point.score for point in self.points))


def as_rows(curve: Curve) -> list[dict[str, str | float | int | None]]:
    """Return every point as a plain record for JSON."""
    return [
        {
            "way": point.way,
            "x": point.x,
            "score": point.score,
            **point.summary._asdict(),
            "chance": point.chance,
        }
        for point in curve.points
    ]


def markdown(curve: Curve, notes: Sequence[str] = ()) -> str:
    """Return a Markdown table with a row per way and x, a column per score, and notes below."""
    heads = [metric(score).title for score in curve.scores]
    lines = [
        f"# {curve.title}",
        "",
        f"| way | {curve.x_title} | seeds | " + " | ".join(heads) + " |",
    ]
    lines.append("| --- | --- | --- |" + " --- |" * len(heads))
    by_place: dict[tuple[str, float], dict[str, Point]] = {}
    for point in curve.points:
        by_place.setdefault((point.way, point.x), {})[point.score] = point
    for (way, x), found in by_place.items():
        seeds = max(point.summary.seeds for point in found.values())
        cells = [_cell(found[score].summary) if score in found else "" for score in curve.scores]
        lines.append(f"| {curve.ways[way]} | {x:g} | {seeds} | " + " | ".join(cells) + " |")
    for name, values in curve.levels.items():
        lines.append(
            f"| {name} | | | "
            + " | ".join(
                f"{values[score]:.3f}" if score in values else "" for score in curve.scores
            )
            + " |"
        )
    legend = ["Value [95 % interval over images] ± standard deviation between seeds."]
    chances = {point.score: point.chance for point in curve.points if point.chance is not None}
    if chances:
        named = (f"{metric(score).title} {chance:.3g}" for score, chance in chances.items())
        legend.append(f"Chance: {', '.join(named)}.")
    return "\n".join([*lines, "", *legend, *notes]) + "\n"


def _cell(summary: Summary) -> str:
    between = "" if summary.between_seeds is None else f" ± {summary.between_seeds:.3f}"
    return f"{summary.value:.3f} [{summary.low:.3f}, {summary.high:.3f}]{between}"


def plot(curve: Curve, folder: Path, name: str, wanted: Sequence[str]) -> None:
    """Plot one panel per score, as PNG and SVG; the x axis is logarithmic.

    Parameters
    ----------
    folder, name : Path
        The files are ``<folder>/<name>.png`` and ``.svg``.
    wanted : Sequence[str]
        Scores that get a panel, where there are points of them.
    """
    from matplotlib import rc_context  # slow to import
    from matplotlib.figure import Figure  # no window, no global state

    scores = [score for score in wanted if score in curve.scores]
    figure = Figure(figsize=(4.2 * len(scores), 3.8), layout="constrained")
    panels = figure.subplots(1, len(scores), squeeze=False)[0]
    ticks = sorted({point.x for point in curve.points})
    for axes, score in zip(panels, scores):
        chance = None
        for way, words in curve.ways.items():
            line = sorted(
                (point for point in curve.points if point.way == way and point.score == score),
                key=lambda point: point.x,
            )
            if not line:
                continue
            x, values = [point.x for point in line], [point.summary for point in line]
            chance = line[0].chance
            (plotted,) = axes.plot(x, [value.value for value in values], marker="o", label=words)
            axes.fill_between(
                x,
                [v.low for v in values],
                [v.high for v in values],
                alpha=0.15,
                color=plotted.get_color(),
                linewidth=0,
            )
        for style, (level, known) in zip(("--", "-.", ":"), curve.levels.items()):
            if score in known:
                axes.axhline(known[score], linestyle=style, color="0.4", label=level)
        if chance is not None:
            axes.axhline(chance, linestyle=":", color="0.6", label="chance")
        axes.set_xscale("log", base=2)
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.minorticks_off()
        axes.set_title(metric(score).title, fontsize=10)
        axes.set_xlabel(curve.x_title)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].legend(fontsize=8, frameon=False)
    figure.suptitle(curve.title, fontsize=11)
    for kind in ("png", "svg"):
        # without a salt matplotlib names SVG elements at random, and equal curves differ as files
        with (
            replaced_path(folder / f"{name}.{kind}") as temporary,
            rc_context({"svg.hashsalt": name}),
        ):
            figure.savefig(
                temporary, format=kind, dpi=150, metadata={"Date": None} if kind == "svg" else None
            )


def write_table(curve: Curve, path: Path, notes: Sequence[str] = ()) -> None:
    """Write the table beside the plot."""
    write_text(path, markdown(curve, notes))
