"""What an evaluation leaves in a run folder: figures, values of every image, tables to paste, and
what computed them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from PIL import Image
from rich import box
from rich.progress import TaskID
from rich.table import Column, Table

from braingen.data.image_grid import write_sheet
from braingen.evaluation.feature_store import Progress as Told
from braingen.evaluation.image_files import LoadedImages
from braingen.evaluation.metric_table import MetricTable
from braingen.evaluation.tables import (
    CAUTION,
    PUBLISHED,
    TableRow,
    as_json,
    best_and_worst,
    comma_separated,
    latex,
    markdown,
    rows_of,
)
from braingen.runtime.console import Progress
from braingen.runtime.console import console as new_console
from braingen.runtime.files import write_json, write_text
from braingen.runtime.untrusted import csv_text
from braingen.types import Score

SCORES, PER_IMAGE, TABLE = "scores.json", "scores_per_image.csv", "scores.md"
PAIRED = "scores_paired.csv"
"""Values of every image for comparing runs (`MetricTable.paired`)."""
CSV, LATEX, COMPUTED_BY, EXTREMES = (
    "scores.csv",
    "scores.tex",
    "scores_provenance.json",
    "best_and_worst.png",
)
RESIZING = (
    "pictures to 256 pixels first, bilinear without antialiasing, as published figures were made"
)
SHOWN = 12
"""Best pictures on the sheet, and as many worst ones."""


OWN_SCANS = "own scans"
"""What data are called that `braingen prepare` made from anybody's scans."""


class Origin(NamedTuple):
    """Where pictures come from, as tables and comparisons tell them apart."""

    method: str
    protocol: str
    """Data, subject and sessions."""
    subject: int | None
    """None where it is not known."""
    seed: int


def write_scores(
    folder: Path,
    origin: Origin,
    scores: Mapping[str, Score],
    sheet: MetricTable,
    beside: Sequence[pd.DataFrame],
    missing: Mapping[str, str],
) -> Path:
    """Write everything; the published rows stand beside ours.

    Parameters
    ----------
    folder : Path
        The run folder.
    scores : Mapping[str, Score]
        With their baselines.
    sheet : MetricTable
        Of the pictures, with the networks and versions that made it.
    beside : Sequence[pd.DataFrame]
        Further values of every image, one row per image id each.
    missing : Mapping[str, str]
        What could not be computed -> the sentence that says how to get it.

    Returns
    -------
    Path
        Path of scores.json.
    """
    write_json(folder / SCORES, as_json(scores))
    for name, table in ((PER_IMAGE, sheet.table), (PAIRED, sheet.paired)):
        write_text(
            folder / name, csv_text(pd.concat([table, *beside], axis=1), float_format="%.6g")
        )
    rows = [*rows_of(origin.method, origin.protocol, scores), *published_beside(origin.protocol)]
    published = published_beside(origin.protocol)
    about = f"{CAUTION if published else ''} Computed with {RESIZING}.".strip()
    notes = [about, *(f"Missing: {sentence}" for sentence in missing.values())]
    write_text(folder / TABLE, markdown(rows) + "\n" + "\n\n".join(notes) + "\n")
    write_text(folder / CSV, comma_separated(rows))
    write_text(folder / LATEX, latex(rows))
    record = {
        "weights": sheet.weights,
        "versions": sheet.versions,
        "resizing": RESIZING,
        "missing": dict(missing),
    }
    write_json(folder / COMPUTED_BY, origin._asdict() | record)
    return folder / SCORES


def published_beside(protocol: str) -> Sequence[TableRow]:
    """Published figures on NSD: beside NSD, and for orientation beside simulated data of its form;
    not beside own scans.
    """
    return () if protocol.startswith(OWN_SCANS) else PUBLISHED


def _picture(pictures: Any, row: int) -> Image.Image:
    values = np.asarray(pictures[row])
    if values.dtype != np.uint8:
        values = np.round(values.astype(np.float32) * 255).astype(np.uint8)
    return Image.fromarray(values.transpose(1, 2, 0))


def write_extremes(
    folder: Path, table: pd.DataFrame, truth: LoadedImages, recons: LoadedImages
) -> None:
    """Draw the best and the worst pictures, by their mean rank over all scores of pictures, each
    under what was seen.
    """
    best, worst = best_and_worst(table, SHOWN)
    rows = [{int(image): row for row, image in enumerate(one.image_N)} for one in (truth, recons)]
    pairs = [
        (
            _picture(truth.pictures, rows[0][int(image)]),
            _picture(recons.pictures, rows[1][int(image)]),
        )
        for image in (*best, *worst[::-1])
    ]
    ends = f"best: image {best[0]}; worst: image {worst[0]}"
    write_sheet(
        folder / EXTREMES,
        pairs,
        f"The {len(best)} best pictures, then the {len(worst)} worst ({ends})",
        columns=len(best),
    )


def print_scores(scores: Mapping[str, Score], missing: Mapping[str, str]) -> None:
    """The sheet as a person reads it in a terminal."""
    names = ("score", "brain", "95 %", "random", "ridge", "oracle", "chance")
    # narrow enough for a terminal of 80 columns: a figure that is cut off is no figure
    table = Table(
        *(Column(name, no_wrap=True) for name in names),
        title="scores",
        box=box.SIMPLE,
        padding=(0, 1, 0, 0),
    )

    def text(value: float | None) -> str:
        return "" if value is None else f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}"

    for name, score in scores.items():
        interval = f"{text(score.low)}-{text(score.high)}"
        table.add_row(
            name,
            text(score.value),
            interval,
            text(score.random),
            text(score.ridge),
            text(score.oracle),
            text(score.chance),
        )
    console = new_console()
    console.print(table)
    for sentence in missing.values():
        console.print(sentence, markup=False, soft_wrap=True)


def evidence_of(progress: Progress) -> Told:
    """Shows how far every network is; bars appear as networks begin."""
    bars: dict[str, TaskID] = {}

    def tell(name: str, done: int, total: int) -> None:
        if name not in bars:
            bars[name] = progress.add_task(f"looking with {name}", total=total)
        progress.update(bars[name], completed=done, total=total)

    return tell
