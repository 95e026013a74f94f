"""`braingen sweep`: the same commands for every combination of some settings, in one table.

Combinations are compared by a value of held-out training images, never by test images. Every one
has a folder of its own below RUN/sweep; what is finished is kept, and the same command continues.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
import hashlib
import json
from pathlib import Path
from typing import Any, NamedTuple

from braingen.config import Config, load_config
from braingen.experiments.search_space import Axis, as_typed, distributions, grid, parse_space
from braingen.experiments.sweep_jobs import run_points
from braingen.experiments.sweep_point import (
    FINISHED,
    POINT,
    SETTINGS,
    STOPPED,
    PointResult,
    result_of,
)
from braingen.experiments.sweep_table import Objective, SweepRow, objective_of, write_table
from braingen.runtime.console import console
from braingen.runtime.contents import contents_of
from braingen.runtime.errors import UserError
from braingen.runtime.extras import need
from braingen.runtime.files import write_json, write_text
from braingen.runtime.preemption import Stopped
from braingen.runtime.run_folder import CONTENTS, Run, config_text
from braingen.runtime.seeds import hash_seed

FOLDER, BASE, STUDY = "sweep", "base.yaml", "optuna.log"
COMMANDS = Path(__file__).parents[1] / "commands"
MAY_CHANGE = ("run.device", "run.processes", "run.save_minutes", "run.tracker")
"""Settings of the machine, which may differ when a sweep is continued."""


class SweepPoint(NamedTuple):
    """A combination."""

    settings: dict[str, str]
    """Setting -> value, as typed."""
    folder: Path


class SweepBatch(NamedTuple):
    """Combinations that are run together."""

    points: list[SweepPoint]
    earlier: Sequence[SweepPoint] = ()
    """Those of earlier batches, which have ended."""


def sweep(config: Config) -> Path:
    """Run the commands for every combination; finished combinations are kept.

    Writes ``sweep.csv``, ``sweep.json``, ``parallel.svg`` and ``parallel.png`` beside the page.

    Returns
    -------
    Path
        Path of the page.

    Raises
    ------
    UserError
        Before anything runs, when a combination is not allowed; afterwards, when every combination
        failed.
    """
    chosen, folder = config.sweep, config.run.folder / FOLDER
    axes = parse_space(chosen.over)
    _check_commands(chosen.commands)
    objective = objective_of(chosen.commands, chosen.objective, chosen.direction)
    if chosen.method == "optuna":
        need("sweep", "sweep.method=optuna")
    if chosen.cluster != "none":
        need("slurm", f"sweep.cluster={chosen.cluster}")
    settings = config.model_dump(mode="json", exclude={"sweep": True})
    settings[CONTENTS] = contents_of(settings)
    with Run.start(folder, settings, {"run": config.run.seed}, MAY_CHANGE):
        given = config.model_dump(mode="json", exclude_unset=True, exclude={"sweep": True})
        write_text(folder / BASE, config_text(given))
        batches = (
            _optuna(config, folder, axes, objective)
            if chosen.method == "optuna"
            else _grid(config, folder, axes)
        )
        points: dict[Path, SweepPoint] = {}
        for batch in batches:
            points |= {point.folder: point for point in (*batch.earlier, *batch.points)}
            ended = run_points(config, folder, [point.folder for point in batch.points])
            _write(config, folder, axes, objective, list(points.values()))
            if any(result.state == STOPPED for result in ended):
                raise Stopped
        rows = _write(config, folder, axes, objective, list(points.values()))
    return _told(folder, rows, objective)


def _check_commands(commands: Sequence[str]) -> None:
    """Refuse what is no command before anything runs."""
    known = {path.stem.replace("_", "-") for path in COMMANDS.glob("[!_]*.py")} - {"sweep", "base"}
    for command in commands:
        name = command.split()[0] if command.split() else ""
        if name not in known:
            raise UserError(
                f"sweep.commands: {command!r} is no command of braingen; for instance"
                " --commands 'train image,train text,finetune'."
            )


def _point(folder: Path, settings: dict[str, str], commands: Sequence[str]) -> SweepPoint:
    """Make the folder of a combination, with all settings in a file.

    Raises
    ------
    UserError
        When the combination is not allowed.
    """
    try:
        config = load_config(folder / BASE, settings)
    except UserError as error:
        shown = " ".join(f"{name}={value}" for name, value in settings.items())
        raise UserError(f"The combination {shown} is not possible: {error}") from error
    values = {name: _value(config, name) for name in settings}
    name = hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).hexdigest()[:10]
    own = folder / name
    config = config.model_copy(update={"run": config.run.model_copy(update={"folder": own})})
    given = config.model_dump(mode="json", exclude_unset=True, exclude={"sweep": True})
    write_text(own / SETTINGS, config_text(given))
    write_json(
        own / POINT, {"settings": settings, "commands": list(commands), "group": folder.parent.name}
    )
    return SweepPoint(settings, own)


def _value(config: Config, setting: str) -> Any:
    section, _, field = setting.partition(".")
    return getattr(getattr(config, section), field)


def _grid(config: Config, folder: Path, axes: Sequence[Axis]) -> Iterator[SweepBatch]:
    """All combinations at once."""
    yield SweepBatch([_point(folder, each, config.sweep.commands) for each in grid(axes)])


def _optuna(
    config: Config, folder: Path, axes: Sequence[Axis], objective: Objective
) -> Iterator[SweepBatch]:
    """Combinations that Optuna proposes, as many at once as there are jobs.

    Proposals depend on the seed, the number of the proposal and the results before it, so that an
    interrupted sweep proposes what an uninterrupted one does.
    """
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend
    from optuna.trial import TrialState

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(
        storage=JournalStorage(JournalFileBackend(str(folder / STUDY))),
        study_name=FOLDER,
        direction=objective.direction,
        load_if_exists=True,
    )
    space, chosen = distributions(axes), config.sweep
    while True:
        known = study.get_trials(deepcopy=False)
        for trial in known:  # with the axes of this sweep, or of another
            if trial.distributions and dict(trial.distributions) != space:
                raise UserError(
                    f"{folder / STUDY} holds trials over {', '.join(trial.distributions)} with"
                    " other values: give the same --over to continue, or another --folder."
                )
        waiting = [trial for trial in known if trial.state == TrialState.RUNNING]
        batch = [(trial.number, trial.params) for trial in waiting]
        others = len(known) - len(waiting)
        while len(batch) < chosen.jobs and others + len(batch) < chosen.n_trials:
            number = others + len(batch)
            study.sampler = optuna.samplers.TPESampler(
                seed=hash_seed(config.run.seed, "sweep", number) % 2**32
            )
            asked = study.ask(space)
            batch.append((asked.number, asked.params))
        finished = [trial for trial in known if trial.state.is_finished()]
        done = [_point(folder, as_typed(trial.params), chosen.commands) for trial in finished]
        if not batch:
            yield SweepBatch([], done)
            return
        points = [_point(folder, as_typed(params), chosen.commands) for _, params in batch]
        yield SweepBatch(points, done)
        for (number, _), point in zip(batch, points):
            value = objective.value_in(point.folder)
            if value is None:
                study.tell(number, state=TrialState.FAIL)
            else:
                study.tell(number, value)


def _write(
    config: Config,
    folder: Path,
    axes: Sequence[Axis],
    objective: Objective,
    points: Sequence[SweepPoint],
) -> list[SweepRow]:
    """Write table, plot and page of what there is."""
    rows = []
    for point in points:
        result = result_of(point.folder) or PointResult("waiting", 0.0)
        value = objective.value_in(point.folder) if result.state == FINISHED else None
        rows.append(SweepRow(point.settings, point.folder, result, value))
    write_table(folder, axes, objective, rows, config.run.folder.name)
    return rows


def _told(folder: Path, rows: Sequence[SweepRow], objective: Objective) -> Path:
    """Print the best combination, and what failed."""
    terminal = console()
    good = [row for row in rows if row.value is not None]
    bad = [row for row in rows if row.result.state not in (FINISHED, "waiting")]
    for row in bad:
        terminal.print(f"Failed: {row.words}: {row.result.command}: {row.result.message}")
    if not good:
        first = bad[0].result.message if bad else objective.missing(rows)
        raise UserError(
            f"No combination has a value of {objective.name}: {first} The logs are"
            f" {folder}/*/log.txt."
        )
    best = objective.best(good)
    terminal.print(
        f"Best of {len(good)} by {objective.name}: {best.words} ({best.value:.4g}), in"
        f" {best.folder}.",
        soft_wrap=True,
    )
    return folder / "sweep.html"
