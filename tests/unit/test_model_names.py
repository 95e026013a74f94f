"""A model that was trained under a name is found under that name."""

from __future__ import annotations

from pathlib import Path

import pytest

from braingen.config import load_config
from braingen.config.overrides import parse_overrides
from braingen.encoders.trained import load_embedding_decoder
from braingen.runtime.errors import UserError
from braingen.runtime.paths import EMBEDDING_DECODER, run_folder, trained_models


def config_of(typed: str):
    return load_config(*parse_overrides(typed.split()))


def trained(folder: Path) -> Path:
    (folder / EMBEDDING_DECODER).mkdir(parents=True)
    return folder


@pytest.mark.parametrize(
    "place", ["A/image", "train_logs/A", "train_logs/A/image", "runs/A/image", "runs/A"]
)
def test_a_name_is_looked_up_where_models_are_trained(tmp_path, monkeypatch, place):
    monkeypatch.chdir(tmp_path)
    trained(Path(place))
    assert run_folder(config_of("--model_name_image A --model_name_text B"), "image") == Path(place)


def test_what_a_name_was_trained_under_is_where_later_commands_look(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("A", "runs/A", str(tmp_path / "far" / "A")):
        folder = trained(run_folder(config_of(f"--model_name {name}"), "text"))
        assert run_folder(config_of(f"--model_name_text {name}"), "text") == folder
        assert run_folder(config_of(f"--model_name_text {folder}"), "text") == folder


def test_a_name_that_is_nothing_yet_is_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run_folder(config_of("--model_name_image A"), "image") == Path("A")


def test_a_name_that_is_not_there_is_told_with_those_that_are(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    trained(Path("runs/C/image"))
    trained(Path("D/image"))
    trained(Path("E/text"))
    assert trained_models("image") == ["C", "D"]
    with pytest.raises(UserError, match=r"no trained image encoder in A: .* Trained here: C, D\."):
        load_embedding_decoder(config_of("--model_name_image A --model_name_text E"), "image")
