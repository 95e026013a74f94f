"""Evaluated runs beside each other: paired differences with intervals and tests, and several subjects and seeds summarised."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from rich.console import Console
from rich.table import Table
import yaml

from braingen.config import Config
from braingen.errors import UserError
from braingen.files import write_json, write_text
from braingen.scores.table import COLUMNS, column_of
from braingen.scores.uncertainty import Comparison, Summary, compare, summarise
from braingen.stages.score_files import PER_IMAGE

STAGES = ("image", "text", "finetune", "reconstructions/brain")
"""Run folders whose settings make a method."""
NOT_OF_A_METHOD = ("seed", "readers", "finetuned", "weights", "run")
"""Settings, and hashes of what training made, in which two seeds or subjects of one method differ."""


class Evaluated(NamedTuple):
    """A run whose pictures were scored."""

    name: str
    subject: int
    seed: int
    method: str
    """Its settings without subject and seed; runs of one method are alike in it."""
    table: pd.DataFrame
    """Values of every image; the index is the image id."""


def _settings(folder: Path) -> dict[str, dict[str, Any]]:
    found = {}
    for stage in STAGES:
        path = folder / stage / "config.yaml"
        if path.is_file():
            found[stage] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return found


def read_run(folder: Path) -> Evaluated:
    """Read what `braingen evaluate` left in a run folder.

    Raises
    ------
    UserError
        When there is no table of scores per image.
    """
    path = folder / PER_IMAGE
    if not path.is_file():
        raise UserError(f"{folder} has no {PER_IMAGE}: run `braingen evaluate --folder {folder}` first.")
    table = pd.read_csv(path, index_col="image")
    known = [name for name in table if name in COLUMNS or name.startswith("two_way_") or name.endswith("_accuracy")]
    settings = _settings(folder)
    drawn = settings.get("reconstructions/brain", {})
    subject, seed = int(drawn.get("data", {}).get("subjects", [0])[0]), int(drawn.get("seed") or 0)
    for each in settings.values():
        each.get("data", {}).pop("subjects", None)
        for name in NOT_OF_A_METHOD:
            each.pop(name, None)
    # pictures that were only given have no settings: each such run is a method of its own
    method = json.dumps(settings, sort_keys=True, default=str) if settings else str(folder)
    return Evaluated(str(folder), subject, seed, method, table[known])


def methods_of(runs: Sequence[Evaluated]) -> dict[str, list[Evaluated]]:
    """Runs by method; a method is called after its first run."""
    found: dict[str, list[Evaluated]] = {}
    for run in runs:
        found.setdefault(next((name for name, each in found.items() if each[0].method == run.method), run.name), []).append(run)
    return found


def pairwise(runs: Sequence[Evaluated], resamples: int, seed: int) -> list[Comparison]:
    """Every two runs on the same test images, image by image, Holm-corrected over all of them."""
    columns = {run.name: {score: run.table[score].to_numpy() for score in run.table} for run in runs}
    return compare(columns, {run.name: run.table.index.to_numpy() for run in runs}, resamples, seed)


def _values(runs: Sequence[Evaluated], score: str) -> dict[tuple[int, int], np.ndarray]:
    return {(run.subject, run.seed): run.table[score].sort_index().to_numpy() for run in runs if score in run.table}


def summaries(methods: Mapping[str, Sequence[Evaluated]], resamples: int, seed: int) -> pd.DataFrame:
    """Every score of every method over its subjects and seeds; for two methods on the same subjects also their difference.

    A difference is taken image by image between the means over seeds of one subject, then averaged over subjects.

    Returns
    -------
    Columns method, score, value, low, high, between_seeds, between_subjects, subjects, seeds.
    """
    rows = []

    def row(method: str, score: str, values: Mapping[tuple[int, int], np.ndarray]) -> None:
        summary: Summary = summarise(values, resamples, seed)
        rows.append({"method": method, "score": score, **summary._asdict()})

    for method, runs in methods.items():
        for score in runs[0].table:
            row(method, score, _values(runs, score))
    names = list(methods)
    for number, first in enumerate(names):
        for second in names[number + 1 :]:
            mine, theirs = methods[first], methods[second]
            if {run.subject for run in mine} != {run.subject for run in theirs}:
                continue
            for score in mine[0].table:
                left, right = _values(mine, score), _values(theirs, score)
                if not right:
                    continue
                difference = {}
                for subject in {run.subject for run in mine}:
                    a, b = (np.mean([v for (who, _), v in side.items() if who == subject], axis=0) for side in (left, right))
                    if a.shape != b.shape:
                        raise UserError(f"{first} and {second} scored {len(a)} and {len(b)} images of subject {subject}; compare the same.")
                    difference[subject, 0] = a - b
                row(f"{first} minus {second}", score, difference)
    return pd.DataFrame(rows)


def verdict(each: Comparison) -> str:
    """What a comparison says, in words."""
    if not each.differs:
        return "not different"
    return "better" if (each.difference > 0) == column_of(each.score).higher_is_better else "worse"


def _markdown(found: Sequence[Comparison], summary: pd.DataFrame) -> str:
    lines = ["| score | run | against | difference | 95 % interval | p (Holm) | verdict | N |"]
    lines += ["| --- | --- | --- | ---: | :---: | ---: | --- | ---: |"]
    for one in found:
        interval = f"{one.low:+.4f} to {one.high:+.4f}"
        lines.append(
            f"| {column_of(one.score).title} | {one.first} | {one.second} | {one.difference:+.4f} | {interval} | {one.p_holm:.3g} "
            f"| {verdict(one)} | {one.n} |"
        )
    lines += ["", "| method | score | mean | 95 % interval | sd of seeds | sd of subjects | subjects | seeds |"]
    lines += ["| --- | --- | ---: | :---: | ---: | ---: | ---: | ---: |"]
    for _, each in summary.iterrows():
        spread = ["-" if pd.isna(each[name]) else f"{each[name]:.4f}" for name in ("between_seeds", "between_subjects")]
        interval = f"{each['low']:.4f} to {each['high']:.4f}"
        cells = [each["method"], column_of(each["score"]).title, f"{each['value']:.4f}", interval, *spread, each["subjects"], each["seeds"]]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines) + "\n"


def compare_runs(config: Config) -> Path:
    """Compare evaluated runs.

    Returns
    -------
    the folder with comparisons.json, comparisons.csv, summary.csv and comparison.md

    Raises
    ------
    UserError
        With fewer than two runs, one that was not evaluated, or runs of one subject that scored different images.
    """
    folders = [Path(name).expanduser() for name in config.compare.runs]
    if len(set(folders)) < 2:
        raise UserError(f"A comparison needs at least 2 different runs, there is {len(set(folders))}: braingen compare runs/a runs/b ...")
    runs = [read_run(folder) for folder in folders]
    resamples, seed = config.scores.bootstrap, config.run.seed
    subjects = {run.subject for run in runs}
    found: list[Comparison] = []
    for subject in sorted(subjects):  # test images are shared, brains are not: runs are paired within a subject
        same = [run for run in runs if run.subject == subject]
        found += pairwise(same, resamples, seed) if len(same) > 1 else []
    summary = summaries(methods_of(runs), resamples, seed)
    folder = config.compare.output
    folder.mkdir(parents=True, exist_ok=True)
    table = pd.DataFrame([{**one._asdict(), "verdict": verdict(one)} for one in found])
    write_json(folder / "comparisons.json", [{**one._asdict(), "verdict": verdict(one)} for one in found])
    write_text(folder / "comparisons.csv", table.to_csv(index=False, float_format="%.6g"))
    write_text(folder / "summary.csv", summary.to_csv(index=False, float_format="%.6g"))
    write_text(folder / "comparison.md", _markdown(found, summary))
    shown = Table("score", "run", "against", "difference", "95 %", "p (Holm)", "", title="first minus second")
    for one in found:
        interval = f"{one.low:+.4f} to {one.high:+.4f}"
        shown.add_row(one.score, one.first, one.second, f"{one.difference:+.4f}", interval, f"{one.p_holm:.3g}", verdict(one))
    Console().print(shown)
    return folder
