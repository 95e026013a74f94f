"""Whatever comes from a file is data: names, captions and codes of other people, made safe for
where they go.

A name in a table becomes a path (`path_below`), a file's name becomes a folder (`folder_name`),
text becomes a cell of a spreadsheet (`csv_text`) or of a Markdown table (`markdown_cell`), or a
line on the console (`one_line`; tables of Rich get `rich.text.Text` of it, since Rich takes
``[...]`` in plain strings for markup).
"""

from __future__ import annotations

import hashlib
import html
import os
from pathlib import Path, PureWindowsPath
import re
from typing import TYPE_CHECKING, Any

from braingen.runtime.errors import UserError

if TYPE_CHECKING:  # the command line shows messages before pandas is loaded
    import pandas as pd

_FORMULA = ("=", "+", "-", "@", "\t", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")
"""What a cell begins with that spreadsheets compute; the last four are the full-width forms of = +
- @.
"""
_INVISIBLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u200b\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff]")
"""Control characters, and those that turn the direction of text round."""
# bytes of a folder's name; file systems allow 255, and temporary names and endings come on top
_LONGEST = 120


def path_below(root: Path, name: Any, source: Path | str) -> Path:
    """Path of a file that a table, list or JSON file names, below the folder the names refer to.

    Somebody else's table must not reach other files of this machine, nor take them into data that
    are passed on.

    Parameters
    ----------
    root : Path
        The folder that names are relative to; it need not exist.
    name : Any
        As it stands in the table: folders and file, separated by ``/``.
    source : Path | str
        Where the name comes from; begins the message.

    Returns
    -------
    path
        ``root / name``, which need not exist.

    Raises
    ------
    UserError
        When the name is empty, no text, absolute, goes up (``..``), holds control characters, is
        too long for a file, or leads out of the folder by a symbolic link.
    """
    shown = one_line(name, 80)
    allowed = f"name a file below {root}, such as folder/picture.png"
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
    """Name of a folder for what is made from a file: the file's name without its ending.

    Only known endings are cut off, so ``subj01.session01.npy`` and ``subj01.session02.npy`` stay
    two. A name that would be hidden, empty, too long, or not printable becomes one that is none of
    these, and still another for another file.

    Parameters
    ----------
    file : Path | str
        Path as given; only its last part counts.
    endings : tuple[str, ...]
        Endings that are cut off, such as ``.nii.gz``; the longest that fits.
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
    """A value as one line of text: control characters (colours, the bell, line ends) become
    ``\\ufffd``, long text is cut.

    Parameters
    ----------
    value : Any
        Anything; its `str` is taken.
    longest : int, optional
        Characters kept; 0 for all.
    """
    text = _INVISIBLE.sub("\ufffd", str(value).encode("utf-8", "replace").decode())
    return text if not longest or len(text) <= longest else f"{text[: longest - 1]}\u2026"


def without_controls(value: Any) -> str:
    """A value as text that a terminal shows and does not obey: lines stay, other control characters
    become ``\ufffd``.
    """
    return "\n".join(one_line(line) for line in str(value).split("\n"))


def markdown_cell(value: Any) -> str:
    """Text as a cell of a Markdown table: no column, line, link or tag of its own."""
    text = html.escape(one_line(value), quote=False)
    return re.sub(r"([\\|`\[\]])", r"\\\1", text)


def csv_cell(value: Any) -> Any:
    """A cell that no spreadsheet computes: text that begins like a formula gets an apostrophe in
    front.

    Carriage returns become line ends, since CSV writers do not always quote them. `csv_value` takes
    the apostrophe away.
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
    """What `csv_cell` was given."""
    return cell[1:] if isinstance(cell, str) and cell.startswith("'") else cell


def csv_text(table: pd.DataFrame, **options: Any) -> str:
    """A table as CSV whose text cells, column names and row names are never formulas; options are
    those of `DataFrame.to_csv`.
    """
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
