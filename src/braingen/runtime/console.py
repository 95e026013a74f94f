"""What is printed: text as it is, whoever wrote it.

Rich takes ``[...]`` in plain strings for markup: a file, a caption or a rater's code such as
``[/x]`` would stop the program. So consoles here know no markup, and names of progress bars are
escaped. Emphasis is given by `style`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

from rich.console import Console
from rich.markup import escape
import rich.progress
from rich.table import Table

from braingen.runtime.untrusted import one_line

Item = TypeVar("Item")


def console(quiet: bool = False, stderr: bool = False) -> Console:
    """A console that prints strings, and cells of tables, as they are; or nothing."""
    return Console(markup=False, emoji=False, highlight=False, quiet=quiet, stderr=stderr)


def add_row(table: Table, *cells: object) -> None:
    """Add a row to a table, each cell one line, without control characters (colours, line ends, the
    bell).
    """
    table.add_row(*(one_line(cell) for cell in cells))


def track(
    sequence: Sequence[Item] | Iterable[Item], description: str, **options: Any
) -> Iterable[Item]:
    """Rich's `track`, with a description that is no markup."""
    return rich.progress.track(sequence, description=escape(one_line(description)), **options)


class Progress(rich.progress.Progress):
    """Rich's progress bars, with descriptions that are no markup."""

    def add_task(self, description: str, *arguments: Any, **options: Any) -> rich.progress.TaskID:
        """Add a bar."""
        return super().add_task(escape(one_line(description)), *arguments, **options)
