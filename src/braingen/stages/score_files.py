"""What an evaluation leaves in a run folder: figures, values of every image, tables to paste, and what computed them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd
from rich import box
from rich.console import Console
from rich.progress import Progress, TaskID
from rich.table import Column, Table

from braingen.files import write_json, write_text
from braingen.records import Score
from braingen.scores.feature_store import Progress as Told
from braingen.scores.sheet import Sheet
from braingen.scores.table import CAUTION, PUBLISHED, as_json, comma_separated, latex, markdown, rows_of

SCORES, PER_IMAGE, TABLE = "scores.json", "scores_per_image.csv", "scores.md"
CSV, LATEX, COMPUTED_BY = "scores.csv", "scores.tex", "scores_provenance.json"
RESIZING = "pictures to 256 pixels first, bilinear without antialiasing, as published figures were made"


def write_scores(
    folder: Path, protocol: str, scores: Mapping[str, Score], tables: Sequence[pd.DataFrame], sheet: Sheet, missing: Mapping[str, str]
) -> Path:
    """Write everything; the published rows stand beside ours.

    Parameters
    ----------
    folder : the run folder
    protocol : data and subject, as the tables say it
    scores : with their baselines
    tables : values of every image, one row per image id each
    sheet : of the pictures, for the networks and versions that made it
    missing : what could not be computed -> the sentence that says how to get it

    Returns
    -------
    path of scores.json
    """
    write_json(folder / SCORES, as_json(scores))
    write_text(folder / PER_IMAGE, pd.concat(list(tables), axis=1).to_csv(float_format="%.6g"))
    ours = rows_of("BrainGen", protocol, scores)
    write_text(folder / TABLE, markdown([*ours, *PUBLISHED]) + f"\n{CAUTION} Computed with {RESIZING}.\n")
    write_text(folder / CSV, comma_separated([*ours, *PUBLISHED]))
    write_text(folder / LATEX, latex([*ours, *PUBLISHED]))
    record = {"weights": sheet.weights, "versions": sheet.versions, "resizing": RESIZING, "missing": dict(missing)}
    write_json(folder / COMPUTED_BY, record)
    return folder / SCORES


def print_scores(scores: Mapping[str, Score], missing: Mapping[str, str]) -> None:
    """The sheet as a person reads it in a terminal."""
    names = ("score", "brain", "95 %", "random", "ridge", "ceiling", "chance")
    # narrow enough for a terminal of 80 columns: a figure that is cut off is no figure
    table = Table(*(Column(name, no_wrap=True) for name in names), title="scores", box=box.SIMPLE, padding=(0, 1, 0, 0))

    def text(value: float | None) -> str:
        return "" if value is None else f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}"

    for name, score in scores.items():
        interval = f"{text(score.low)}-{text(score.high)}"
        table.add_row(name, text(score.value), interval, text(score.random), text(score.ridge), text(score.ceiling), text(score.chance))
    console = Console()
    console.print(table)
    for sentence in missing.values():
        console.print(sentence)


def told_by(progress: Progress) -> Told:
    """Shows how far every network is; bars appear as networks begin."""
    bars: dict[str, TaskID] = {}

    def tell(name: str, done: int, total: int) -> None:
        if name not in bars:
            bars[name] = progress.add_task(f"looking with {name}", total=total)
        progress.update(bars[name], completed=done, total=total)

    return tell
