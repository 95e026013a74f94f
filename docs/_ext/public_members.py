"""What the API reference leaves out: docstrings of Python's making, constructors of pydantic."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel
from sphinx.application import Sphinx

UNDOCUMENTED = "Alias for field number"
"""Docstring that Python gives to a field of a NamedTuple that has none."""


def blank(app: Sphinx, what: str, name: str, member: Any, options: Any, lines: list[str]) -> None:
    """Leave out the docstring that Python makes up."""
    if lines and lines[0].startswith(UNDOCUMENTED):
        lines.clear()


def shorten(
    app: Sphinx, what: str, name: str, member: Any, options: Any, signature: str, returned: str
) -> tuple[str, str] | None:
    """Leave out the signature of a section of settings: its fields follow one by one."""
    if isinstance(member, type) and issubclass(member, BaseModel):
        return "", returned
    return None


def setup(app: Sphinx) -> dict[str, bool]:
    """Connect both to autodoc."""
    app.connect("autodoc-process-docstring", blank)
    app.connect("autodoc-process-signature", shorten)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
