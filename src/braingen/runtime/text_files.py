"""Read text, JSON and YAML: always UTF-8, and without duplicate keys.

By default Python decodes text by the locale, so a file of one machine may be garbled on another.
JSON and YAML readers silently keep the last of duplicate keys.
"""

from __future__ import annotations

from collections.abc import Hashable
import json
from pathlib import Path
from typing import Any

import yaml

from braingen.runtime.errors import UserError
from braingen.runtime.files import refuse_stand_in

AGAIN = "restore it from a copy, or make it again"


def read_text(path: Path | str, get_it: str = AGAIN) -> str:
    """Read a UTF-8 text file in any locale; a byte-order mark is dropped.

    Parameters
    ----------
    path : Path | str
        The file.
    get_it : str, optional
        What the user should do when the file is missing or damaged; ends the message.

    Raises
    ------
    UserError
        When the file is missing, a folder, empty, or not UTF-8.
    """
    path = refuse_stand_in(path, get_it)
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} is not UTF-8 text (byte {error.start} is {error.object[error.start]:#04x});"
            f" save it as UTF-8, or {get_it}."
        ) from error


def parse_json(text: str) -> Any:
    """Parse JSON without duplicate keys.

    Raises
    ------
    ValueError
        For invalid or too deeply nested JSON, or a duplicate key.
    """
    try:
        return json.loads(text, object_pairs_hook=_once)
    except RecursionError:
        raise ValueError("it is nested too deep") from None


def read_json(path: Path | str, get_it: str = AGAIN) -> Any:
    """Read a JSON file.

    Parameters
    ----------
    path : Path | str
        The file.
    get_it : str, optional
        What the user should do when the file is missing or damaged; ends the message.

    Raises
    ------
    UserError
        When the file is missing, not UTF-8, not JSON, or has a duplicate key.
    """
    text = read_text(path, get_it)
    try:
        return parse_json(text)
    except ValueError as error:
        raise UserError(f"{path} is not JSON or cut short ({_flat(error)}); {get_it}.") from error


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key {twice!r} stands twice in one object: keep one of them")
    return found


class _OnceLoader(yaml.SafeLoader):
    """PyYAML's safe loader without duplicate keys."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: dict[Hashable, yaml.Mark] = {}
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, Hashable):
                if key in seen:
                    first, again = seen[key].line + 1, key_node.start_mark.line + 1
                    raise yaml.constructor.ConstructorError(
                        None,
                        None,
                        f"'{key}' stands twice, in lines {first} and {again}: keep one of them",
                        None,
                    )
                seen[key] = key_node.start_mark
        return super().construct_mapping(node, deep)


def parse_yaml(text: str) -> Any:
    """Parse YAML without duplicate keys.

    Raises
    ------
    ValueError
        For invalid or too deeply nested YAML, a duplicate key, or an impossible date or number.
    """
    try:
        return yaml.load(text, Loader=_OnceLoader)  # a subclass of SafeLoader
    except RecursionError:
        raise ValueError("it is nested too deep") from None
    except yaml.YAMLError as error:
        raise ValueError(_flat(error)) from error


def read_yaml(path: Path | str, get_it: str = AGAIN) -> Any:
    """Read a YAML file.

    Parameters
    ----------
    path : Path | str
        The file.
    get_it : str, optional
        What the user should do when the file is missing or damaged; ends the message.

    Raises
    ------
    UserError
        When the file is missing, not UTF-8, not YAML, or has a duplicate key.
    """
    text = read_text(path, get_it)
    try:
        return parse_yaml(text)
    except ValueError as error:
        raise UserError(f"{path} is not valid YAML: {_flat(error)}; {get_it}.") from error


def _flat(error: Exception) -> str:
    """Return an error message on one line."""
    return " ".join(str(error).split())
