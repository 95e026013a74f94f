"""What is distributed: wheel and source archive hold the package, all of it and nothing else.
(.ci/wheel installs and uses them.)
"""

from __future__ import annotations

import os
from pathlib import Path, PurePosixPath
import re
import shutil
import subprocess
import sys
import tarfile
from typing import NamedTuple
import zipfile

import pytest
from unit.told_commands import ROOT

IN_BOTH = ("pyproject.toml", "README.md", "LICENSE")
WEIGHTS = 2**17
"""Bytes above which a file has to be accounted for in a card or licence."""


class Distributed(NamedTuple):
    """Files of the two archives, under their paths in the repository or the wheel, with their sizes
    in bytes.
    """

    wheel: dict[str, int]
    source: dict[str, int]


def tracked() -> list[str]:
    """Files of the package in the repository, without what a run or an editor leaves."""
    asked = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "src/braingen"]
    try:
        listed = subprocess.run(
            asked, cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout.splitlines()
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    return [name for name in listed if (ROOT / name).exists()]


@pytest.fixture(scope="module")
def distributed(tmp_path_factory) -> Distributed:
    pytest.importorskip("setuptools", "77")
    work = tmp_path_factory.mktemp("wheel")
    for name in (
        *IN_BOTH,
        *tracked(),
        "tests/conftest.py",
        "benchmarks/routing.py",
        "scripts/Train.py",
    ):
        place = work / "copy" / name
        place.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(ROOT / name, place)
        except OSError:  # another file system
            shutil.copyfile(ROOT / name, place)
    # what a run leaves in the package's folder
    (work / "copy/src/braingen/__pycache__").mkdir()
    (work / "copy/src/braingen/__pycache__/cli.pyc").write_bytes(b"")
    build = (
        "from setuptools import build_meta as b; b.build_sdist('../dist'); b.build_wheel('../dist')"
    )
    subprocess.run(
        [sys.executable, "-c", build], cwd=work / "copy", check=True, capture_output=True
    )
    (wheel,), (source,) = (work / "dist").glob("*.whl"), (work / "dist").glob("*.tar.gz")
    with zipfile.ZipFile(wheel) as archive:
        in_wheel = {info.filename: info.file_size for info in archive.infolist()}
    with tarfile.open(source) as archive:
        members = [member for member in archive.getmembers() if member.isfile()]
        in_source = {
            str(PurePosixPath(*PurePosixPath(member.name).parts[1:])): member.size
            for member in members
        }
    return Distributed(in_wheel, in_source)


def test_the_wheel_is_the_package_and_nothing_else(distributed):
    package = {name for name in distributed.wheel if ".dist-info/" not in name}
    assert package == {name.removeprefix("src/") for name in tracked()}
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in distributed.wheel)


def test_the_source_archive_builds_the_same_and_holds_no_tests(distributed):
    made = {name for name in distributed.source if not name.startswith("src/braingen.egg-info/")}
    assert made == {*tracked(), *IN_BOTH, "PKG-INFO", "setup.cfg"}


def test_every_large_file_is_accounted_for(distributed):
    """Weights stand in a card of the package (a row of its README.md) with their size; nothing else
    is large.
    """
    cards = "\n".join(
        file.read_text(encoding="utf-8")
        for file in sorted((ROOT / "src/braingen").rglob("README.md"))
    )
    for name, size in distributed.wheel.items():
        if size <= WEIGHTS:
            continue
        called = "|".join(
            re.escape(f"`{each}`")
            for each in (Path(name).name, Path(name).parent.name, f"{Path(name).parent.name}/")
        )
        rows = re.findall(
            rf"^\|[^|]*(?:{called})[^|]*\|.*\| ([\d.]+) MB(?: each)? \|$", cards, flags=re.MULTILINE
        )
        assert rows, f"{name} ({size} bytes) stands in no card"
        assert any(float(row) == pytest.approx(size / 1e6, abs=0.06) for row in rows), (
            name,
            size,
            rows,
        )
