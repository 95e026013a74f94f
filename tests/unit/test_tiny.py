"""The tiny backbones are refused on NSD by everything that computes with them, and own scans come
with a warning.
"""

from __future__ import annotations

import json

import h5py
import pytest
from unit.fake_nsd import write_fake_nsd

from braingen.cli import main
from braingen.config.shipped import TINY
from braingen.data.nsd import SIMULATED_ATTRIBUTE

STAGES = [
    "train image",
    "train text",
    "precompute",
    "finetune",
    "reconstruct",
    "evaluate",
    "doctor",
    "bottleneck",
]
STAGES += ["ablate", "adaptation-curve --pretrain_on 2"]
FEW = [
    "encoder.hidden_dim=16",
    "encoder.n_blocks=1",
    "prior.depth=1",
    "training.num_epochs=1",
    "encoder.exp_factor_list=2",
]


@pytest.fixture
def words(tmp_path) -> list[str]:
    layout, _ = write_fake_nsd(tmp_path / "NSD", subjects=[1])
    with h5py.File(layout.images(), "r+") as file:
        del file["images"].attrs[SIMULATED_ATTRIBUTE]
    return ["--data_path", str(layout.root), "--folder", str(tmp_path / "run"), "--device", "cpu"]


@pytest.mark.parametrize("backbone", ["tiny", str(TINY)])
@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.slow
def test_refused_on_data_that_are_not_marked_simulated(words, capsys, tmp_path, stage, backbone):
    assert main([*stage.split(), *words, f"backbone.path={backbone}"]) == 2
    sentence = capsys.readouterr().err
    assert (
        f"holds NSD, not simulated data, and backbone.path = {backbone} knows simulated images"
        " only" in sentence
    )
    assert "--config nsd_subj01" in sentence and "Traceback" not in sentence
    assert not list((tmp_path / "run").rglob("embedding_decoder"))


@pytest.mark.slow
def test_own_scans_are_warned_of(words, capsys, tmp_path):
    (tmp_path / "NSD" / "prepared.json").write_text(
        json.dumps({"data": "own scans", "subjects": {}, "shared": {}})
    )
    assert main(["train", "image", *words, *FEW, "training.batch_size=4", "--tracker", "none"]) == 0
    assert "WARNING" in capsys.readouterr().err
    main(["doctor", *words, "--json"])
    found = json.loads(capsys.readouterr().out)["findings"]
    assert any(
        item["level"] == "warning" and "knows simulated images only" in item["sentence"]
        for item in found
    )


def test_pictures_of_anybody_are_scored_without_a_backbone(words, tmp_path, capsys):
    """`final_evaluations.py --all_recons_path` asks no backbone, so none is refused."""
    (tmp_path / "pictures").mkdir()
    assert main(["evaluate", *words, "--all_recons_path", str(tmp_path / "pictures")]) == 2
    assert "knows simulated images only" not in capsys.readouterr().err
