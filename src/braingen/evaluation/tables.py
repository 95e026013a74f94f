"""Tables in the field's column order, with published rows beside ours, each with N and protocol."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import csv
import io
import math
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from braingen.evaluation.metrics import FIELD, in_tables, metric
from braingen.runtime.untrusted import csv_cell, markdown_cell, one_line
from braingen.types import Score


class TableRow(NamedTuple):
    """Scores of one method; fractions, not per cent."""

    method: str
    protocol: str
    """Subjects, sessions, and other conditions of the figures."""
    n: int
    """Test images."""
    scores: Mapping[str, Score | float]
    """By the names of `METRICS`; a published figure is a bare number."""


def _published(
    method: str, protocol: str, figures: str, n: int = 1000, **others: float
) -> TableRow:
    """Figures in the order of the field's columns, "-" where none was published."""
    printed = zip(FIELD, figures.split("/"))
    values = {
        name: float(figure) / (100 if metric(name).percent else 1)
        for name, figure in printed
        if figure != "-"
    }
    return TableRow(method, protocol, n, values | others)


_MEAN40 = "NSD, mean of subjects 1, 2, 5, 7; 40 sessions"
_MEAN1 = "NSD, mean of subjects 1, 2, 5, 7; 1 session"
PUBLISHED = (
    _published("Brain-IT", _MEAN40, ".386/.486/98.4/99.5/97.3/96.4/.564/.320"),
    _published("MindTuner", _MEAN40, ".322/.421/95.8/98.8/95.6/93.8/.612/.340"),
    _published("MindEye2", _MEAN40, ".322/.431/96.1/98.6/95.4/93.0/.619/.344"),
    _published(
        "MindBridge",
        f"{_MEAN40}; Alex(2) unconfirmed",
        ".151/.263/87.7/95.5/92.4/94.7/.712/.418",
        n=982,
    ),
    _published(
        "MoRE-Brain",
        f"{_MEAN40}; published code compares bytes 0-255 with [0, 1]",
        "-/.415/79.2/-/96.2/-/-/-",
        dreamsim=0.507,
    ),
    _published(
        "MindEye2",
        "NSD, subject 1; 40 sessions",
        ".374/.440/97.9/99.1/96.0/93.7/.608/.336",
        retrieval_brain_to_image=0.9987,
        retrieval_image_to_brain=0.9996,
    ),
    _published("Brain-IT", _MEAN1, ".331/.473/97.1/-/-/-/-/-"),
    _published("MindTuner", _MEAN1, ".224/.420/87.8/-/-/-/-/-"),
    _published("MindEye2", _MEAN1, ".195/.419/84.2/90.6/81.2/79.2/-/-"),
    _published("ZEBRA", "NSD, no data of the subject", ".131/.375/74.6/81.2/72.2/71.5/-/-"),
)
"""Figures on NSD, as printed. MindEye2's two retrievals are swapped: its code computes the reverse
of what it prints.
"""
CAUTION = (
    "Published rows are on NSD and stand beside simulated data for orientation only; a change of"
    " seed moves two-way scores by up to 0.6 points and PixCorr by up to .006. Older papers used"
    " 982 test images, MindEye2 and later 1000."
)


def as_json(scores: Mapping[str, Score]) -> dict[str, dict[str, float | int | None]]:
    """Return scores as plain JSON values, undefined ones as null."""

    def plain(value: Any) -> float | int | None:
        return (
            None
            if value is None or (isinstance(value, float) and not math.isfinite(value))
            else value
        )

    return {
        name: {key: plain(value) for key, value in score._asdict().items()}
        for name, score in scores.items()
    }


def _number(name: str, value: float | None) -> str:
    column = metric(name)
    if value is None:
        return "-"
    text = f"{value * (100 if column.percent else 1):.{column.digits}f}"
    return (
        text.replace("0.", ".", 1)
        if not column.percent and text.startswith(("0.", "-0."))
        else text
    )


def _cell(name: str, score: Score | float | None, interval: bool) -> str:
    if score is None:
        return "-"
    if not isinstance(score, Score):
        return _number(name, score)
    text = _number(name, score.value)
    if interval and score.low is not None and score.high is not None:
        text += f" [{_number(name, score.low)}, {_number(name, score.high)}]"
    return text


def _names(rows: Sequence[TableRow]) -> list[str]:
    return in_tables(name for row in rows for name in row.scores)


