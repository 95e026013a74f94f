"""Every `braingen` command people are told to type, in README, docs, configs and Makefile, is one
that the command line understands.

tests/integration/test_flow.py runs those of the README, at reduced size.
"""

from __future__ import annotations

import shlex

import pytest
from unit.told_commands import ROOT, told_commands

from braingen.commands import all_commands
from braingen.config import load_config
from braingen.config.overrides import parse_overrides
from braingen.config.shipped import FOLDER as SHIPPED

COMMANDS = all_commands()

FILES = [
    ROOT / "README.md",
    ROOT / "Makefile",
    *sorted(SHIPPED.glob("*.yaml")),
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "docs" / "data").glob("*.md")),
]
TOLD = [
    (file.relative_to(ROOT).as_posix(), command)
    for file in FILES
    for command in told_commands(file)
]


def test_the_readmes_commands_are_found():
    in_readme = [command for file, command in TOLD if file == "README.md"]
    assert {command.split()[1] for command in in_readme} >= {
        "train",
        "reconstruct",
        "evaluate",
        "report",
        "config",
    }
    assert any(file == "Makefile" and command.startswith("braingen demo") for file, command in TOLD)


@pytest.mark.parametrize(("file", "command"), TOLD)
def test_the_command_is_understood(file, command, monkeypatch):
    monkeypatch.chdir(ROOT)
    name, *rest = shlex.split(command)[1:]
    assert name in COMMANDS, f"{file} tells to type `{command}`"
    if COMMANDS[name].choices and rest:
        assert rest.pop(0) in COMMANDS[name].choices
    path, overrides = parse_overrides(rest, COMMANDS[name].own, COMMANDS[name].words)
    load_config(path, overrides)
