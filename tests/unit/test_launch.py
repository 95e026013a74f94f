"""What starts several processes: configurations of accelerate, launch scripts, and the commands
people know.
"""

from __future__ import annotations

import os
from pathlib import Path
import shutil
import subprocess
import sys

from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import DeepSpeedPlugin, FullyShardedDataParallelPlugin
from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env
import pytest
from unit.told_commands import ROOT

from braingen.config.shipped import FOLDER

ACCELERATE = sorted((FOLDER / "accelerate").glob("*.yaml"))
SCRIPTS = sorted((ROOT / "scripts").glob("launch_train*.sh"))


def launched(file: Path):
    """What ``accelerate launch`` makes of a file, with the number of processes that was typed."""
    typed = launch_command_parser().parse_args(
        ["--config_file", str(file), "--num_processes", "3", "scripts/Train.py", "--subj", "1"]
    )
    return _validate_launch_command(typed)[0]


def test_every_kind_is_there():
    assert [file.stem for file in ACCELERATE] == ["deepspeed_zero2", "fsdp", "multi_gpu"]


@pytest.mark.parametrize("file", ACCELERATE, ids=lambda file: file.stem)
def test_accelerate_takes_the_file_and_no_port_or_number_of_processes_is_fixed(file):
    arguments = launched(file)
    assert (
        arguments.num_processes,
        arguments.main_process_port,
        arguments.training_script_args,
    ) == (3, 0, ["--subj", "1"])
    kinds = {
        "multi_gpu": arguments.multi_gpu,
        "fsdp": arguments.use_fsdp,
        "deepspeed_zero2": arguments.use_deepspeed,
    }
    assert kinds.pop(file.stem) and not any(kinds.values())
    comment = " ".join(file.read_text().split("\n")[:3]).lower()
    assert "not yet run on gpus" in comment


def test_the_settings_of_fsdp_reach_its_plugin(monkeypatch):
    for name, value in prepare_multi_gpu_env(launched(FOLDER / "accelerate" / "fsdp.yaml")).items():
        monkeypatch.setenv(name, value)
    plugin = FullyShardedDataParallelPlugin()
    assert (plugin.fsdp_version, plugin.min_num_params, plugin.reshard_after_forward) == (
        2,
        20_000_000,
        True,
    )


