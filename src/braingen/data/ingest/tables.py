"""Tables of text as they occur: tabs, commas or semicolons, UTF-8 or UTF-16, compressed or not;
and Parquet.
"""

from __future__ import annotations

import csv
import gzip
from pathlib import Path
from typing import Any

import pandas as pd

from braingen.data.ingest.names import GUIDE
from braingen.runtime.errors import UserError, reason
from braingen.runtime.extras import need
from braingen.runtime.files import refuse_stand_in

_SEPARATORS = {"\t": "tabs", ";": "semicolons", ",": "commas"}
_WORKBOOKS = (".xlsx", ".xls", ".ods")


def read_table(path: Path) -> pd.DataFrame:
    """A table of a .tsv, .csv (or .gz of these) or .parquet file; text is stripped.

    The separator is that of the ending, or where the first line has none of those, the one it has.

    Raises
    ------
    UserError
        When the file is missing, no table, or has two columns of one name.
    """
    refuse_stand_in(path, GUIDE)
    if path.suffix.lower() in _WORKBOOKS:
        raise UserError(f"{path} is a workbook, not a table of text; save it as CSV (UTF-8).")
    if path.suffix == ".parquet":
        need("parquet", f"Reading {path} (or write it as CSV)")
    try:
        table = pd.read_parquet(path) if path.suffix == ".parquet" else _read_text(path)
    except UserError:
        raise
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is no UTF-8 text ({reason(error)}); save it as UTF-8.") from error
    except (ValueError, OSError, EOFError) as error:
        raise UserError(f"{path} is not a table ({reason(error)}); {GUIDE}.") from error
    for name in table.columns:
        if table[name].dtype.kind not in "fiub":
            table[name] = table[name].astype("string").str.strip().replace("", pd.NA)
    return table


def _read_text(path: Path) -> pd.DataFrame:
    opener: Any = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rb") as raw:
        encoding = "utf-16" if raw.read(2) in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    with opener(path, "rt", encoding=encoding, newline="") as text:
        first = text.readline().rstrip("\r\n")
    separator = _separator(first, path)
    names = [name.strip() for name in next(csv.reader([first], delimiter=separator), [])]
    twice = next((name for name in names if name and names.count(name) > 1), "")
    if twice:
        raise UserError(f"{path} has two columns {twice}; rename or remove one of them.")
    table = pd.read_csv(
        path,
        sep=separator,
        na_values=["n/a"],
        dtype=str,
        keep_default_na=True,
        encoding=encoding,
        compression="gzip" if path.suffix == ".gz" else None,
    )
    table.columns = [str(name).strip() for name in table.columns]
    return _with_points(table) if separator == ";" else table


def _separator(first: str, path: Path) -> str:
    """What separates the columns of a table, by its first line."""
    usual = "," if path.name.removesuffix(".gz").endswith(".csv") else "\t"
    if usual in first:
        return usual
    found = max(_SEPARATORS, key=first.count)
    if found in first:
        return found
    if len(first.split()) > 2:
        raise UserError(
            f"{path}: its columns are separated by blanks ({first[:60]}); write "
            f"{_SEPARATORS[usual]} between them."
        )
    return usual


def _with_points(table: pd.DataFrame) -> pd.DataFrame:
    """Decimal commas, which go with semicolons, as points."""
    for name in table.columns:
        words = table[name].dropna()
        if len(words) and words.str.fullmatch(r"\s*-?\d+(,\d+)?\s*").all():
            table[name] = table[name].str.replace(",", ".", regex=False)
    return table
