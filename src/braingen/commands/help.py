"""The texts of ``--help``: all commands, one command, all settings."""

from __future__ import annotations

from functools import cache
import os
import sys

from braingen.commands.base import GROUPS, Command
from braingen.config import Config
from braingen.config.describe import allowed, condition
from braingen.config.names import ALIASES, OWN_ALIASES, fields_of
from braingen.config.overrides import SHORTHANDS, setting_of
from braingen.config.shipped import shipped_configs
from braingen.evaluation.metric_type import Metric
from braingen.evaluation.metrics import METRICS
from braingen.runtime.errors import UserError


def overview(commands: dict[str, Command]) -> str:
    """The help of the program."""
    lines = ["BrainGen: seen images reconstructed from fMRI.", ""]
    lines += ["usage: braingen COMMAND [--config NAME|FILE] [--name value ...]", ""]
    lines += [f"configurations that ship: {', '.join(shipped_configs())}", ""]
    for group, title in GROUPS.items():
        lines += [
            title,
            *(
                f"  {each.name:<16} {each.summary}"
                for each in commands.values()
                if each.group == group
            ),
            "",
        ]
    lines += [
        "braingen COMMAND --help lists the settings of a command. Start with: braingen quickstart"
    ]
    return "\n".join(lines)


def help_of(command: Command) -> str:
    """The help of one command."""
    name = command.name
    choice = f" {{{','.join(command.choices)}}}" if command.choices else ""
    choice += f" {command.words.partition('.')[2].upper()} ..." if command.words else ""
    lines = [
        f"usage: braingen {name}{choice} [--config NAME|FILE] [--name value ...]",
        "",
        command.summary,
        "",
    ]
    for section in command.sections:
        lines += section_help(section, command.own)
    if short := shorthands_of(command):
        lines += ["shorthands", *(f"  --{flag}: {setting}" for flag, setting in short.items()), ""]
    if name in ("evaluate", "compare"):
        lines += ["scores", *(_score_line(key, each) for key, each in METRICS.items()), ""]
    lines.append(
        "Settings can also be written section.name=value. Lists: 2,2,2. Switches: --use_prior,"
        " --no-use_prior."
    )
    return "\n".join(lines)


def _score_line(name: str, each: Metric) -> str:
    better = "" if each.higher_is_better else "; lower is better"
    return f"  {name}: {each.meaning.format(pool='evaluation.retrieval_pool images')}{better}"


def show(text: str) -> None:
    """Print a text, however much of it is read."""
    try:
        print(text, flush=True)
    except BrokenPipeError:  # head or less stopped reading
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def shortest_name(section: str, field: str, own: str) -> str:
    """What has to be typed for a setting: the field's name, or with its section where that alone
    means another one, or several.
    """
    try:
        alone = setting_of(field, (own,)) == f"{section}.{field}"
    except UserError:
        alone = False
    return field if alone else f"{section}.{field}"


@cache
def known_flags(own: str) -> dict[str, list[str]]:
    """Setting -> flags of the published code that mean it, to a command with a section of its
    own.
    """
    found: dict[str, list[str]] = {}
    for flag in {**OWN_ALIASES.get(own, {}), **ALIASES}:
        found.setdefault(setting_of(flag, (own,)), []).append(flag)
    return found


def shorthands_of(command: Command) -> dict[str, str]:
    """Flags of a command that set a setting to one value -> ``section.field=value``."""
    return {
        flag: f"{path}={value}"
        for flag, (path, value) in SHORTHANDS.items()
        if path.partition(".")[0] in command.sections
    }


def names_of(section: str, field: str, own: str) -> list[str]:
    """The names under which a setting may be typed after two dashes, the shortest field name
    first.
    """
    name = shortest_name(section, field, own)
    return list(dict.fromkeys([name, *known_flags(own).get(f"{section}.{field}", [])]))


def section_help(section: str, own: str = "") -> list[str]:
    """Lines on every setting of a section: how it is typed, default, allowed values, meaning."""
    defaults = getattr(Config(), section)
    lines = [f"{section}: {(type(defaults).__doc__ or '').strip()}"]
    for field, info in fields_of(section).items():
        default = getattr(defaults, field, info.default)
        text = ",".join(map(str, default)) if isinstance(default, tuple) else default
        value = "" if text in ("", None) else f"({text}) "
        meaning = " ".join((info.description or "").split())
        where = condition(section, field)
        name, *others = names_of(section, field, own)
        lines += [f"  --{name} {value} {allowed(section, field)}", f"      {meaning}"]
        lines += [f"      [also --{', --'.join(others)}]"] if others else []
        lines += [f"      [{where}]"] if where else []
    return [*lines, ""]
