"""What the theme leaves out for people who use a keyboard or a screen reader."""

from __future__ import annotations

import re
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx

CHANGES = (
    # headings of the contents have a level
    (re.compile(r'role="heading"(?! aria-level)'), 'role="heading" aria-level="2"'),
    # parts that scroll sideways can be reached with the keyboard
    (re.compile(r"<pre(?=[ >])(?![^>]*tabindex)"), '<pre tabindex="0"'),
    (re.compile(r'<div (?=class="(?:table-wrapper|output_subarea|math))'), '<div tabindex="0" '),
    # the words of a thumbnail's link are hidden, and stand beside it
    (
        re.compile(
            r'(<a class="reference internal" href="[^"]*")(><span class="doc">)([^<]*)(?=<)'
        ),
        r'\1 aria-label="\3"\2\3',
    ),
)
"""Pattern in a page, and what takes its place."""


def amend(
    app: Sphinx, page: str, template: str, context: dict[str, Any], tree: nodes.Node | None
) -> None:
    """Amend the text and the contents of a page before it is written."""
    for name in ("body", "furo_navigation_tree", "toc"):
        if text := context.get(name):
            for pattern, new in CHANGES:
                text = pattern.sub(new, text)
            context[name] = text


def setup(app: Sphinx) -> dict[str, bool]:
    """Amend every page, after the theme has made its contents."""
    app.connect("html-page-context", amend, priority=900)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
