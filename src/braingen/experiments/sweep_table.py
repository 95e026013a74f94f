"""The table of a sweep: settings, what combinations are compared by, and test scores beside it."""

from __future__ import annotations

from collections.abc import Sequence
import csv
import io
import math
from pathlib import Path
from typing import Any, Literal, NamedTuple

from braingen.evaluation.metrics import METRICS
from braingen.experiments.search_space import Axis
from braingen.experiments.sweep_point import PointResult
from braingen.report.parallel_coordinates import Coordinate, parallel_coordinates
from braingen.report.sweep import SweepLine, render_sweep
from braingen.runtime.errors import UserError
from braingen.runtime.files import write_json, write_text
from braingen.runtime.text_files import read_json
from braingen.runtime.untrusted import csv_cell

STAGES = {
    "train image": "image",
    "train text": "text",
    "train low_level": "low_level",
    "train encoding": "encoding",
    "finetune": "finetune",
}
"""Command -> folder of its training inside the run."""
DIRECTIONS = {
    "best_validation_cosine": "maximize",
    "best_validation_explained": "maximize",
    "best_validation_denoising": "minimize",
}
"""What trainings write of held-out images -> whether more is better."""
USUAL = {
    "image": "best_validation_cosine",
    "text": "best_validation_cosine",
    "low_level": "best_validation_explained",
    "finetune": "best_validation_denoising",
}
PLOT, TABLE, PAGE = "parallel", "sweep", "sweep.html"


class SweepRow(NamedTuple):
    """A combination with its result."""

    settings: dict[str, str]
    folder: Path
    result: PointResult
    value: float | None
    """What it is compared by; None where it is not finished, or has none."""

    @property
    def words(self) -> str:
        """Its settings as they are typed."""
        return " ".join(f"{name}={value}" for name, value in self.settings.items())


class Objective(NamedTuple):
    """What combinations are compared by: a value in the summary of a training."""

    stage: str
    """Folder of the training."""
    keys: tuple[str, ...]
    """Where the value stands in its summary."""
    direction: Literal["maximize", "minimize"]

    @property
    def name(self) -> str:
        """As it is typed."""
        return ".".join((self.stage, *self.keys))

    def value_in(self, folder: Path) -> float | None:
        """The value of a combination; None where there is none, or it is not finite."""
        path = folder / self.stage / "finished"
        found: Any = read_json(path) if path.is_file() else None
        for key in self.keys:
            found = found.get(key) if isinstance(found, dict) else None
        usable = isinstance(found, int | float) and math.isfinite(found)
        return float(found) if usable else None

    def best(self, rows: Sequence[SweepRow]) -> SweepRow:
        """The best of rows with values; the first of equal ones."""
        sign = 1 if self.direction == "maximize" else -1
        return max(rows, key=lambda row: sign * (row.value or 0.0))

    def missing(self, rows: Sequence[SweepRow]) -> str:
        """What the summaries hold instead."""
        for row in rows:
            path = row.folder / self.stage / "finished"
            if path.is_file():
                return f"the summary of {self.stage} holds {', '.join(read_json(path))}."
        return f"no combination has trained {self.stage}."


def objective_of(
    commands: Sequence[str], given: str, direction: Literal["auto", "maximize", "minimize"]
) -> Objective:
    """What combinations are compared by.

    Parameters
    ----------
    commands : Sequence[str]
        Of every combination.
    given : str
        FOLDER.NAME; empty for that of the last training.

    Raises
    ------
    UserError
        When no command trains, when it is not of a training, or its direction is not known.
    """
    trained = [
        stage
        for command in commands
        for start, stage in STAGES.items()
        if " ".join(command.split()).startswith(start)
    ]
    if not given:
        usual = [stage for stage in trained if stage in USUAL]
        if not usual:
            raise UserError(
                "sweep.commands trains nothing that combinations can be compared by: name a value"
                " of held-out images, --objective FOLDER.NAME, or add a training (train image)."
            )
        given = f"{usual[-1]}.{USUAL[usual[-1]]}"
    stage, *keys = given.split(".")
    if stage not in STAGES.values() or not keys or not all(keys):
        raise UserError(
            f"sweep.objective = {given} is not allowed: give FOLDER.NAME of the summary of a"
            f" training (FOLDER: {', '.join(STAGES.values())}), such as"
            " image.best_validation_cosine. Test images choose nothing."
        )
    if direction == "auto":
        if keys[-1] not in DIRECTIONS:
            raise UserError(
                f"Whether more of {given} is better is not known: give --direction maximize or"
                " --direction minimize."
            )
        direction = "maximize" if DIRECTIONS[keys[-1]] == "maximize" else "minimize"
    return Objective(stage, tuple(keys), direction)


def scores_of_test_images(folder: Path) -> dict[str, float]:
    """Scores of test images of a combination, where it was evaluated; they choose nothing."""
    path = folder / "scores.json"
    if not path.is_file():
        return {}
    return {
        name: float(score["value"])
        for name, score in read_json(path).items()
        if name in METRICS and score.get("value") is not None
    }


def write_table(
    folder: Path, axes: Sequence[Axis], objective: Objective, rows: Sequence[SweepRow], title: str
) -> None:
    """Write sweep.csv, sweep.json, the plot and the page; rows in the order of the combinations."""
    names = [axis.setting for axis in axes]
    scores = {row.folder: scores_of_test_images(row.folder) for row in rows}
    columns = [name for name in METRICS if any(name in found for found in scores.values())]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    head = [*names, objective.name, *(f"test {name}" for name in columns)]
    writer.writerow([*head, "state", "seconds", "message", "folder"])
    for row in rows:
        cells: list[Any] = [row.settings[name] for name in names]
        cells += ["" if row.value is None else row.value]
        cells += [scores[row.folder].get(name, "") for name in columns]
        result = row.result
        cells += [result.state, result.seconds, result.message, row.folder.name]
        writer.writerow([csv_cell(cell) for cell in cells])
    write_text(folder / f"{TABLE}.csv", out.getvalue())
    good = [row for row in rows if row.value is not None]
    best = objective.best(good) if good else None
    write_json(
        folder / f"{TABLE}.json",
        {
            "objective": objective.name,
            "direction": objective.direction,
            "best": None if best is None else best.folder.name,
            "rows": [
                {
                    "settings": row.settings,
                    "value": row.value,
                    "test": scores[row.folder],
                    **row.result._asdict(),
                    "folder": row.folder.name,
                }
                for row in rows
            ],
        },
    )
    if good:
        coordinates = [
            Coordinate(
                axis.setting, [row.settings[axis.setting] for row in good], axis.values, axis.log
            )
            for axis in axes
        ]
        values = [float(row.value or 0.0) for row in good]
        parallel_coordinates(
            coordinates, objective.name, values, objective.direction == "maximize", folder / PLOT
        )
    lines = [
        SweepLine(
            [row.settings[name] for name in names],
            row.value,
            [scores[row.folder].get(name) for name in columns],
            row.result.state,
            row.result.seconds,
            row.result.message,
            row.folder.name,
            row is best,
        )
        for row in rows
    ]
    plot = (folder / f"{PLOT}.png").read_bytes() if good else b""
    page = render_sweep(title, names, objective.name, objective.direction, columns, lines, plot)
    write_text(folder / PAGE, page)
