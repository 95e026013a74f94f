"""Pages of docs/: each is reached from the site's contents, and no link leads nowhere."""

from __future__ import annotations

from functools import cache
import importlib.util
import os
from pathlib import Path
import re
from types import ModuleType, SimpleNamespace

import pytest
from unit.told_commands import ROOT

DOCS = ROOT / "docs"
BUILT = ("api/generated", "tutorials")
"""Folders that a build of the site fills."""
PAGES = sorted(
    path for path in DOCS.rglob("*.md") if not path.relative_to(DOCS).as_posix().startswith(BUILT)
)
TUTORIALS = sorted((ROOT / "examples" / "tutorials").glob("*.py"))
LINK = re.compile(r"\]\((?!\w+:)([^)#\s]*)(?:#([^)\s]*))?\)")


def load(path: Path) -> ModuleType:
    """A module of the site's settings or extensions, where Sphinx is installed."""
    pytest.importorskip("sphinx")
    spec = importlib.util.spec_from_file_location(f"of_the_site_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@cache
def without_code(path: Path) -> str:
    return re.sub(r"^```.*?^```", "", path.read_text(encoding="utf-8"), flags=re.M | re.S)


@cache
def anchors(path: Path) -> set[str]:
    """Anchors of the headings, as GitHub and MyST make them."""
    titles = re.findall(r"^#+ +(.*)$", without_code(path), re.M)
    titles = [re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", title) for title in titles]
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def in_contents() -> set[str]:
    """Pages that a toctree names, as docs/index.md reaches them."""
    found = {"index"}
    for page in PAGES:
        folder = page.parent.relative_to(DOCS)
        for tree in re.findall(r"^```\{toctree\}\n(.*?)^```", page.read_text("utf-8"), re.M | re.S):
            names = [line for line in tree.splitlines() if line and not line.startswith(":")]
            for name in (re.sub(r".*<(.*)>", r"\1", each) for each in names):
                if "*" in name:
                    found |= {
                        path.relative_to(DOCS).with_suffix("").as_posix()
                        for path in page.parent.glob(f"{name}.md")
                    }
                else:
                    found.add(Path(os.path.normpath(folder / name)).as_posix())
    return found


def test_every_page_is_in_the_contents_of_the_site():
    pages = {page.relative_to(DOCS).with_suffix("").as_posix() for page in PAGES}
    named = in_contents()
    assert pages - named == set(), "name it in docs/howto.md, docs/concepts.md or docs/index.md"
    assert named - pages == {"tutorials/index"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(DOCS).as_posix())
def test_links_of_a_page_lead_somewhere(page):
    lost = []
    for link, anchor in LINK.findall(without_code(page)):
        target = page if not link else Path(os.path.normpath(page.parent / link))
        inside = target.relative_to(DOCS).as_posix() if target.is_relative_to(DOCS) else ""
        if inside.startswith("tutorials/"):
            script = (ROOT / "examples" / "tutorials" / target.name).with_suffix(".py")
            known = target.name == "index.rst" or script in TUTORIALS
            if not known or target.suffix != ".rst":  # a page that the gallery writes
                lost.append(link)
        elif not target.exists():
            lost.append(link)
        elif anchor and target.suffix == ".md" and inside not in ("settings.md", "commands.md"):
            source = target if inside != "readme.md" else ROOT / "README.md"
            if anchor not in anchors(source):
                lost.append(f"{link}#{anchor}")
    assert not lost


def test_the_drawing_of_the_flow_names_files_that_exist():
    package = ROOT / "src" / "braingen"
    words = " ".join(re.findall(r"<text[^>]*>(.*?)<", (DOCS / "pipeline.svg").read_text("utf-8")))
    files = {path.name for path in package.rglob("*.py")}
    assert set(re.findall(r"\w+\.py", words)) <= files
    folders = {path.name for path in package.rglob("*") if path.is_dir()}
    assert {"data", "encoders", "routing"} <= set(re.findall(r"(\w+)/", words)) <= folders


def test_pages_that_stand_for_a_file_link_to_it():
    outside = load(DOCS / "_ext" / "files_outside.py")
    for file, page in outside.PAGES.items():
        stub = DOCS / f"{page}.md"
        found = [
            Path(os.path.normpath(stub.parent / link))
            for link, _ in LINK.findall(stub.read_text(encoding="utf-8"))
        ]
        assert found == [ROOT / file]


def test_pages_name_the_repository_where_the_build_knows_it(monkeypatch):
    outside = load(DOCS / "_ext" / "files_outside.py")
    told = [ROOT / "CONTRIBUTING.md", DOCS / "start.md"]
    assert all(f"git clone {outside.ANY_CLONE}" in page.read_text("utf-8") for page in told)
    monkeypatch.delenv("GITHUB_REPOSITORY", raising=False)
    assert outside.clone_address() == outside.ANY_CLONE
    monkeypatch.setenv("GITHUB_REPOSITORY", "someone/name")
    monkeypatch.setenv("GITHUB_SERVER_URL", "https://example.org")
    monkeypatch.delenv("GITHUB_SHA", raising=False)
    source = [f"git clone {outside.ANY_CLONE} x"]
    outside.rewrite(SimpleNamespace(srcdir=DOCS), "start", source)
    assert source == ["git clone https://example.org/someone/name.git x"]


def test_tutorials_are_those_of_the_start_page():
    text = (DOCS / "start.md").read_text(encoding="utf-8")
    named = set(re.findall(r"tutorials/(\w+)\.rst", text))
    assert named <= {path.stem for path in TUTORIALS}
    assert len(TUTORIALS) == 7


@pytest.mark.parametrize("path", TUTORIALS, ids=lambda path: path.stem)
def test_a_tutorial_begins_with_a_title_and_links_to_pages_that_exist(path):
    text = path.read_text(encoding="utf-8")
    title, line = text.splitlines()[1:3]
    assert text.startswith('"""\n') and set(line) == {"="} and len(line) == len(title)
    for page in re.findall(r":doc:`/([\w/]+)`", text):
        assert (DOCS / f"{page}.md").is_file(), page
