"""Write the scores of a run: JSON, values of every image, tables, and their provenance."""

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
from braingen.evaluation.feature_store import Progress as ProgressCallback
from braingen.evaluation.image_files import LoadedImages
from braingen.evaluation.metric_table import MetricTable
from braingen.evaluation.metrics import metric
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
from braingen.runtime.console import Progress, console
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
    "images to 256 pixels first, bilinear without antialiasing, as published figures were made"
)
SHOWN = 12
"""Number of best images in the image grid, and of worst ones."""


OWN_SCANS = "own scans"
"""Name of data that `braingen prepare` made from a user's scans."""


class Origin(NamedTuple):
    """Where images come from; tables and comparisons identify a run by it."""

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
    metric_table: MetricTable,
    beside: Sequence[pd.DataFrame],
    missing: Mapping[str, str],
) -> Path:
    """Write all files of an evaluation, with published rows beside ours.

    Parameters
    ----------
    folder : Path
        The run folder.
    scores : Mapping[str, Score]
        With their baselines.
    metric_table : MetricTable
        Scores of the images, with the networks and versions that computed them.
    beside : Sequence[pd.DataFrame]
        Further values of every image, one row per image id each.
    missing : Mapping[str, str]
        Scores that could not be computed -> how to get them.

    Returns
    -------
    Path
        Path of scores.json.
    """
    write_json(folder / SCORES, as_json(scores))
    for name, table in ((PER_IMAGE, metric_table.table), (PAIRED, metric_table.paired)):
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
        "weights": metric_table.weights,
        "versions": metric_table.versions,
        "resizing": RESIZING,
        "missing": dict(missing),
        "titles": {name: metric(name).words for name in scores},
    }
    write_json(folder / COMPUTED_BY, origin._asdict() | record)
    return folder / SCORES


def published_beside(protocol: str) -> Sequence[TableRow]:
    """Return the published NSD rows; none beside own scans, which they do not compare with."""
    return () if protocol.startswith(OWN_SCANS) else PUBLISHED


def _as_pil(images: Any, row: int) -> Image.Image:
    values = np.asarray(images[row])
    if values.dtype != np.uint8:
        values = np.round(values.astype(np.float32) * 255).astype(np.uint8)
    return Image.fromarray(values.transpose(1, 2, 0))


def write_extremes(
    folder: Path, table: pd.DataFrame, truth: LoadedImages, recons: LoadedImages
) -> None:
    """Write a grid of the best and worst images by mean rank, each below the true image."""
    best, worst = best_and_worst(table, SHOWN)
    rows = [{int(image): row for row, image in enumerate(one.image_N)} for one in (truth, recons)]
    pairs = [
        (_as_pil(truth.images, rows[0][int(image)]), _as_pil(recons.images, rows[1][int(image)]))
        for image in (*best, *worst[::-1])
    ]
    ends = f"best: image {best[0]}; worst: image {worst[0]}"
    write_sheet(
        folder / EXTREMES,
        pairs,
        f"The {len(best)} best images, then the {len(worst)} worst ({ends})",
        columns=len(best),
    )


def print_scores(scores: Mapping[str, Score], missing: Mapping[str, str]) -> None:
    """Print the scores as a table."""
    names = ("score", "brain", "95 %", "random", "ridge", "oracle", "chance")
    # narrow enough for a terminal of 80 columns, so that no figure is cut off
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
    terminal = console()
    terminal.print(table)
    # lines below: columns more would not fit
    for field, title in (
        ("encoding_model", "By the encoding model"),
        ("low_level", "Coarse images of the low-level path alone"),
    ):
        values = {name: getattr(score, field) for name, score in scores.items()}
        there = [f"{name} {text(value)}" for name, value in values.items() if value is not None]
        if there:
            terminal.print(f"{title}: {', '.join(there)}.", soft_wrap=True)
    for sentence in missing.values():
        terminal.print(sentence, markup=False, soft_wrap=True)


def feature_progress(progress: Progress) -> ProgressCallback:
    """Return a callback that shows one progress bar per network."""
    bars: dict[str, TaskID] = {}

    def update(name: str, done: int, total: int) -> None:
        if name not in bars:
            bars[name] = progress.add_task(f"features of {name}", total=total)
        progress.update(bars[name], completed=done, total=total)

    return update
