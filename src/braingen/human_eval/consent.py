"""The consent text: a template to fill in, shown on the first page of a study."""

from __future__ import annotations

import html
from pathlib import Path
import re

from braingen.runtime.errors import UserError
from braingen.runtime.files import write_text
from braingen.runtime.text_files import read_text

CONSENT = "consent.md"
GAP = re.compile(r"\[FILL IN[^\]]*\]")
"""A placeholder that the researcher replaces."""
_TEMPLATE = Path(__file__).parent / "assets" / CONSENT


def read_consent(folder: Path) -> str:
    """Read the consent text of a study folder; a missing one is created from the template.

    Raises
    ------
    UserError
        When the text is empty.
    """
    path = folder / CONSENT
    if not path.exists():
        write_text(path, _TEMPLATE.read_text(encoding="utf-8"))
    text = read_text(
        path, "write the information for participants, or remove the file to get the template"
    )
    if not text.strip():
        raise UserError(
            f"{path} is empty: write the information for participants, or remove the file to get"
            " the template."
        )
    return text


def gaps(text: str) -> list[str]:
    """Placeholders that are not filled in."""
    return GAP.findall(text)


def as_html(text: str) -> str:
    """Headings (#, ##), lists (-) and paragraphs as HTML; gaps are marked, text is escaped."""
    blocks: list[str] = []
    for block in re.split(r"\n\s*\n", text.strip()):
        lines = block.strip().splitlines()
        heading = re.match(r"(#{1,3})\s+(.*)", lines[0])
        if heading:
            level = len(heading[1])
            blocks.append(f"<h{level}>{_inline(heading[2])}</h{level}>")
            lines = lines[1:]
        if lines and all(re.match(r"\s*([-*]\s|\s)", line) for line in lines):
            items = re.split(r"^\s*[-*]\s+", "\n".join(lines), flags=re.MULTILINE)[1:]
            blocks.append("<ul>" + "".join(f"<li>{_inline(item)}</li>" for item in items) + "</ul>")
        elif lines:
            blocks.append(f"<p>{_inline(' '.join(lines))}</p>")
    return "\n".join(blocks)


def _inline(text: str) -> str:
    escaped = html.escape(" ".join(text.split()))
    return GAP.sub(lambda found: f"<mark>{found[0]}</mark>", escaped)
