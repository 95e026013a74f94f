"""examples/own_scans.py runs as it stands."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[2] / "examples" / "own_scans.py"


@pytest.mark.long
def test_the_example_of_own_scans_runs(tmp_path):
    spec = importlib.util.spec_from_file_location("own_scans_example", EXAMPLE)
    assert spec is not None and spec.loader is not None
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    example.run(tmp_path)
    assert (tmp_path / "run" / "image" / "finished").is_file() and (
        tmp_path / "map.nii.gz"
    ).is_file()
