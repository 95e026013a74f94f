"""A run trained on NSD's layout generates and scores a sealed test set, and is not changed
by it.
"""

from __future__ import annotations

import json

import numpy as np
import pytest
from safetensors.torch import load_file
from unit.fake_raw import add_sealed_sets

from braingen.cli import main
from braingen.simulation.dataset import write_dataset
from braingen.simulation.folder import Arguments
from braingen.simulation.raw_release import write_raw_release

SMALL = [
    "encoder.hidden_dim=16",
    "encoder.n_blocks=1",
    "prior.depth=1",
    "training.num_epochs=1",
    "data.holdout_share=0.2",
]
DRAWN = ["generation.steps=2"]
SCORED = ["evaluation.bootstrap=50", "evaluation.retrieval_draws=3"]
MACHINE = ["--device", "cpu", "--tracker", "none"]


@pytest.mark.long
def test_imagery_is_generated_and_scored_in_a_folder_of_its_own(tmp_path, capsys):
    sizes = {
        "num_subjects": 1,
        "num_sessions": 2,
        "trials_per_session": 30,
        "num_voxels": 60,
        "num_test_images": 6,
    }
    simulated = write_dataset(
        tmp_path / "data", Arguments(**sizes, noise=1, seed=0), workers=1, show_progress=False
    )
    raw = write_raw_release(simulated, tmp_path / "raw", {1: "hdf5"}, side=32)
    add_sealed_sets(raw, 1)
    where = ["--data_path", str(tmp_path / "data"), "--folder", str(tmp_path / "run"), *MACHINE]
    named = ["--test_set", "nsdimagery_vision"]
    assert main(["train", "image", *where, *SMALL]) == 0
    no_text = [*where, "generation.use_text=false"]
    assert main(["reconstruct", *no_text, *DRAWN, *named]) == 2
    assert "There is no sealed test set" in capsys.readouterr().err
    assert main(["prepare", "--scans", str(raw.root), *where[:2], *named]) == 0
    before = sorted(path.name for path in (tmp_path / "run").iterdir())
    for source in ([], ["--random_fmri", "generation.random_draws=1"], ["--oracle"]):
        assert main(["reconstruct", *no_text, *DRAWN, *named, *source]) == 0
    assert main(["evaluate", *where, *SCORED, *named]) == 0
    folder = tmp_path / "run" / "nsdimagery_vision"
    drawn = folder / "reconstructions" / "brain"
    assert sorted(path.stem for path in drawn.glob("*.png")) == [
        f"{image:06d}" for image in range(12)
    ]
    np.testing.assert_array_equal(load_file(drawn / "embeddings.safetensors")["ids"], np.arange(12))
    scores = json.loads((folder / "scores.json").read_text(encoding="utf-8"))
    assert scores["clip_cos"]["n"] == 12 and scores["clip_cos"]["ridge"] is not None
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == sorted(
        [*before, "nsdimagery_vision"]
    )
    assert main(["train", "image", *where, *SMALL, *named]) == 2
    assert "nothing is trained or chosen on it" in capsys.readouterr().err
