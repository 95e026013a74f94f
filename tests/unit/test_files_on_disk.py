"""What is written is forced onto the disk before it takes its place, and its place after it: a
power cut leaves the old or the new.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from braingen.runtime.files import (
    replaced_file,
    replaced_folder,
    replaced_path,
    write_json,
    write_text,
)


@pytest.fixture
def noted(monkeypatch) -> list[tuple[str, str]]:
    """Calls that force something onto the disk or rename it, with the name of what it is about."""
    calls: list[tuple[str, str]] = []
    renamed = os.replace

    def fsync(descriptor: int) -> None:
        calls.append(("fsync", Path(os.readlink(f"/proc/self/fd/{descriptor}")).name))

    def replace(source: str | Path, target: str | Path) -> None:
        calls.append(("replace", Path(source).name))
        renamed(source, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", replace)
    return calls


def by_path(path: Path) -> None:
    with replaced_path(path) as temporary:
        temporary.write_text("new")


def by_handle(path: Path) -> None:
    with replaced_file(path) as handle:
        handle.write(b"new")


@pytest.mark.skipif(
    not Path("/proc/self/fd").exists(), reason="names of open files are read from /proc"
)
@pytest.mark.parametrize(
    "write",
    [
        by_path,
        by_handle,
        lambda path: write_text(path, "new"),
        lambda path: write_json(path, {"new": 1}),
    ],
)
def test_a_file_is_on_the_disk_before_it_takes_its_place_and_the_folder_after(
    noted, tmp_path, write
):
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "file").write_text("old")
    write(folder / "file")
    assert "new" in (folder / "file").read_text()
    place = [kind for kind, _ in noted].index("replace")
    temporary = noted[place][1]
    assert ("fsync", temporary) in noted[:place] and ("fsync", "folder") in noted[place:]
    assert temporary != "file"


@pytest.mark.skipif(
    not Path("/proc/self/fd").exists(), reason="names of open files are read from /proc"
)
def test_every_file_of_a_folder_is_on_the_disk_before_the_folder_takes_its_place(noted, tmp_path):
    with replaced_folder(tmp_path / "made") as temporary:
        (temporary / "deep").mkdir()
        (temporary / "one").write_text("1")
        (temporary / "deep" / "two").write_text("2")
    synced = [name for kind, name in noted if kind == "fsync"]
    assert {"one", "two"} <= set(synced)
