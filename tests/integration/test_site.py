"""The documentation site as `make site` builds it: without a warning, with every tutorial run and
every public name, and nothing that keeps a reader with a screen reader or a phone from reading.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from html.parser import HTMLParser
from importlib.util import find_spec
import json
import os
from pathlib import Path
import re
import shutil
import subprocess
import sys
from urllib.parse import unquote, urlsplit
import zlib

from integration.axe import axe_script, serious_findings
from integration.chromium import Page, chromium_page, find_chromium
import pytest
from unit.told_commands import ROOT

import braingen

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        find_spec("sphinx") is None, reason="the site needs pip install 'braingen[docs]'"
    ),
    pytest.mark.skipif(
        not os.environ.get("SITE"),
        reason="minutes of building: SITE=1 asks for it, SITE=build/site takes what is built",
    ),
]

TUTORIALS = sorted(path.stem for path in (ROOT / "examples" / "tutorials").glob("*.py"))
SOURCE = ROOT / "src" / "braingen"
WITHOUT_API = ("commands",)
"""Packages that the reference leaves out: their pages are those of the command line."""
DOCS = ROOT / "docs"
WRITTEN = [path.relative_to(DOCS).with_suffix("").as_posix() for path in DOCS.rglob("*.md")]
LOOKED_AT = sorted(name for name in WRITTEN if not name.startswith(("api/generated", "tutorials")))
LOOKED_AT += ["tutorials/index", *(f"tutorials/{name}" for name in TUTORIALS), "genindex", "search"]
LOOKED_AT.append("api/generated/braingen.generation.pipeline")


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site that SITE names, or that of a copy of the checkout, so that a build here and one by
    hand do not meet.
    """
    named = Path(os.environ["SITE"])
    if named.is_dir():
        return named.resolve()
    copy = tmp_path_factory.mktemp("site") / "checkout"
    copy.mkdir()
    built = shutil.ignore_patterns("generated", "tutorials", "__pycache__")
    shutil.copytree(ROOT / "docs", copy / "docs", ignore=built)
    for path in ROOT.iterdir():
        if path.name not in ("docs", "build", ".git", "data", "runs"):
            (copy / path.name).symlink_to(path)
    words = ["-W", "--keep-going", "-q", "-b", "html", "docs", "build/site"]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    made = subprocess.run(
        [sys.executable, "-m", "sphinx", *words],
        cwd=copy,
        env=environment,
        capture_output=True,
        encoding="utf-8",
    )
    assert made.returncode == 0, made.stderr[-6000:]
    return copy / "build" / "site"


class Parts(HTMLParser):
    """Anchors of a page, and the addresses that it links to or loads."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.addresses: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.anchors |= {value for name in ("id", "name") if (value := given.get(name))}
        self.addresses += [value for name in ("href", "src") if (value := given.get(name))]


def test_no_link_of_the_site_leads_nowhere(site: Path) -> None:
    pages = {path: Parts(path.read_text(encoding="utf-8")) for path in site.rglob("*.html")}
    lost = []
    for path, parts in pages.items():
        for address in parts.addresses:
            split = urlsplit(address)
            if split.scheme or split.netloc or address == "#":
                continue
            target = path
            if split.path:
                target = Path(os.path.normpath(path.parent / unquote(split.path)))
            known = pages.get(target)
            wrong = split.fragment and known and unquote(split.fragment) not in known.anchors
            if not target.exists() or wrong:
                lost.append(f"{path.relative_to(site)}: {address}")
    assert not lost, "\n".join(sorted(set(lost))[:40])


def test_pages_load_nothing_from_elsewhere(site: Path) -> None:
    loaded = re.compile(r'<(?:script|link|img|iframe)[^>]*(?:src|href)="((?:https?:)?//[^"]*)"')
    found = {
        path.relative_to(site).as_posix(): addresses
        for path in site.rglob("*.html")
        if (addresses := loaded.findall(path.read_text(encoding="utf-8")))
    }
    assert found == {}


@pytest.mark.parametrize("name", TUTORIALS)
def test_a_tutorial_is_a_page_with_pictures_and_a_notebook(site: Path, name: str) -> None:
    page = (site / "tutorials" / f"{name}.html").read_text(encoding="utf-8")
    assert 'class="sphx-glr-' in page and f"sphx_glr_{name}_001.png" in page
    (notebook,) = (site / "_downloads").rglob(f"{name}.ipynb")
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    first = "".join(cells[0]["source"])
    assert "%pip install" in first and f"braingen-{braingen.__version__}" in first
    assert list((site / "_downloads").rglob(f"{name}.py"))


def public_names() -> Iterator[str]:
    """Every public module, and every public class and function with a docstring that it defines."""
    for path in sorted(SOURCE.rglob("*.py")):
        parts = path.relative_to(SOURCE).with_suffix("").parts
        if parts[0] in WITHOUT_API or any(part.startswith("_") for part in parts[:-1]):
            continue
        module = ".".join(("braingen", *(part for part in parts if part != "__init__")))
        if parts[-1].startswith("_") and parts[-1] != "__init__":
            continue
        if module != "braingen":
            yield module
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if (
                isinstance(node, ast.ClassDef | ast.FunctionDef)
                and not node.name.startswith("_")
                and ast.get_docstring(node)
            ):
                yield f"{module}.{node.name}"
    yield from (f"braingen.{name}" for name in braingen.__all__ if name != "__version__")


def described(site: Path) -> set[str]:
    """Names of Python objects in the inventory that other sites link by."""
    lines = (site / "objects.inv").read_bytes().split(b"\n", 4)
    entries = zlib.decompress(lines[4]).decode("utf-8").splitlines()
    return {entry.split()[0] for entry in entries if entry.split()[1].startswith("py:")}


def test_every_public_name_has_a_page(site: Path) -> None:
    assert sorted(set(public_names()) - described(site)) == []


@pytest.fixture(scope="module")
def browser() -> Iterator[Page]:
    if find_chromium() is None:
        pytest.skip("no Chromium or Chrome on this machine (apt-get install chromium)")
    axe_script()
    with chromium_page() as page:
        yield page


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("name", LOOKED_AT)
def test_no_serious_finding(browser: Page, site: Path, name: str, width: int, dark: bool) -> None:
    browser.screen(width, 800, dark=dark, phone=width < 600)
    browser.open(site / f"{name}.html")
    assert browser.evaluate("document.documentElement.scrollWidth") <= width
    assert serious_findings(browser) == []
    assert browser.requests() == []
