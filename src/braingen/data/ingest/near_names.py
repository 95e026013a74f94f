"""Pictures under names that differ a little from those of the events: letters of another case or
another Unicode form, Windows' separators, a folder of another machine before them, 12.0 for 12.
"""

from __future__ import annotations

from collections.abc import Iterator
import os
from pathlib import Path, PureWindowsPath
import unicodedata

from braingen.runtime.errors import UserError


def plain_name(name: str) -> str:
    """A name as it is compared: composed letters, no difference of case, / between folders."""
    return unicodedata.normalize("NFC", name).casefold().replace("\\", "/")


def is_of_another_machine(name: str) -> bool:
    """Whether a name is an absolute path, or has Windows' separators."""
    return name.startswith("/") or "\\" in name or bool(PureWindowsPath(name).drive)


def _shorter(name: str) -> Iterator[str]:
    """A name, and what is left of it without its first folders."""
    parts = [part for part in plain_name(name).split("/") if part and not part.endswith(":")]
    if ".." in parts:
        return
    for first in range(len(parts) if is_of_another_machine(name) else 1):
        yield "/".join(parts[first:])


class NearNames:
    """Names of a folder's pictures, to find those that are written differently.

    Parameters
    ----------
    folder : Path
        The folder; links are followed.
    endings : tuple of str
        Endings of pictures.
    """

    def __init__(self, folder: Path, endings: tuple[str, ...]) -> None:
        self._names: dict[str, list[str]] = {}
        self._given: dict[str, str] = {}
        for where, _, files in os.walk(folder, followlinks=False):
            for file in files:
                stem, ending = os.path.splitext(file)
                if ending.lower() not in endings:
                    continue
                inside = Path(where, file).relative_to(folder).as_posix()
                for key in {inside, inside.removesuffix(file) + stem}:
                    self._names.setdefault(plain_name(key), []).append(inside)

    def find(self, name: str) -> str | None:
        """The picture that a name means, relative to the folder; None for none.

        Raises
        ------
        UserError
            When it may be several, or two paths of another machine lead to one picture.
        """
        for short in _shorter(name):
            found = self._names.get(short) or self._names.get(short.removesuffix(".0"), [])
            if len(found) > 1:
                raise UserError(
                    f"The picture {name} may be {found[0]} or {found[1]}; write into the events "
                    "which one."
                )
            if found:
                before = self._given.setdefault(found[0], name)
                if before != name and is_of_another_machine(name) and short != plain_name(name):
                    raise UserError(
                        f"{before} and {name} of the events would both be {found[0]}: name "
                        "pictures by their path below the folder of pictures."
                    )
                return found[0]
        return None
