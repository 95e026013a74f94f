"""What a demo does before its first step."""

from __future__ import annotations

import pytest

from braingen.config import load_config
from braingen.demo import flow


@pytest.mark.parametrize("place", [".", flow.DECODER])
def test_what_a_killed_demo_left_is_removed_wherever_it_writes_single_files(
    tmp_path, monkeypatch, place
):
    folder = tmp_path / "run" / place
    folder.mkdir(parents=True)
    left, kept = folder / ".README.md.tmp-999", folder / "README.md"
    left.write_text("half", encoding="utf-8")
    kept.write_text("whole", encoding="utf-8")
    monkeypatch.setattr(flow, "_do", lambda steps, folder: folder)
    settings = {"run.folder": str(tmp_path / "run"), "data.root": str(tmp_path / "data")}
    flow.demo(load_config("simulated", {**settings, "run.processes": "1"}))
    assert not left.exists() and kept.read_text(encoding="utf-8") == "whole"
