"""Scores averaged over subjects, as papers report them, beside each subject's own scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from rich import box
from rich.table import Column, Table

from braingen.config import Config
from braingen.data.stimuli import Stimuli
from braingen.evaluation.compare import read_run
from braingen.evaluation.score_files import CSV, LATEX, SCORES, TABLE, published_beside
from braingen.evaluation.tables import (
    CAUTION,
    TableRow,
    as_json,
    comma_separated,
    latex,
    markdown,
    rows_of,
)
from braingen.evaluation.uncertainty import summarise
from braingen.runtime.console import add_row, console
from braingen.runtime.data_layout import Layout
from braingen.runtime.files import write_json, write_text
from braingen.runtime.paths import subject_configs
from braingen.runtime.text_files import read_json
from braingen.types import Score

BASELINES = ("random", "oracle", "ridge", "encoding_model", "low_level", "chance")


class SubjectScores(NamedTuple):
    """Scores of one subject."""

    number: int
    scores: dict[str, Score]
    images: dict[str, dict[int, float]]
    """Score -> image id -> value."""


def read_subject(config: Config) -> SubjectScores:
    """Read the scores of a subject's folder."""
    folder = config.run.folder
    scores = {name: Score(**fields) for name, fields in read_json(folder / SCORES).items()}
    table = read_run(folder).table
    return SubjectScores(
        config.data.subjects[0], scores, {name: table[name].to_dict() for name in table}
    )


def mean_scores(subjects: Sequence[SubjectScores], resamples: int, seed: int) -> dict[str, Score]:
    """Average every score that all subjects have; its interval is over images.

    The interval is None where a score has no per-image values. Baselines and ``n`` (rounded) are
    averaged too.
    """
    found = {}
    for name in subjects[0].scores:
        each = [subject.scores.get(name) for subject in subjects]
        scores = [score for score in each if score is not None and score.value is not None]
        if len(scores) < len(subjects):
            continue
        low = high = None
        if all(name in subject.images for subject in subjects):
            summary = summarise(
                {(subject.number, 0): subject.images[name] for subject in subjects}, resamples, seed
            )
            low, high = summary.low, summary.high
        baselines = {key: _mean([getattr(score, key) for score in scores]) for key in BASELINES}
        pools = {score.pool for score in scores}
        n = round(sum(score.n for score in scores) / len(scores))
        found[name] = Score(
            _mean([s.value for s in scores]),
            low,
            high,
            n=n,
            pool=pools.pop() if len(pools) == 1 else None,
            **baselines,
        )
    return found


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if len(known) == len(values) else None


def write_mean(config: Config) -> Path:
    """Write and print the mean over the subjects of a run, and every subject's scores beside it.

    Returns
    -------
    Path
        Path of scores.json in the run folder; the tables are beside it.
    """
    subjects = [read_subject(one) for one in subject_configs(config)]
    mean = mean_scores(subjects, config.evaluation.bootstrap, config.run.seed)
    folder, data = config.run.folder, Stimuli(Layout.of(config.data.root)).data_name
    sessions = (
        f"{config.data.num_sessions or 'all'} session{'' if config.data.num_sessions == 1 else 's'}"
    )
    numbers = ", ".join(str(subject.number) for subject in subjects)
    method = config.evaluation.method
    rows: list[TableRow] = rows_of(method, f"{data}, mean of subjects {numbers}; {sessions}", mean)
    for subject in subjects:
        rows += rows_of(
            method, f"{data}, subject {subject.number}; {sessions}", subject.scores, baselines=False
        )
    rows += published_beside(data)
    write_text(
        folder / TABLE, markdown(rows) + (f"\n{CAUTION}\n" if published_beside(data) else "")
    )
    write_text(folder / CSV, comma_separated(rows))
    write_text(folder / LATEX, latex(rows))
    write_json(folder / SCORES, as_json(mean))
    print_mean(subjects, mean)
    return folder / SCORES


def print_mean(subjects: Sequence[SubjectScores], mean: Mapping[str, Score]) -> None:
    """Print means and subjects side by side."""
    names = ("score", "mean", "95 %", *(f"subj {subject.number}" for subject in subjects))
    table = Table(
        *(Column(name, no_wrap=True) for name in names),
        title="mean of subjects",
        box=box.SIMPLE,
        padding=(0, 1, 0, 0),
    )

    def text(value: float | None) -> str:
        return "" if value is None else f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}"

    for name, score in mean.items():
        interval = "" if score.low is None else f"{text(score.low)}-{text(score.high)}"
        add_row(
            table,
            name,
            text(score.value),
            interval,
            *(text(subject.scores[name].value) for subject in subjects),
        )
    console().print(table)
