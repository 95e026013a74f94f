"""Files of the repository that lie outside of docs/, and links to them.

Some become pages of the site: on GitHub the page is a stub that links to the file, on the site it
is the file. A link to any other file leads to the repository where its address is known (in the
workflows), and is a download where it is not.
"""

from __future__ import annotations

import os
from pathlib import Path
import re

from sphinx.application import Sphinx
from sphinx.util import logging

LINK = re.compile(r"(?<=\]\()(?!\w+:)([^)#\s]+)(#[^)\s]*)?(?=\))")
PAGES = {
    "README.md": "readme",
    "CHANGELOG.md": "changelog",
    "CONTRIBUTING.md": "contributing",
    "src/braingen/simulation/assets/quickstart/README.md": "cards/quickstart",
    "src/braingen/simulation/assets/tiny/README.md": "cards/tiny",
}
"""File of the repository -> page that it becomes."""
WHOLE = re.compile(r"\[([^\]]+)\]\((?!\w+:)([^)#\s]+)\)")
"""A link with its words."""
FILE_OF = {page: file for file, page in PAGES.items()}
ANY_CLONE = "<this repository>"
"""What pages have in place of the repository's address."""
log = logging.getLogger(__name__)


def repository() -> str:
    """Address of the files in the repository; empty where the build does not know it."""
    name, commit = os.environ.get("GITHUB_REPOSITORY"), os.environ.get("GITHUB_SHA")
    if not (name and commit):
        return ""
    server = os.environ.get("GITHUB_SERVER_URL", "https://github.com")
    return f"{server}/{name}/blob/{commit}"


def clone_address() -> str:
    """Address that `git clone` takes; words in its place where the build does not know it."""
    name = os.environ.get("GITHUB_REPOSITORY")
    if not name:
        return ANY_CLONE
    return f"{os.environ.get('GITHUB_SERVER_URL', 'https://github.com')}/{name}.git"


def _posix(path: str) -> str:
    return path.replace(os.sep, "/")


def rewrite(app: Sphinx, docname: str, source: list[str]) -> None:
    """Take the file that a page stands for, and point all links to where they lead on the site."""
    docs = Path(app.srcdir)
    page_folder = Path(docs.name, docname).parent
    folder = page_folder
    if docname in FILE_OF:
        path = docs.parent / FILE_OF[docname]
        source[0] = path.read_text(encoding="utf-8")
        app.env.note_dependency(str(path))
        folder = Path(FILE_OF[docname]).parent
    address = repository()

    def replaced(match: re.Match[str]) -> str:
        anchor = match[2] or ""
        inside = _posix(os.path.normpath(folder / match[1]))
        if not (docs.parent / inside).exists():
            log.warning("%s links to %s, which does not exist", docname, inside)
        if inside in PAGES:
            inside = f"{docs.name}/{PAGES[inside]}.md"
        elif address and not inside.startswith(f"{docs.name}/"):
            return f"{address}/{inside}{anchor}"
        return _posix(os.path.relpath(inside, page_folder)) + anchor

    def without_folder(match: re.Match[str]) -> str:
        """The words alone where a link leads to a folder, which a site cannot show."""
        folder_linked = not address and (docs.parent / os.path.normpath(folder / match[2])).is_dir()
        return match[1] if folder_linked else match[0]

    source[0] = LINK.sub(replaced, WHOLE.sub(without_folder, source[0]))
    source[0] = source[0].replace(ANY_CLONE, clone_address())


def setup(app: Sphinx) -> dict[str, bool]:
    """Rewrite every page as it is read."""
    app.connect("source-read", rewrite)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