def test_the_settings_of_deepspeed_reach_its_plugin(monkeypatch):
    arguments = launched(FOLDER / "accelerate" / "deepspeed_zero2.yaml")
    arguments.deepspeed_fields_from_accelerate_config = (
        ""  # as launch_command sets it for a file of its own
    )
    for name, value in prepare_deepspeed_cmd_env(arguments)[1].items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(
        "accelerate.utils.dataclasses.is_deepspeed_available", lambda: True, raising=False
    )
    plugin = DeepSpeedPlugin()
    assert plugin.zero_stage == 2 and plugin.gradient_accumulation_steps == 1


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_launch_scripts_tell_how_they_are_used_and_fix_nothing(script):
    done = subprocess.run(["bash", str(script)], capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith(f"usage: {script.name} <num_sessions>")
    text = (script.read_text() + (ROOT / "scripts" / "processes.sh").read_text()).lower()
    assert os.access(script, os.X_OK)
    assert not any(
        word in text for word in ("29500", "/home", "/data", "nproc-per-node 4", "cuda_visible")
    )


def fake_python(folder: Path, ends_with: int) -> Path:
    """An interpreter that says what it is asked to run, waits for a signal if it is to stop, and
    ends.
    """
    path = folder / "python"
    wait = (
        "trap 'echo told; exit 75' TERM; while :; do sleep 0.1; done"
        if ends_with == 75
        else f"exit {ends_with}"
    )
    path.write_text(f'#!/usr/bin/env bash\necho "$@"\n{wait}\n')
    path.chmod(0o755)
    return path


def fake_slurm(folder: Path) -> dict[str, str]:
    """The environment of a job, whose `scontrol` writes down what it is asked."""
    path = folder / "scontrol"
    path.write_text(f'#!/usr/bin/env bash\necho "$@" > {folder}/asked\n')
    path.chmod(0o755)
    return {
        **os.environ,
        "SLURM_JOB_ID": "77",
        "PATH": f"{folder}:{os.environ['PATH']}",
        "SLURM_SUBMIT_DIR": str(ROOT),
    }


@pytest.mark.parametrize(
    ("processes", "words"),
    [("1", ""), ("3", "-m torch.distributed.run --standalone --nproc-per-node 3 ")],
)
def test_as_many_processes_as_asked_for(tmp_path, processes, words):
    environment = {**os.environ, "PYTHON": str(fake_python(tmp_path, 3)), "PROCESSES": processes}
    environment.pop("SLURM_JOB_ID", None)
    typed = ["bash", str(ROOT / "scripts" / "launch_train.sh"), "4", "--subj", "1"]
    done = subprocess.run(typed, capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert (
        done.stdout.strip() == f"{words}{ROOT / 'scripts' / 'Train.py'} --num_sessions 4 --subj 1"
        and done.returncode == 3
    )


@pytest.mark.parametrize("name", ["TERM", "USR1"])
@pytest.mark.slow
def test_a_warning_of_slurm_reaches_the_training_and_puts_the_job_in_the_queue_again(
    tmp_path, name
):
    environment = {
        **fake_slurm(tmp_path),
        "PYTHON": str(fake_python(tmp_path, 75)),
        "PROCESSES": "1",
    }
    typed = ["bash", str(ROOT / "scripts" / "launch_train_text.sh"), "0"]
    job = subprocess.Popen(typed, stdout=subprocess.PIPE, text=True, env=environment)
    assert (
        job.stdout is not None
        and job.stdout.readline() == f"{ROOT / 'scripts' / 'Train_text.py'} --num_sessions 0\n"
    )
    subprocess.run(["bash", "-c", f"sleep 0.3; kill -{name} {job.pid}"], check=True)
    assert job.communicate(timeout=30)[0] == "told\n" and job.returncode == 75
    assert (tmp_path / "asked").read_text() == "requeue 77\n"


@pytest.mark.slow
def test_tuning_that_was_stopped_is_queued_again_and_nothing_is_drawn(tmp_path):
    environment, asked = fake_slurm(tmp_path), tmp_path / "asked"
    typed = ["bash", str(ROOT / "scripts" / "launch_tune_diffusion.sh"), "--rank", "8"]
    stopped = {**environment, "PYTHON": str(fake_python(tmp_path, 75))}
    job = subprocess.Popen(typed, stdout=subprocess.PIPE, text=True, env=stopped)
    assert (
        job.stdout is not None
        and job.stdout.readline() == f"{ROOT / 'scripts' / 'Finetune_diffusion.py'} --rank 8\n"
    )
    subprocess.run(["bash", "-c", f"sleep 0.3; kill -USR1 {job.pid}"], check=True)
    assert job.communicate(timeout=30)[0] == "told\n" and job.returncode == 75
    assert asked.read_text() == "requeue 77\n"
    asked.unlink()
    for code, commands in (
        (0, ["Finetune_diffusion.py", "Recon_inference.py"]),
        (2, ["Finetune_diffusion.py"]),
    ):
        done = subprocess.run(
            typed,
            capture_output=True,
            text=True,
            env={**environment, "PYTHON": str(fake_python(tmp_path, code))},
        )
        assert [
            Path(line.split()[0]).name for line in done.stdout.splitlines()
        ] == commands and done.returncode == code
    assert not asked.exists()


@pytest.mark.parametrize(("script", "choice"), [("Train.py", "image"), ("Train_text.py", "text")])
@pytest.mark.slow
def test_the_scripts_people_know_hand_their_flags_on(script, choice):
    typed = [sys.executable, str(ROOT / "scripts" / script), "--hiden_dim", "3"]
    done = subprocess.run(typed, capture_output=True, text=True)
    assert done.returncode == 2 and "Did you mean hidden_dim?" in done.stderr
    assert f'script("train", "{choice}")' in (ROOT / "scripts" / script).read_text()


def test_slurm_runs_a_copy_of_a_script_in_the_folder_it_was_submitted_from(tmp_path):
    """The copy lies in Slurm's own folder, without its companions; those of the submit folder are
    used.
    """
    spool, submitted = tmp_path / "spool", tmp_path / "submitted"
    spool.mkdir()
    shutil.copytree(ROOT / "scripts", submitted / "scripts")
    shutil.copy(ROOT / "scripts" / "launch_train.sh", spool / "slurm_script")
    environment = {
        **os.environ,
        "SLURM_SUBMIT_DIR": str(submitted),
        "PYTHON": str(fake_python(tmp_path, 3)),
        "PROCESSES": "1",
    }
    environment.pop("SLURM_JOB_ID", None)
    done = subprocess.run(
        ["bash", str(spool / "slurm_script"), "4"],
        capture_output=True,
        text=True,
        env=environment,
        cwd=spool,
    )
    assert (
        done.stdout.strip() == f"{submitted / 'scripts' / 'Train.py'} --num_sessions 4"
        and done.returncode == 3
    )
