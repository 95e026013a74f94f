"""Settings as they are typed: ``--flag value``, ``section.field=value``, and those of the
environment.
"""

from __future__ import annotations

from collections.abc import Sequence
import os
from pathlib import Path
import shlex
import sys
from typing import get_args

from braingen.config.describe import allowed
from braingen.config.names import ALIASES, ALL, OWN_ALIASES, fields_of, resolve
from braingen.config.tree import Config
from braingen.runtime.errors import UserError

ENVIRONMENT = "BRAINGEN_SET"
"""Environment variable with settings for every command, such as ``backbone.path=/models/sdxl``."""
SHORTHANDS = {
    "json": ("doctor.output", "json"),
    "random_fmri": ("generation.source", "random"),
    "oracle": ("generation.source", "oracle"),
    "train_router_only": ("training.trained", "routers"),
}
"""Flags that set a setting to one value."""
HOLDS_SETTINGS = ("sweep.over",)
"""Settings whose values have the form ``name=value``."""


def parse_overrides(
    words: Sequence[str], own: str | Sequence[str] = "", listed: str = ""
) -> tuple[Path | None, dict[str, str]]:
    """Read ``--config NAME`` or ``--config FILE`` and overrides.

    Overrides are ``section.field=value``, ``--flag value``, ``--flag=value``, ``--flag`` and
    ``--no-flag``.

    Parameters
    ----------
    own : str | Sequence[str], optional
        Section or sections whose names win where several sections have a setting of that name.
    listed : str, optional
        Setting that plain words at the beginning are collected in; without it they are refused.

    Returns
    -------
    tuple[Path | None, dict[str, str]]
        Configuration (file or name) or None, setting -> text.
    """
    own = (own,) if isinstance(own, str) else own
    file: Path | None = None
    given = TypedSettings()
    remaining, single = list(words), False
    named: list[str] = []
    while listed and remaining and not remaining[0].startswith("--") and "=" not in remaining[0]:
        named.append(remaining.pop(0))
    if named:
        given.put(listed, ",".join(named), listed)
    while remaining:
        word = remaining.pop(0)
        if not word.startswith("--"):
            name, equals, value = word.partition("=")
            if not equals or not name:
                raise UserError(
                    f"'{word}' is not understood: write settings as section.field=value or --name"
                    " value."
                )
            given.put(setting_of(name, own), value, name)
            continue
        name, equals, value = word[2:].partition("=")
        if not name:
            raise UserError(f"'{word}' is not understood: a setting's name follows the dashes.")
        name = name.replace("-", "_")
        has_value = bool(equals) or bool(
            remaining
            and not remaining[0].startswith("--")
            and ("=" not in remaining[0] or _holds_settings(name, own))
        )
        if has_value and (name in SHORTHANDS or name.startswith("no_")):
            path = SHORTHANDS[name][0] if name in SHORTHANDS else setting_of(name[3:], own)
            raise UserError(
                f"{word.partition('=')[0]} takes no value, but"
                f" '{value if equals else remaining[0]}' follows: write it alone, or {path}=VALUE."
            )
        if name in SHORTHANDS:
            given.put(*SHORTHANDS[name], f"--{name}")
        elif name == "config":
            if not has_value:
                raise UserError("--config needs a name or a file, for instance --config simulated.")
            file = Path(value if equals else remaining.pop(0))
        elif not has_value and name == "multi_subject":
            given.put("data.subjects", ALL, f"--{name}")
        elif not has_value and name == "no_multi_subject":
            single = True
        elif has_value:
            given.put(setting_of(name, own), value if equals else remaining.pop(0), f"--{name}")
        elif name.startswith("no_"):
            if name[3:] in SHORTHANDS:
                path = SHORTHANDS[name[3:]][0]
                raise UserError(
                    f"There is no flag {word}: write {path}={allowed(*path.split('.'))}."
                )
            given.put(_switch(name[3:], own), "false", f"--{name}")
        else:
            given.put(_switch(name, own), "true", f"--{name}")
    if single:  # the published scripts' subject, unless --subj names one
        given.settings.setdefault("data.subjects", "1")
    return file, given.settings


class TypedSettings:
    """Settings as they are typed; the same one under two names is an error where the values
    differ.
    """

    def __init__(self) -> None:
        self.settings: dict[str, str] = {}
        self._names: dict[str, str] = {}

    def put(self, setting: str, text: str, name: str) -> None:
        """Take a value; of one name the last counts, so that a script's own can be changed.

        Raises
        ------
        UserError
            When another name has set it to another value.
        """
        before, other = self.settings.get(setting), self._names.get(setting)
        if before is not None and other != name and before != text:
            shown = " and ".join(
                f"{flag} {value}" for flag, value in ((other, before), (name, text))
            )
            raise UserError(
                f"{shown} both set {setting}, to different values: leave one of them out."
            )
        self.settings[setting], self._names[setting] = text, name


def setting_of(name: str, own: Sequence[str]) -> str:
    """The setting that a name means to a command with sections of its own."""
    name = name.replace("-", "_")
    for section in filter(None, own):
        fields = fields_of(section)
        known = (
            OWN_ALIASES.get(section, {}).get(name) or ALIASES.get(name, "").partition(".")[2]
        )  # a flag people know
        field = name if name in fields else known
        if field in fields:
            return f"{section}.{field}"
    return resolve(name)


def _holds_settings(name: str, own: Sequence[str]) -> bool:
    """Whether the value of a flag looks like a setting itself."""
    try:
        return setting_of(name, own) in HOLDS_SETTINGS
    except UserError:  # reported where the flag is read
        return False


def _switch(name: str, own: Sequence[str]) -> str:
    path = setting_of(name, own)
    section, field = path.split(".")
    info = fields_of(section)[field]
    if bool not in (info.annotation, *get_args(info.annotation)):
        now = getattr(getattr(Config(), section), field, info.default)
        raise UserError(f"--{name} needs a value: --{name} VALUE (now {now!r}).")
    return path


def environment_settings(own: Sequence[str]) -> dict[str, str]:
    """Settings of every command of a job, from the environment variable BRAINGEN_SET; what is typed
    wins.
    """
    text = os.environ.get(ENVIRONMENT, "")
    if not text.strip():
        return {}
    try:
        file, overrides = parse_overrides(shlex.split(text), own)
    except (UserError, ValueError) as error:
        raise UserError(
            f"The environment variable {ENVIRONMENT} is not understood: {error}"
        ) from error
    if file is not None:
        raise UserError(
            f"The environment variable {ENVIRONMENT} takes settings, not --config {file}."
        )
    print(f"Settings from {ENVIRONMENT}: {text}", file=sys.stderr)
    return overrides