def _heading(name: str, better: tuple[str, str]) -> str:
    column = metric(name)
    return f"{column.title} {better[0] if column.higher_is_better else better[1]}"


def markdown(rows: Sequence[TableRow], interval: bool = True) -> str:
    """Return a Markdown table; our values have 95 % intervals."""
    names = _names(rows)
    head = ["Method", "Protocol", "N", *(_heading(name, ("↑", "↓")) for name in names)]
    lines = [head, ["---", "---", *["---:"] * (len(names) + 1)]]
    for row in rows:
        lines.append(
            [
                markdown_cell(row.method),
                markdown_cell(row.protocol),
                str(row.n),
                *(_cell(name, row.scores.get(name), interval) for name in names),
            ]
        )
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


_LATEX = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "_": r"\_",
    "#": r"\#",
    "$": r"\$",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
}


def _latex_text(text: str) -> str:
    return "".join(_LATEX.get(letter, letter) for letter in text).replace("->", r"$\rightarrow$")


def latex(rows: Sequence[TableRow], interval: bool = False) -> str:
    r"""Return a LaTeX table for the booktabs package; the best value of every column is bold."""
    names = _names(rows)
    best = {name: _best(name, rows) for name in names}
    lines = [r"\begin{tabular}{ll" + "r" * (len(names) + 1) + "}", r"\toprule"]
    heads = []
    for name in names:
        column = metric(name)
        arrow = r"$\uparrow$" if column.higher_is_better else r"$\downarrow$"
        heads.append(f"{_latex_text(column.title)} {arrow}")
    lines += [" & ".join(["Method", "Protocol", "N", *heads]) + r" \\", r"\midrule"]
    for row in rows:
        cells = []
        for name in names:
            score = row.scores.get(name)
            cell = _cell(name, score, interval)
            value = score.value if isinstance(score, Score) else score
            cells.append(
                rf"\textbf{{{cell}}}" if value is not None and value == best[name] else cell
            )
        lines.append(
            " & ".join(
                [
                    _latex_text(one_line(row.method)),
                    _latex_text(one_line(row.protocol)),
                    str(row.n),
                    *cells,
                ]
            )
            + r" \\"
        )
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + "\n"


def _best(name: str, rows: Sequence[TableRow]) -> float | None:
    scores = [row.scores.get(name) for row in rows]
    values = [s.value if isinstance(s, Score) else s for s in scores]
    known = [value for value in values if value is not None]
    if len(known) < 2:
        return None
    return max(known) if metric(name).higher_is_better else min(known)


def comma_separated(rows: Sequence[TableRow]) -> str:
    """Return CSV with one line per method and score, all fields of a score as fractions."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["method", "protocol", "score", "better", *Score._fields])
    for row in rows:
        for name in _names([row]):
            score = row.scores[name]
            full = (
                score
                if isinstance(score, Score)
                else Score(score, None, None, None, None, None, None, row.n, None)
            )
            better = "higher" if metric(name).higher_is_better else "lower"
            writer.writerow(
                [
                    csv_cell(row.method),
                    csv_cell(row.protocol),
                    csv_cell(name),
                    better,
                    *("" if value is None else value for value in full),
                ]
            )
    return out.getvalue()


def rows_of(
    name: str, protocol: str, scores: Mapping[str, Score], baselines: bool = True
) -> list[TableRow]:
    """Return our row, followed by rows of the baselines in its scores."""
    rows = [
        TableRow(
            name, protocol, max((score.n for score in scores.values()), default=0), dict(scores)
        )
    ]
    if baselines:
        for field, title in (
            ("oracle", "oracle: true embeddings"),
            ("ridge", "ridge regression"),
            ("encoding_model", "encoding model"),
            ("low_level", "coarse images of the low-level path"),
            ("random", "random voxels"),
        ):
            values = {
                key: getattr(score, field)
                for key, score in scores.items()
                if getattr(score, field) is not None
            }
            if values:
                rows.append(TableRow(f"{name}, {title}", protocol, rows[0].n, values))
    return rows


def best_and_worst(table: pd.DataFrame, count: int = 8) -> tuple[np.ndarray, np.ndarray]:
    """Return ids of the best (best first) and worst (worst first) images by mean rank."""
    ranks = [table[name].rank(ascending=not metric(name).higher_is_better) for name in table]
    order = table.index[np.argsort(np.mean(ranks, axis=0), kind="stable")].to_numpy()
    return order[:count], order[::-1][:count]
