"""examples/glmsingle.py runs as it stands: from GLMsingle's output to a trained encoder."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[2] / "examples" / "glmsingle.py"


@pytest.mark.long
def test_the_example_of_glmsingle_runs(tmp_path):
    spec = importlib.util.spec_from_file_location("glmsingle_example", EXAMPLE)
    assert spec is not None and spec.loader is not None
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    example.run(tmp_path)
    assert (tmp_path / "run" / "image" / "finished").is_file()
    found = json.loads((tmp_path / "data" / "prepared.json").read_text(encoding="utf-8"))[
        "subjects"
    ]["1"]
    assert found["voxels"] == 6 * 7 * 7 and found["trials"] == 144
    assert (
        found["reliability"]["same_picture"] > 0.7
        and abs(found["reliability"]["other_picture"]) < 0.1
    )
