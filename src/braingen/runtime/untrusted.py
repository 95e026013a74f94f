"""Make untrusted names, captions and codes safe for their destination.

A name in a table becomes a path (`path_below`), a file's name a folder (`folder_name`), and text a
cell of a spreadsheet (`csv_text`) or of a Markdown table (`markdown_cell`), or a line on the
console (`one_line`; for Rich's tables as `rich.text.Text`, since Rich interprets ``[...]`` in plain
strings as markup).
"""

from __future__ import annotations

import hashlib
import html
import os
from pathlib import Path, PureWindowsPath
import re
from typing import TYPE_CHECKING, Any

from braingen.runtime.errors import UserError

if TYPE_CHECKING:  # the command line prints messages before pandas is loaded
    import pandas as pd

_FORMULA = ("=", "+", "-", "@", "\t", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")
"""Starts of cells that spreadsheets compute; the last four are the full-width forms of = + - @."""
_INVISIBLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u200b\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff]")
"""Control characters, and characters that reverse the direction of text."""
# bytes of a folder's name; file systems allow 255, and temporary names and endings come on top
_LONGEST = 120


def path_below(root: Path, name: Any, source: Path | str) -> Path:
    """Return the path of a file that a table, list or JSON file names, below a folder.

    An untrusted table must not reach other files of this machine, nor copy them into shared data.

    Parameters
    ----------
    root : Path
        The folder of relative names; it need not exist.
    name : Any
        The name in the table: folders and file, separated by ``/``.
    source : Path | str
        The file that contains the name; begins the message.

    Returns
    -------
    path
        ``root / name``, which need not exist.

    Raises
    ------
    UserError
        When the name is empty, not text, absolute, goes up (``..``), holds control characters, is
        too long for a file, or leaves the folder by a symbolic link.
    """
    shown = one_line(name, 80)
    allowed = f"name a file below {root}, such as folder/image.png"
    if not isinstance(name, str) or not name.strip():
        raise UserError(f"{source} names {shown!r} as a file; {allowed}.")
    if _INVISIBLE.search(name):
        raise UserError(f"{source} names '{shown}', which holds control characters; {allowed}.")
    windows = PureWindowsPath(name)  # knows both separators
    if name.startswith(("/", "\\")) or windows.drive:
        raise UserError(f"{source} names '{shown}', an absolute path; {allowed}.")
    if ".." in windows.parts:
        raise UserError(f"{source} names '{shown}', which leaves the folder ('..'); {allowed}.")
    path = root / name
    try:
        real, real_root = Path(os.path.realpath(path)), Path(os.path.realpath(root))
        path.exists()
    except (OSError, ValueError) as error:
        raise UserError(
            f"{source} names '{shown}', which cannot be the name of a file"
            f" ({error.__class__.__name__}); {allowed}."
        ) from error
    if any(len(os.fsencode(part)) > 255 for part in path.parts):
        raise UserError(
            f"{source} names '{shown}', which is too long for the name of a file; {allowed}."
        )
    if not real.is_relative_to(real_root):
        raise UserError(
            f"{source} names '{shown}', a link out of the folder, to {real}; put the file itself"
            " there."
        )
    return path


def folder_name(file: Path | str, endings: tuple[str, ...]) -> str:
    """Derive a folder name from a file name without its ending.

    Only known endings are removed, so ``subj01.session01.npy`` and ``subj01.session02.npy`` stay
    distinct. A name that would be hidden, empty, too long, or not printable is replaced by a valid
    one, unique to the file.

    Parameters
    ----------
    file : Path | str
        The file; only its name counts.
    endings : tuple[str, ...]
        Endings to remove, such as ``.nii.gz``; the longest match.
    """
    name = Path(file).name
    for ending in sorted(endings, key=len, reverse=True):
        if name.lower().endswith(ending) and len(name) > len(ending):
            name = name[: -len(ending)]
            break
    tame = _INVISIBLE.sub("_", name.encode("utf-8", "replace").decode()).strip()
    tame = re.sub(r"^[.\-]+", "_", tame) or "_"
    if tame == name and len(tame.encode()) <= _LONGEST:
        return tame
    digest = hashlib.sha256(os.fsencode(name)).hexdigest()[:8]
    short = tame.encode()[: _LONGEST - 9].decode("utf-8", "ignore")
    return f"{short}_{digest}"


def one_line(value: Any, longest: int = 0) -> str:
    r"""Format a value as one line: control characters become ``\ufffd``, long text is cut.

    Parameters
    ----------
    value : Any
        Converted by `str`.
    longest : int, optional
        Characters kept; 0 for all.
    """
    text = _INVISIBLE.sub("\ufffd", str(value).encode("utf-8", "replace").decode())
    return text if not longest or len(text) <= longest else f"{text[: longest - 1]}\u2026"


def without_controls(value: Any) -> str:
    r"""Format a value for a terminal: control characters except line ends become ``\ufffd``."""
    return "\n".join(one_line(line) for line in str(value).split("\n"))


def markdown_cell(value: Any) -> str:
    """Escape text as a cell of a Markdown table: no columns, lines, links or tags."""
    text = html.escape(one_line(value), quote=False)
    return re.sub(r"([\\|`\[\]])", r"\\\1", text)


def csv_cell(value: Any) -> Any:
    """Escape text that spreadsheets would compute as a formula with a leading apostrophe.

    Carriage returns become line ends, since CSV writers do not always quote them. `csv_value`
    removes the apostrophe.
    """
    if not isinstance(value, str):
        return value
    value = value.replace("\r\n", "\n").replace("\r", "\n")
    return (
        f"'{value}"
        if value.startswith((*_FORMULA, "'")) or value.lstrip().startswith(_FORMULA)
        else value
    )


def csv_value(cell: Any) -> Any:
    """Undo `csv_cell`."""
    return cell[1:] if isinstance(cell, str) and cell.startswith("'") else cell


def csv_text(table: pd.DataFrame, **options: Any) -> str:
    """Format a table as CSV without formulas; options are those of `DataFrame.to_csv`."""
    from pandas.api.types import is_numeric_dtype  # slow to import

    safe = table.copy()
    for place, (_, column) in enumerate(table.items()):
        if not is_numeric_dtype(column):
            safe.isetitem(place, column.map(csv_cell))
    safe.columns = [csv_cell(name) for name in table.columns]
    if not is_numeric_dtype(table.index):
        safe.index = table.index.map(csv_cell)
        safe.index.name = table.index.name
    return safe.to_csv(**options)
