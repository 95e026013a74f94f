"""Completion of commands, flags and values in bash, zsh and fish, by click.

The parser is our own (config/overrides.py): click knows neither ``section.field=value`` nor names
that depend on the command. click's options here serve completion alone, made from the same tables
as the help.
"""

from __future__ import annotations

from collections.abc import Mapping
import os
from typing import Any

from braingen.commands.base import Command
from braingen.commands.help import names_of, shorthands_of
from braingen.config.describe import choices
from braingen.config.names import fields_of
from braingen.config.shipped import shipped_configs

VARIABLE = "_BRAINGEN_COMPLETE"
"""Environment variable by which a shell asks (click's convention)."""


def complete(commands: Mapping[str, Command]) -> int | None:
    """Answer a shell that asks for completions.

    Returns
    -------
    int | None
        Exit code; None where no shell asks.
    """
    instruction = os.environ.get(VARIABLE)
    if not instruction:
        return None
    from click import Group
    from click.shell_completion import shell_complete

    group = Group(
        "braingen", commands={name: click_command(each) for name, each in commands.items()}
    )
    return shell_complete(group, {}, "braingen", VARIABLE, instruction)


def click_command(command: Command) -> Any:
    """A command of click with the flags, choices and values that are completed."""
    import click

    parameters: list[Any] = []
    if command.choices:
        parameters.append(click.Argument(["choice"], type=click.Choice(command.choices)))
    configs = click.Choice(shipped_configs())
    parameters.append(click.Option(["--config", "config_file"], type=configs))
    for section in command.sections:
        for field, info in fields_of(section).items():
            names = names_of(section, field, command.own)
            named = f"{section}_{field}"
            if info.annotation is bool:
                both = [
                    f"--{name}/--no-{name}" if "." not in name else f"--{name}" for name in names
                ]
                parameters.append(click.Option([*both, named]))
                continue
            known = choices(section, field)
            kind = click.Choice(known) if known else click.Path()
            flags = [f"--{name}" for name in names if name != "multi_subject"]
            parameters.append(click.Option([*flags, named], type=kind))
            if "multi_subject" in names:
                parameters.append(click.Option(["--multi_subject/--no-multi_subject"]))
    for flag in shorthands_of(command):
        parameters.append(click.Option([f"--{flag}"], is_flag=True))
    return click.Command(command.name, params=parameters, help=command.summary)
