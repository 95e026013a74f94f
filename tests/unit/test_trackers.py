"""Trackers that cannot work are refused, or told, in one sentence before anything is computed; a
run of W&B is the run's.
"""

from __future__ import annotations

from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest

from braingen.config import Config
from braingen.runtime import device as machine
from braingen.runtime.errors import UserError
from braingen.runtime.run_folder import Run
from braingen.training import diffusion, encoder, trainer


def config_with(tracker: str) -> Config:
    return Config.model_validate({"run": {"tracker": tracker, "device": "cpu"}})


@pytest.fixture(autouse=True)
def nobody(monkeypatch, tmp_path):
    """Nobody is logged in."""
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_BASE_URL", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))


def installed(monkeypatch, there: bool) -> None:
    monkeypatch.setattr(
        machine, "find_spec", lambda name: ModuleSpec(name, None) if there else None
    )


def test_wandb_that_is_not_installed_is_refused_with_what_to_type(monkeypatch, tmp_path):
    installed(monkeypatch, False)
    with pytest.raises(UserError, match="pip install wandb"):
        machine.accelerator_of(config_with("wandb"), tmp_path, 4)


@pytest.mark.parametrize(
    "content", [None, "machine somewhere.else login user password x\n", "damaged {\n", ""]
)
def test_wandb_without_a_key_is_refused_with_what_to_type(monkeypatch, tmp_path, content):
    installed(monkeypatch, True)
    if content is not None:
        (tmp_path / ".netrc").write_text(content, encoding="utf-8")
    with pytest.raises(
        UserError, match=r"needs a key for api\.wandb\.ai: type `wandb login`.*WANDB_MODE=offline"
    ):
        machine.check_wandb()


@pytest.mark.parametrize(
    "way", ["WANDB_MODE=offline", "WANDB_MODE=disabled", "WANDB_API_KEY=x", "netrc", "own server"]
)
def test_wandb_with_a_key_or_offline_is_taken(monkeypatch, tmp_path, way):
    installed(monkeypatch, True)
    host = "api.wandb.ai"
    if way == "own server":
        host = "wandb.example.org"
        monkeypatch.setenv("WANDB_BASE_URL", f"https://{host}:8080/x")
    if "=" in way:
        monkeypatch.setenv(*way.split("="))
    else:
        (tmp_path / ".netrc").write_text(
            f"machine {host}\n  login user\n  password x\n", encoding="utf-8"
        )
        (tmp_path / ".netrc").chmod(0o600)
    machine.check_wandb()


class Recorder:
    """An accelerator that keeps what it was asked for."""

    def __init__(self, refuse: Exception | None = None) -> None:
        self.calls: list[tuple] = []
        self.refuse = refuse

    def init_trackers(self, project, config=None, init_kwargs=None):
        if self.refuse:
            raise self.refuse
        self.calls.append((project, config, init_kwargs))


def test_a_run_of_wandb_has_the_settings_and_the_name_and_lies_in_the_run_folder(tmp_path):
    folder = tmp_path / "mine" / "image"
    with Run.start(folder, {"training": {"max_lr": 0.1}, "seed": 3}) as run:
        recorder = Recorder()
        machine.start_tracking(recorder, config_with("wandb"), run)
        assert recorder.calls == [
            (
                "braingen",
                {"training.max_lr": 0.1, "seed": 3},
                {"wandb": {"name": "mine/image", "dir": str(folder)}},
            )
        ]
        other = Recorder()
        machine.start_tracking(other, config_with("tensorboard"), run)
        assert other.calls == [("braingen", None, None)]
        with pytest.raises(
            UserError,
            match=r"could not be started \(ConnectionError: no\nwhere|could not be started",
        ):
            machine.start_tracking(
                Recorder(ConnectionError("no\nwhere")), config_with("wandb"), run
            )


def test_tensorboard_that_is_not_installed_is_told_and_training_goes_on(
    monkeypatch, capsys, tmp_path
):
    """Told once: a command that trains by folds would tell it of every fold."""
    monkeypatch.setattr(machine, "missing", lambda extra: ["tensorboard"])
    for _fold in range(3):
        assert machine.accelerator_of(config_with("tensorboard"), tmp_path, 4).log_with == []
    assert capsys.readouterr().out.count("metrics.jsonl") == 1


def test_no_tracker_is_none(tmp_path):
    assert machine.accelerator_of(config_with("none"), Path(tmp_path), 4).log_with == []


def test_both_trainings_open_their_trackers_in_one_place():
    for module in (encoder, diffusion, trainer):
        text = Path(module.__file__).read_text(encoding="utf-8")
        assert ("start_tracking(" in text) == (module is trainer) and "init_trackers" not in text
