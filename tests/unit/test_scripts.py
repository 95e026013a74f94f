"""The scripts people know hand their flags to the command line."""

from __future__ import annotations

from pathlib import Path
import runpy
import sys

import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"
COMMANDS = {
    "Train.py": ["train", "image"],
    "Train_text.py": ["train", "text"],
    "Finetune_diffusion.py": ["finetune"],
    "Recon_inference.py": ["reconstruct"],
    "Recon_inference_refiner.py": ["refine"],
    "final_evaluations.py": ["evaluate"],
}
KNOWN = {
    "Train.py": (
        "--model_name a --subj 1 --num_sessions 2 --hidden_dim 64 --n_blocks 1 --use_prior"
        " --batch_size 8 --b_size 16"
    ),
    "Train_text.py": "--model_name a --multi_subject 1,2 --num_exp_0 2 --exp_factor_list 2,2",
    "Finetune_diffusion.py": (
        "--model_name a --batch_size 4 --lr 1e-5 --rank 16 --snr_gamma 1.5 --route_image"
        " --route_text"
    ),
    "Recon_inference.py": (
        "--model_name a --subj 1 --guidance_scale 15 --num_inference_steps 50 --negative_prompt"
        " blurry --random_fmri"
    ),
    "Recon_inference_refiner.py": (
        "--model_name a --strength 0.3 --guidance_scale 5 --num_inference_steps 50"
    ),
    "final_evaluations.py": "--model_name a --subj 1",
}
"""Flags of the published scripts whose meaning is a setting of ours."""


@pytest.mark.parametrize("name", COMMANDS)
def test_a_script_runs_its_command(name, monkeypatch):
    given: list[list[str]] = []
    monkeypatch.setattr("braingen.cli.main", lambda words: given.append(words) or 3)
    monkeypatch.setattr(sys, "argv", [name, "--subj", "1"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(SCRIPTS / name), run_name="__main__")
    assert (
        given == [[*COMMANDS[name], "--config", "nsd_subj01", "--subj", "1"]]
        and ended.value.code == 3
    )


@pytest.mark.parametrize("named", [["--config", "mine.yaml"], ["--config=mine.yaml"]])
def test_a_named_configuration_takes_the_place_of_nsds(named, monkeypatch):
    given: list[list[str]] = []
    monkeypatch.setattr("braingen.cli.main", lambda words: given.append(words) or 0)
    monkeypatch.setattr(sys, "argv", ["Train.py", *named])
    with pytest.raises(SystemExit):
        runpy.run_path(str(SCRIPTS / "Train.py"), run_name="__main__")
    assert given == [["train", "image", *named]]


def test_their_defaults_are_the_published_ones():
    """Data in the published layout, Stable Diffusion XL and ViT-bigG, the published sizes: what the
    description gives.
    """
    from braingen.cli import PUBLISHED
    from braingen.config import load_config

    config = load_config(PUBLISHED)
    assert str(config.data.root) == "data/NSD" and config.data.subjects == (1,)
    assert "stable-diffusion-xl" in config.backbone.path and "bigG" in config.backbone.image_encoder
    encoder = config.encoder
    assert (encoder.hidden_dim, encoder.n_blocks, encoder.num_exp_0, encoder.exp_factor_list) == (
        4096,
        4,
        2,
        (2, 2, 2),
    )
    assert (
        config.lora.rank,
        config.finetune.snr_gamma,
        config.training.batch_size,
        config.training.num_epochs,
    ) == (16, 1.5, 24, 50)


@pytest.mark.parametrize("name", COMMANDS)
def test_the_flags_people_know_are_settings(name):
    from braingen.commands import all_commands
    from braingen.config import load_config
    from braingen.config.overrides import parse_overrides

    command = all_commands()[COMMANDS[name][0]]
    file, overrides = parse_overrides(KNOWN[name].split(), command.own)
    assert len(overrides) == KNOWN[name].count("--")
    load_config(file, overrides)


def test_no_script_is_left_out():
    assert {path.name for path in SCRIPTS.glob("*.py")} == set(COMMANDS)
