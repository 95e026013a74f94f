"""The examples of docs/data.md run as they stand."""

from __future__ import annotations

from pathlib import Path
import re

import numpy as np
from unit.fake_nsd import write_fake_nsd

from braingen.data.volumes import VoxelPlaces, save_places


def test_examples_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    layout, written = write_fake_nsd(Path("data/NSD"))
    mask = np.zeros((4, 5, 6), dtype=bool)
    mask.ravel()[: written[1].betas.shape[1]] = True
    save_places(layout, 1, VoxelPlaces(mask, "F", np.eye(4), "test"))
    examples = re.findall(
        r"```python\n(.*?)```", (Path(__file__).parents[2] / "docs" / "data.md").read_text(), re.S
    )
    assert len(examples) == 3
    scope: dict = {}
    for example in examples:
        exec(example, scope)
