"""Compare evaluated runs (paired differences, tests), and summarise subjects and seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import json
import os
from pathlib import Path
import re
from typing import Any, NamedTuple

import pandas as pd
from rich import box
from rich.table import Column, Table

from braingen.config import Config
from braingen.evaluation.metrics import metric, score_columns
from braingen.evaluation.score_files import COMPUTED_BY, PAIRED, PER_IMAGE
from braingen.evaluation.uncertainty import (
    Comparison,
    compare,
    compare_methods,
    holm,
    mean_interval,
    permutation_p,
    summarise,
)
from braingen.runtime.console import add_row, console
from braingen.runtime.contents import DATA
from braingen.runtime.errors import UserError
from braingen.runtime.files import write_json, write_text
from braingen.runtime.paths import typed_run
from braingen.runtime.run_folder import CONTENTS
from braingen.runtime.text_files import read_json, read_yaml
from braingen.runtime.untrusted import csv_text, markdown_cell, one_line

STAGES = ("image", "text", "finetune", "reconstructions/brain")
"""Run folders whose settings make a method."""
NOT_OF_A_METHOD = ("seed", "embedding_decoders", "finetuned", "weights", "run")
"""Settings and hashes of trained weights in which seeds and subjects of one method differ."""


class Evaluated(NamedTuple):
    """A scored run; two-way scores are those of `uncertainty.two_way_by_image`."""

    name: str
    """Its run folder."""
    called: str
    """Name of its method in tables."""
    subject: int
    seed: int
    method: str
    """Its settings without subject and seed; equal for all runs of one method."""
    table: pd.DataFrame
    """Values of every image; the index is the image id."""


def _settings(folder: Path) -> dict[str, dict[str, Any]]:
    found = {}
    of_several = re.fullmatch(r"subj\d\d+", folder.name) is not None
    for stage in STAGES:
        own = folder / stage / "config.yaml"
        path = folder.parent / stage / "config.yaml" if of_several and not own.is_file() else own
        if path.is_file():
            found[stage] = read_yaml(path)
    return found


def read_run(folder: Path) -> Evaluated:
    """Read the scores that `braingen evaluate` wrote into a run folder.

    Raises
    ------
    UserError
        When there is no table of scores per image.
    """
    path = next((folder / name for name in (PAIRED, PER_IMAGE) if (folder / name).is_file()), None)
    if path is None:
        raise UserError(
            f"{folder} has no {PAIRED}: run `braingen evaluate {typed_run(folder)}` first."
        )
    table = pd.read_csv(path, index_col="image")
    try:
        known = score_columns(table)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    settings = _settings(folder)
    origin = read_json(folder / COMPUTED_BY) if (folder / COMPUTED_BY).is_file() else {}
    generated = settings.get("reconstructions/brain", {})
    subject = int((generated.get("data", {}).get("subjects") or [origin.get("subject") or 0])[0])
    seed = int(generated.get("seed") or origin.get("seed") or 0)
    for each in settings.values():
        if "root" in (each.get("data") or {}):  # one folder may be written in several ways
            each["data"]["root"] = os.path.realpath(Path(each["data"]["root"]).expanduser())
        for place, content in (each.pop(CONTENTS, None) or {}).items():
            section, field = place.split(".")
            if place != DATA and section in each:  # a moved model is the same model
                each[section][field] = content
        each.get("data", {}).pop("subjects", None)
        for name in NOT_OF_A_METHOD:
            each.pop(name, None)
    # image files without a run have no settings, so the method's name identifies the method
    named = origin.get("method", "BrainGen")
    method = (
        json.dumps([named, settings], sort_keys=True, default=str)
        if settings or named != "BrainGen"
        else str(folder)
    )
    return Evaluated(str(folder), named, subject, seed, method, table[known])


def evaluated_in(folder: Path) -> list[Path]:
    """Return folders that hold per-image scores: the run folder, or those of its subjects."""
    if not any((folder / name).is_file() for name in (PAIRED, PER_IMAGE)):
        of_subjects = [each.parent for each in sorted(folder.glob(f"subj*/{PAIRED}"))]
        if of_subjects:
            return of_subjects
    return [folder]


def methods_of(runs: Sequence[Evaluated]) -> dict[str, list[Evaluated]]:
    """Group runs by method.

    The method's name is its key, or the first run's folder where two methods share a name.

    Raises
    ------
    UserError
        When two runs of a method have the same subject and seed.
    """
    by_settings: dict[str, list[Evaluated]] = {}
    for run in runs:
        by_settings.setdefault(run.method, []).append(run)
    names = [group[0].called for group in by_settings.values()]
    found = {}
    for called, group in zip(names, by_settings.values()):
        seen: dict[tuple[int, int], str] = {}
        for run in group:
            twin = seen.setdefault((run.subject, run.seed), run.name)
            if twin != run.name:
                raise UserError(
                    f"{twin} and {run.name} are of one method, subject ({run.subject}) and seed"
                    f" ({run.seed}), so they would count twice: leave one out, or evaluate it with"
                    " another name (--method)."
                )
        found[called if names.count(called) == 1 else group[0].name] = group
    return found


def pairwise(runs: Sequence[Evaluated], resamples: int, seed: int) -> list[Comparison]:
    """Compare every two runs on the same test images, Holm-corrected over all comparisons."""
    columns = {
        run.name: {score: run.table[score].to_numpy() for score in run.table} for run in runs
    }
    return compare(columns, {run.name: run.table.index.to_numpy() for run in runs}, resamples, seed)


def _values(runs: Sequence[Evaluated], score: str) -> dict[tuple[int, int], dict[int, float]]:
    return {
        (run.subject, run.seed): run.table[score].to_dict() for run in runs if score in run.table
    }


def summaries(
    methods: Mapping[str, Sequence[Evaluated]], resamples: int, seed: int
) -> pd.DataFrame:
    """Summarise every score of every method over its subjects and seeds.

    Returns
    -------
    pd.DataFrame
        Columns method, score, value, low, high, between_seeds, between_subjects, subjects, seeds.
    """
    rows = []
    for method, runs in methods.items():
        for score in runs[0].table:
            summary = summarise(_values(runs, score), resamples, seed, metric(score).yes_or_no)
            rows.append({"method": method, "score": score, **summary._asdict()})
    return pd.DataFrame(rows)


def between_methods(
    methods: Mapping[str, Sequence[Evaluated]], resamples: int, seed: int
) -> list[Comparison]:
    """Compare every two methods with the same subjects on every shared score, Holm-corrected."""
    found = []
    names = list(methods)
    for number, first in enumerate(names):
        for second in names[number + 1 :]:
            if {run.subject for run in methods[first]} != {run.subject for run in methods[second]}:
                continue
            for score in methods[first][0].table:
                if not all(score in run.table for name in (first, second) for run in methods[name]):
                    continue
                sides: list[dict[int, dict[int, dict[int, float]]]] = [{}, {}]
                for side, name in zip(sides, (first, second)):
                    for run in methods[name]:
                        side.setdefault(run.subject, {})[run.seed] = run.table[score].to_dict()
                differences = compare_methods(*sides)
                p = permutation_p(differences, resamples, seed)
                interval = mean_interval(differences, resamples, seed)
                found.append(
                    Comparison(score, first, second, *interval, p=p, p_holm=p, n=len(differences))
                )
    corrected = holm([one.p for one in found])
    return [one._replace(p_holm=float(p)) for one, p in zip(found, corrected)]


def conclusion(each: Comparison) -> str:
    """Return "better", "worse" or "not different" for the first side of a comparison."""
    if not each.differs:
        return "not different"
    return "better" if (each.difference > 0) == metric(each.score).higher_is_better else "worse"


def _comparison_table(found: Sequence[Comparison]) -> list[str]:
    lines = [
        "| score | first | second | first - second | 95 % interval | p (Holm) | first is | N |"
    ]
    lines += ["| --- | --- | --- | ---: | :---: | ---: | --- | ---: |"]
    for one in found:
        interval = f"{one.low:+.4f} to {one.high:+.4f}"
        names = f"{markdown_cell(one.first)} | {markdown_cell(one.second)}"
        lines.append(
            f"| {metric(one.score).title} | {names} | {one.difference:+.4f} | {interval} |"
            f" {one.p_holm:.3g} | {conclusion(one)} | {one.n} |"
        )
    return lines


def _markdown(
    runs: Sequence[Comparison], methods: Sequence[Comparison], summary: pd.DataFrame
) -> str:
    lines = ["Runs of one subject, image by image:", "", *_comparison_table(runs)] if runs else []
    if methods:
        lines += ["", "Methods, seeds and subjects averaged:", "", *_comparison_table(methods)]
    lines += [
        "",
        (
            "| method | score | mean | 95 % interval | sd of seeds | sd of subjects | subjects |"
            " seeds |"
        ),
    ]
    lines += ["| --- | --- | ---: | :---: | ---: | ---: | ---: | ---: |"]
    for _, each in summary.iterrows():
        spread = [
            "-" if pd.isna(each[name]) else f"{each[name]:.4f}"
            for name in ("between_seeds", "between_subjects")
        ]
        interval = f"{each['low']:.4f} to {each['high']:.4f}"
        cells = [
            markdown_cell(each["method"]),
            metric(each["score"]).title,
            f"{each['value']:.4f}",
            interval,
            *spread,
            each["subjects"],
            each["seeds"],
        ]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines) + "\n"


def _records(found: Sequence[Comparison], level: str) -> list[dict[str, Any]]:
    return [{"level": level, **one._asdict(), "conclusion": conclusion(one)} for one in found]


def compare_runs(config: Config) -> Path:
    """Compare evaluated runs within each subject, and methods over their subjects and seeds.

    Returns
    -------
    Path
        The folder with comparisons.json, comparisons.csv, summary.csv and comparison.md.

    Raises
    ------
    UserError
        With fewer than two runs, one that was not evaluated, or runs of one subject that scored
        different images.
    """
    folders = list(dict.fromkeys(Path(name).expanduser() for name in config.compare.runs))
    if len(folders) < 2:
        raise UserError(
            f"A comparison needs at least 2 different runs, there is {len(folders)}: braingen"
            " compare runs/a runs/b ..."
        )
    runs = [read_run(each) for folder in folders for each in evaluated_in(folder)]
    resamples, seed = config.evaluation.bootstrap, config.run.seed
    found: list[Comparison] = []
    # subjects share test images but not voxels, so runs are paired within a subject
    for subject in sorted({run.subject for run in runs}):
        same = [run for run in runs if run.subject == subject]
        found += pairwise(same, resamples, seed) if len(same) > 1 else []
    corrected = holm([one.p for one in found])  # over all subjects
    found = [one._replace(p_holm=float(p)) for one, p in zip(found, corrected)]
    methods = methods_of(runs)
    summary = summaries(methods, resamples, seed)
    several = len(methods) < len(runs)
    together = between_methods(methods, resamples, seed) if several else []
    folder = config.compare.output
    folder.mkdir(parents=True, exist_ok=True)
    records = _records(found, "runs") + _records(together, "methods")
    write_json(folder / "comparisons.json", records)
    write_text(
        folder / "comparisons.csv",
        csv_text(pd.DataFrame(records), index=False, float_format="%.6g"),
    )
    write_text(folder / "summary.csv", csv_text(summary, index=False, float_format="%.6g"))
    write_text(folder / "comparison.md", _markdown(found, together, summary))
    print_comparisons([*found, *together])
    return folder


def print_comparisons(found: Sequence[Comparison]) -> None:
    """Print a table for each pair of runs, narrow enough for a terminal of 80 columns.

    Parameters
    ----------
    found : Sequence[Comparison]
        Comparisons, of any pairs in any order.
    """
    for first, second in dict.fromkeys((one.first, one.second) for one in found):
        shown = Table(
            Column("score", overflow="fold"),  # the longest names take two lines
            *(
                Column(name, no_wrap=True)
                for name in ("difference", "95 %", "p (Holm)", "first is")
            ),
            title=f"{one_line(first)} minus {one_line(second)}",
            title_justify="left",
            box=box.SIMPLE_HEAD,
            show_edge=False,
            padding=0,  # the box leaves a blank between columns
        )
        for one in found:
            if (one.first, one.second) == (first, second):
                interval = f"{one.low:+.4f} to {one.high:+.4f}"
                difference, p = f"{one.difference:+.4f}", f"{one.p_holm:.3g}"
                add_row(shown, one.score, difference, interval, p, conclusion(one))
        console().print(shown)
