"""Sweeps: what is typed, which combinations run, what is kept, and how they are compared."""

from __future__ import annotations

import csv
import json
from pathlib import Path
import sys

import pytest
from unit.forking import forked_python
import yaml

from braingen.config import Config, load_config
from braingen.config.overrides import parse_overrides
from braingen.experiments import sweep as flow
from braingen.experiments.search_space import Axis, grid, parse_space
from braingen.experiments.sweep_jobs import run_points
from braingen.experiments.sweep_point import (
    FAILED,
    FINISHED,
    LOG,
    STOPPED,
    PointResult,
    result_of,
    run_point,
)
from braingen.experiments.sweep_table import objective_of
from braingen.runtime.errors import UserError
from braingen.runtime.extras import missing
from braingen.runtime.preemption import Stopped

OVER = "encoder.hidden_dim=32|64|128 training.max_lr=1e-4|1e-3"


def test_the_space_is_read_as_it_is_typed():
    assert parse_space("hidden_dim=32|64 training.max_lr=1e-5:1e-3:log router.time=off|mlp") == [
        Axis("encoder.hidden_dim", ("32", "64")),
        Axis("training.max_lr", low=1e-5, high=1e-3, log=True),
        Axis("router.time", ("off", "mlp")),
    ]
    assert parse_space("training.num_epochs=2:9")[0].whole
    assert not parse_space("training.max_lr=1:2")[0].whole
    assert len(grid(parse_space(OVER))) == 6
    assert grid(parse_space(OVER))[1] == {"encoder.hidden_dim": "32", "training.max_lr": "1e-3"}


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "nothing to sweep over"),
        ("encoder.hidden_dim", "'encoder.hidden_dim' is not understood"),
        ("encoder.hidden_dim=32", "two values or more"),
        ("encoder.hidden_dim=32|32", "all different"),
        ("encoder.hidden_dims=1|2", r"Did you mean encoder\.hidden_dim\?"),
        ("hidden_dim=1|2 encoder.hidden_dim=3|4", "names encoder.hidden_dim twice"),
        ("run.folder=a|b", "run.folder cannot be swept"),
        ("training.max_lr=2:1", "is no range"),
        ("training.max_lr=0:1:log", "is no range"),
        ("training.num_epochs=1.5:3", "whole numbers"),
        ("'", "is not understood"),
    ],
)
def test_what_is_not_understood_is_a_sentence(text, sentence):
    with pytest.raises(UserError, match=sentence):
        parse_space(text)


def test_a_grid_has_no_ranges():
    with pytest.raises(UserError, match="--method optuna"):
        grid(parse_space("training.max_lr=1:2"))


def test_over_takes_a_value_with_equal_signs():
    for words in (["--over", OVER], [f"--over={OVER}"], [f"sweep.over={OVER}"]):
        assert parse_overrides([*words, "--jobs", "2"], "sweep")[1] == {
            "sweep.over": OVER,
            "sweep.jobs": "2",
        }


def test_held_out_images_compare_and_test_images_do_not():
    found = objective_of(("train image", "finetune", "evaluate"), "", "auto")
    assert found.name == "finetune.best_validation_denoising" and found.direction == "minimize"
    assert objective_of(("train  text",), "", "auto").name == "text.best_validation_cosine"
    for given, sentence in (
        ("scores.pixcorr", "Test images choose nothing"),
        ("image", "give FOLDER.NAME"),
        ("image.seconds", "--direction maximize"),
    ):
        with pytest.raises(UserError, match=sentence):
            objective_of(("train image",), given, "auto")
    with pytest.raises(UserError, match="trains nothing"):
        objective_of(("evaluate",), "", "auto")


def config_in(folder: Path, **settings: str) -> Config:
    typed = {f"sweep.{name}": value for name, value in settings.items()}
    typed |= {"run.folder": str(folder), "run.device": "cpu", "data.root": str(folder / "none")}
    return load_config(None, {"sweep.over": OVER, **typed})


class FakeTraining:
    """Writes what a training would: the better the wider, and the nearer the rate is to 1e-3."""

    def __init__(self, stop_after: int = 99) -> None:
        self.runs: list[str] = []
        self.stop_after = stop_after

    def __call__(self, config: Config, folder: Path, points: list[Path]) -> list[PointResult]:
        for point in points:
            ended = result_of(point)
            if ended is not None and ended.state == FINISHED:
                continue
            if len(self.runs) == self.stop_after:
                raise Stopped
            settings = yaml.safe_load((point / "settings.yaml").read_text(encoding="utf-8"))
            assert settings["run"]["folder"] == str(point) and "sweep" not in settings
            width, rate = settings["encoder"]["hidden_dim"], settings["training"]["max_lr"]
            self.runs.append(f"{width} {rate:g}")
            bad = width == 128
            if not bad:
                value = {"best_validation_cosine": width / 1000 - abs(rate - 1e-3)}
                (point / "image").mkdir(exist_ok=True)
                (point / "image" / "finished").write_text(json.dumps(value), encoding="utf-8")
            result = PointResult(FAILED if bad else FINISHED, 1.0, "train image", "it broke")
            (point / "result.json").write_text(json.dumps(result._asdict()), encoding="utf-8")
        return [result_of(point) for point in points]


