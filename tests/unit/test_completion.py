"""Completion of the command line in shells."""

from __future__ import annotations

import os
from pathlib import Path
import shutil
import subprocess
import sys

import pytest

from braingen.commands import all_commands
from braingen.commands.completion import VARIABLE, click_command, complete
from braingen.config.overrides import parse_overrides

ASKED = [
    ("braingen tra", ["train"]),
    ("braingen human-eval ", ["build", "check", "analyse", "simulate"]),
    ("braingen reconstruct --sourc", ["--source"]),
    ("braingen reconstruct --source ", ["brain", "random", "oracle", "low_level"]),
    ("braingen train image --routing ", ["static", "expert_choice"]),
    ("braingen train image --config nsd_subj01_", ["nsd_subj01_small"]),
    ("braingen train image --no-use_pr", ["--no-use_prior"]),
    ("braingen train image --subj", ["--subj"]),
    ("braingen train image --multi_s", ["--multi_subject"]),
    ("braingen train image --train_r", ["--train_router_only"]),
    ("braingen finetune --lr", ["--lr", "--lr_scheduler", "--lr_warmup_steps"]),
    ("braingen reconstruct --orac", ["--oracle"]),
    ("braingen doctor --jso", ["--json"]),
]


@pytest.mark.parametrize(("typed", "offered"), ASKED)
@pytest.mark.slow
def test_commands_flags_and_values_are_completed(typed, offered, monkeypatch, capsys):
    monkeypatch.setenv(VARIABLE, "bash_complete")
    monkeypatch.setenv("COMP_WORDS", typed)
    words = typed.split()
    monkeypatch.setenv("COMP_CWORD", str(len(words) - (not typed.endswith(" "))))
    assert complete(all_commands()) == 0
    found = [line.partition(",")[2] for line in capsys.readouterr().out.splitlines()]
    assert found == offered


@pytest.mark.parametrize(("shell", "found"), [("zsh", "plain\ntrain\n"), ("fish", "plain,train\t")])
@pytest.mark.slow
def test_other_shells_get_completions_in_their_form(shell, found, monkeypatch, capsys):
    monkeypatch.setenv(VARIABLE, f"{shell}_complete")
    monkeypatch.setenv("COMP_WORDS", "braingen tra")
    monkeypatch.setenv("COMP_CWORD", "1" if shell == "zsh" else "tra")
    assert complete(all_commands()) == 0
    assert capsys.readouterr().out.startswith(found)


@pytest.mark.slow
def test_every_completed_flag_is_understood():
    for command in all_commands().values():
        for option in click_command(command).params:
            for flag in [*getattr(option, "opts", ()), *option.secondary_opts]:
                if flag in ("--config", "choice"):
                    continue
                switch = getattr(option, "is_flag", False)
                _, found = parse_overrides([flag, *([] if switch else ["x"])], command.own)
                assert len(found) == 1, (command.name, flag)
                assert next(iter(found)).partition(".")[0] in command.sections


def test_nothing_is_completed_unless_a_shell_asks(monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)
    assert complete(all_commands()) is None


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
@pytest.mark.slow
def test_the_line_of_the_readme_works_in_a_shell(shell, tmp_path):
    installed = shutil.which(shell)
    if installed is None:
        pytest.skip(f"{shell} is not installed here")
    source = Path(__file__).parents[2] / "src"
    program = tmp_path / "braingen"
    program.write_text(
        f"#!/bin/sh\nPYTHONPATH='{source}' exec '{sys.executable}' -m braingen.cli \"$@\"\n"
    )
    program.chmod(0o755)
    setup, asked, answer = {
        "bash": (
            "",
            "COMP_WORDS=(braingen quick); COMP_CWORD=1; _braingen_completion braingen;"
            ' echo "${COMPREPLY[@]}"',
            "quickstart",
        ),
        "zsh": (
            "autoload -Uz compinit; compinit -D; ",
            "whence -w _braingen_completion",
            "_braingen_completion: function",
        ),
        "fish": ("", "complete -C'braingen quick' | string split -f 1 \\t", "quickstart"),
    }[shell]
    line = f'{setup}eval "$(_BRAINGEN_COMPLETE={shell}_source braingen)"; {asked}'
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "HOME": str(tmp_path)}
    if "LD_LIBRARY_PATH" in os.environ:
        environment["LD_LIBRARY_PATH"] = os.environ["LD_LIBRARY_PATH"]
    done = subprocess.run(
        [installed, "-c", line], capture_output=True, text=True, env=environment, check=True
    )
    assert done.stdout.strip().endswith(answer)
