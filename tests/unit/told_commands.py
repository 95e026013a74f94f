"""The `braingen` commands that people are told to type."""

from __future__ import annotations

from pathlib import Path
import re

ROOT = Path(__file__).parents[2]
OUTLINE = ("...", "\u2026")
"""What stands for the rest of a command that is told in outline."""


def told_commands(file: Path) -> list[str]:
    """Whole commands: lines that begin with one (in code blocks, comments and recipes), and those
    in backquotes.
    """
    text = file.read_text(encoding="utf-8")
    lines = re.findall(
        r"^(?:\$ |# +|\t\$\(RUN\)/| {4})?(braingen [a-z][^\n]*)$", text, flags=re.MULTILINE
    )
    commands = [re.split(r"\s{2,}[(#]|\s#", line)[0].strip() for line in lines]
    if not file.is_relative_to(ROOT / "docs"):  # docs quote messages too
        commands += [
            found.replace("\n", " ") for found in re.findall(r"`(braingen [a-z][^`]*)`", text)
        ]
    return [command for command in commands if not any(mark in command for mark in OUTLINE)]
