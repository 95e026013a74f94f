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
    "Train.py": "--model_name a --subj 1 --num_sessions 2 --hidden_dim 64 --n_blocks 1 --use_prior --batch_size 8 --b_size 16",
    "Train_text.py": "--model_name a --multi_subject 1,2 --num_exp_0 2 --exp_factor_list 2,2",
    "Finetune_diffusion.py": "--model_name a --rank 16 --snr_gamma 1.5 --route_image --route_text",
    "Recon_inference.py": "--model_name a --subj 1 --guidance_scale 15 --num_inference_steps 50 --negative_prompt blurry --random_fmri",
    "Recon_inference_refiner.py": "--model_name a --strength 0.3 --guidance_scale 5 --num_inference_steps 50",
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
    assert given == [[*COMMANDS[name], "--subj", "1"]] and ended.value.code == 3


@pytest.mark.parametrize("name", COMMANDS)
def test_the_flags_people_know_are_settings(name):
    from braingen.cli import COMMANDS as all_commands
    from braingen.cli import parse_overrides
    from braingen.config import load_config

    command = all_commands[COMMANDS[name][0]]
    file, overrides = parse_overrides(KNOWN[name].split(), command.own)
    assert len(overrides) == KNOWN[name].count("--")
    load_config(file, overrides)


def test_no_script_is_left_out():
    assert {path.name for path in SCRIPTS.glob("*.py")} == set(COMMANDS)
