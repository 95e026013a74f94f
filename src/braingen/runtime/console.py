"""Consoles and progress bars that print text literally.

Rich interprets ``[...]`` in plain strings as markup: a file name, caption or rater's code such as
``[/x]`` would stop the program. So consoles here have no markup, and descriptions of progress bars
are escaped. Use `style` for emphasis.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
import time
from typing import Any, TypeVar

from rich.console import Console
from rich.markup import escape
import rich.progress
from rich.table import Table

from braingen.runtime.untrusted import one_line

Item = TypeVar("Item")
LARGE = 2 * 10**8
"""Bytes from which the loading of a model is reported."""


def console(quiet: bool = False, stderr: bool = False) -> Console:
    """Return a console that prints strings and table cells literally, or nothing."""
    return Console(markup=False, emoji=False, highlight=False, quiet=quiet, stderr=stderr)


def add_row(table: Table, *cells: object) -> None:
    """Add a row to a table; every cell is one line without control characters."""
    table.add_row(*(one_line(cell) for cell in cells))


def track(
    sequence: Sequence[Item] | Iterable[Item], description: str, **options: Any
) -> Iterable[Item]:
    """Rich's `track`, with a literal description."""
    return rich.progress.track(sequence, description=escape(one_line(description)), **options)


class Progress(rich.progress.Progress):
    """Rich's progress bars, with literal descriptions."""

    def add_task(self, description: str, *arguments: Any, **options: Any) -> rich.progress.TaskID:
        """Add a bar."""
        return super().add_task(escape(one_line(description)), *arguments, **options)


@contextmanager
def reported(what: str, paths: Sequence[Path]) -> Iterator[None]:
    """Say what is being loaded, how large it is and how long it took, where that is worth it.

    Parameters
    ----------
    paths : Sequence[Path]
        Files that are read.
    """
    size = sum(path.stat().st_size for path in paths if path.is_file())
    if size < LARGE:
        yield
        return
    out, began = console(stderr=True), time.monotonic()
    where = paths[0].parent
    out.print(f"Loading {what}: {size / 1e9:.1f} GB in {where} ...", soft_wrap=True)
    yield
    out.print(f"Loaded {what} in {time.monotonic() - began:.0f} s.")