def table(folder: Path) -> list[dict[str, str]]:
    with open(folder / "sweep" / "sweep.csv", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
def test_every_combination_runs_once_and_stands_in_one_table(tmp_path, monkeypatch, capsys):
    trained = FakeTraining()
    monkeypatch.setattr(flow, "run_points", trained)
    page = flow.sweep(config_in(tmp_path))
    assert len(trained.runs) == 6
    rows = table(tmp_path)
    assert [row["encoder.hidden_dim"] for row in rows] == ["32", "32", "64", "64", "128", "128"]
    assert [row["state"] for row in rows].count(FAILED) == 2
    assert "Best of 4" in (said := capsys.readouterr().out) and "hidden_dim=64" in said
    assert "Failed: encoder.hidden_dim=128" in said and "it broke" in said
    text = page.read_text(encoding="utf-8")
    assert text.count("(best)") == 1 and "parallel" in text.lower()
    svg = (tmp_path / "sweep" / "parallel.svg").read_bytes()
    flow.sweep(config_in(tmp_path))  # what failed is tried again, what finished is kept
    assert sorted(trained.runs[6:]) == ["128 0.0001", "128 0.001"]
    assert (tmp_path / "sweep" / "parallel.svg").read_bytes() == svg
    flow.sweep(config_in(tmp_path, over=OVER.replace("32|64", "32|48|64")))
    assert "48 0.001" in trained.runs and len(table(tmp_path)) == 8


def test_a_combination_that_is_not_possible_is_refused_before_anything_runs(tmp_path, monkeypatch):
    trained = FakeTraining()
    monkeypatch.setattr(flow, "run_points", trained)
    over = "router.time=off|mlp router.kl_scale=0.1|0.2"
    with pytest.raises(
        UserError, match=r"combination router\.time=off router\.kl_scale=0\.1 is not possible: .*no"
    ):
        flow.sweep(config_in(tmp_path, over=over))
    with pytest.raises(UserError, match=r"'traim image' is no command"):
        flow.sweep(config_in(tmp_path / "b", commands="traim image"))
    assert trained.runs == []


@pytest.mark.slow
def test_other_settings_are_refused_in_the_same_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(flow, "run_points", FakeTraining())
    flow.sweep(config_in(tmp_path))
    changed = load_config(
        None,
        {
            "sweep.over": OVER,
            "run.folder": str(tmp_path),
            "run.device": "cpu",
            "data.root": str(tmp_path / "none"),
            "training.num_epochs": "3",
        },
    )
    with pytest.raises(UserError, match=r"other settings \(training\.num_epochs"):
        flow.sweep(changed)


@pytest.mark.long
@pytest.mark.skipif(bool(missing("sweep")), reason="Optuna is not installed")
@pytest.mark.slow
def test_an_interrupted_sweep_by_optuna_proposes_what_an_uninterrupted_one_does(
    tmp_path, monkeypatch
):
    over = "encoder.hidden_dim=32|64 training.max_lr=1e-5:1e-2:log"
    settings = {"over": over, "method": "optuna", "n_trials": "5"}
    whole = FakeTraining()
    monkeypatch.setattr(flow, "run_points", whole)
    flow.sweep(config_in(tmp_path / "whole", **settings))
    assert len(whole.runs) == 5
    first, rest = FakeTraining(stop_after=2), FakeTraining()
    monkeypatch.setattr(flow, "run_points", first)
    with pytest.raises(Stopped):
        flow.sweep(config_in(tmp_path / "parts", **settings))
    monkeypatch.setattr(flow, "run_points", rest)
    flow.sweep(config_in(tmp_path / "parts", **settings))
    assert first.runs + rest.runs == whole.runs
    flow.sweep(config_in(tmp_path / "parts", **{**settings, "n_trials": "6"}))
    assert len(rest.runs) == 4 and len(table(tmp_path / "parts")) == 6


@pytest.fixture
def forked(tmp_path, monkeypatch):
    """What a sweep starts is forked."""
    with forked_python(tmp_path / "bin") as binaries:
        monkeypatch.setattr(sys, "executable", str(binaries / "python"))
        yield


def point_of(folder: Path, *commands: str) -> Path:
    folder.mkdir()
    (folder / "settings.yaml").write_text("run: {device: cpu}\n", encoding="utf-8")
    told = {"settings": {}, "commands": commands, "group": "x"}
    (folder / "point.json").write_text(json.dumps(told), encoding="utf-8")
    return folder


@pytest.mark.slow
def test_commands_run_one_after_the_other_and_a_failure_ends_them(tmp_path, monkeypatch, forked):
    monkeypatch.setenv("BRAINGEN_SET", "run.seed=7")  # would undo what is swept
    good = point_of(tmp_path / "good", "config", "config")
    assert run_point(good).state == FINISHED
    assert "Settings from BRAINGEN_SET" not in (good / LOG).read_text(encoding="utf-8")
    bad = run_point(point_of(tmp_path / "bad", "config", "compare", "config"))
    assert bad.state == FAILED and bad.command == "compare" and bad.message.startswith("braingen: ")


def test_a_stopped_command_stops_the_sweep(tmp_path, monkeypatch):
    stopped = PointResult(STOPPED, 1.0, "train image", "stopped by a signal")
    monkeypatch.setattr(flow, "run_points", lambda *_: [stopped])
    with pytest.raises(Stopped):
        flow.sweep(config_in(tmp_path))


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize("cluster", ["none", "local"])
def test_combinations_run_in_processes_and_as_jobs_of_submitit(tmp_path, request, cluster):
    if cluster == "local" and missing("slurm"):
        pytest.skip("submitit is not installed")
    if cluster == "none":
        request.getfixturevalue("forked")
    config = config_in(tmp_path, cluster=cluster, jobs="2")
    points = [
        point_of(tmp_path / name, command)
        for name, command in (("a", "config"), ("b", "compare"), ("c", "config"))
    ]
    assert [each.state for each in run_points(config, tmp_path, points)] == [
        FINISHED,
        FAILED,
        FINISHED,
    ]
