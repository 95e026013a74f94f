"""The table of peers (benchmarks/peers.py)."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from unit.tiny_training import TableTargets, tiny_config

from braingen.encoders.embedding_decoder import EmbeddingDecoder
from braingen.encoders.parameters import router_parameters
from braingen.training import encoder_setup

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.mark.slow
def test_frozen_routers_stay_at_their_start_and_all_else_learns(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import peers

    monkeypatch.setattr(encoder_setup, "Targets", TableTargets)
    config = tiny_config(tmp_path / "data", tmp_path / "run", encoder__model="BrainMoEMulti")
    start = encoder_setup.setup(config, "image").embedding_decoder
    folder = peers.train_with_frozen_routers(config)
    found = EmbeddingDecoder.from_pretrained(folder / "embedding_decoder")
    routers = set(router_parameters(start))
    assert routers
    trained = dict(found.named_parameters())
    same = {name for name, p in start.named_parameters() if torch.equal(p, trained[name])}
    assert routers <= same
    assert not [name for name in trained if "trunks" in name and name in same]


def test_what_was_published_has_no_ridge_regression_inside(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import peers

    for name in ("mindeye2", "more_brain", "dense_alone", "default_alone"):
        assert peers.WAYS[name].overrides["training.with_ridge"] == "false"
