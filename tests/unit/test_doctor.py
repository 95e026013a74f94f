"""`braingen doctor` on sound data: everything is told, nothing is written, scripts get JSON and an
exit code.
"""

from __future__ import annotations

import json
import time

import numpy as np
import pytest
from unit.fake_backbone import plain_unet, small_vae
from unit.fake_nsd import write_fake_nsd

from braingen.cli import main
from braingen.config import load_config
from braingen.data.nsd import VOXELS
from braingen.diagnostics import doctor as doctor_stage
from braingen.diagnostics import precompute as cache_stage
from braingen.diagnostics.resources import Need, cache_bytes, needs_of, training_bytes
from braingen.diagnostics.summary import Sizes
from braingen.runtime.data_layout import Layout
from braingen.runtime.errors import UserError
from braingen.training.encoder_setup import build_embedding_decoder

PUBLISHED = {"image": (1, 1280), "text": (1, 1280)}


@pytest.fixture
def words(tmp_path) -> list[str]:
    write_fake_nsd(tmp_path / "NSD")
    return [
        "--data_path",
        str(tmp_path / "NSD"),
        "--model_name",
        str(tmp_path / "run"),
        "--device",
        "cpu",
    ]


@pytest.mark.slow
def test_sound_data_are_ready(words, capsys, tmp_path):
    before = sorted(path for path in (tmp_path / "NSD").rglob("*") if ".braingen" not in path.parts)
    started = time.monotonic()
    assert main(["doctor", *words, "--json", "--subj", "1"]) == 0
    assert time.monotonic() - started < 60
    found = json.loads(capsys.readouterr().out)
    assert found["ready"] is True
    areas = {(item["area"], item["what"]) for item in found["findings"]}
    assert areas >= {
        ("machine", "device"),
        ("machine", "runs"),
        ("backbone", "unet"),
        ("backbone", "ip_adapter"),
        ("scores", "alexnet2"),
    }
    assert areas >= {
        ("data", name)
        for name in ("root", "trials", "test", "betas", "masks", "images", "captions", "volumes")
    }
    assert areas >= {
        ("needs", name)
        for name in (
            "memory to train",
            "memory to generate",
            "disk for caches",
            "disk for training",
        )
    }
    others = [item for item in found["findings"] if item["subject"] == 2]
    assert len(others) == 1 and "--subj 2" in others[0]["sentence"]
    assert all(item["sentence"].strip() for item in found["findings"])
    assert (
        sorted(path for path in (tmp_path / "NSD").rglob("*") if ".braingen" not in path.parts)
        == before
    )
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_people_get_a_list(words, capsys):
    assert main(["doctor", *words]) == 0
    out = capsys.readouterr().out
    assert "MISSING" not in out and "Everything is there" in out and "  ready    Subject 1: " in out


def test_too_little_of_anything_is_an_error_with_what_to_do(words, capsys, monkeypatch):
    monkeypatch.setattr(
        doctor_stage, "needs_of", lambda *_: [Need("memory to train", 9 * 10**9, 10**9, "get more")]
    )
    assert main(["doctor", *words, "--json"]) == 2
    streams = capsys.readouterr()
    assert json.loads(streams.out)["ready"] is False
    assert "Memory to train: about 9.0 GB of 1.0 GB free; get more." in streams.err


def test_training_memory_is_reckoned_from_the_parameters_of_the_real_model():
    config = load_config(
        None,
        {
            "encoder.hidden_dim": "64",
            "encoder.n_blocks": "1",
            "prior.depth": "1",
            "training.batch_size": "1",
        },
    )
    sizes = Sizes({"1": 300}, (1, 128), (1, 128), {"L": 64, "bigG": 128}, ())
    embedding_decoder = build_embedding_decoder(config, {1: 300}, (1, 128))
    held = sum(
        parameter.numel() * parameter.element_size() for parameter in embedding_decoder.parameters()
    )
    device, state = training_bytes(config, "image", sizes)
    assert state == 4 * held and state < device < 1.5 * state


@pytest.mark.slow
def test_full_size_needs_what_the_paper_used(monkeypatch, tmp_path):
    """MoRE-Brain at full size: the encoder of 293.4 M parameters and its prior do not fit a 4 GB
    card and do fit an 80 GB one.
    """
    config = load_config(
        None,
        {"data.root": str(tmp_path), "run.device": "cpu", "backbone.path": str(tmp_path / "none")},
    )
    sizes = Sizes({"1": VOXELS[1]}, *PUBLISHED.values(), {"L": 768, "bigG": 1280}, ())
    device, _ = training_bytes(config, "image", sizes)
    assert 4e9 < device < 80e9
    for name, small in (
        ("SDXL", plain_unet()),
        ("REFINER", plain_unet()),
        ("SDXL_VAE", small_vae()),
    ):
        monkeypatch.setattr(f"braingen.diagnostics.needs.{name}", dict(small.config))
    assert {need.what.split(" in ")[0] for need in needs_of(config, 10000)} >= {
        "memory to train",
        "memory to generate",
        "memory to train low_level",
        "memory to train encoding",
        "memory to evaluate",
        "disk for training",
    }


def test_tables_that_are_there_need_no_more_disk(tmp_path):
    write_fake_nsd(tmp_path / "NSD", subjects=[1])
    config = load_config(
        None, {"data.root": str(tmp_path / "NSD"), "run.device": "cpu", "precompute.what": "image"}
    )
    before = cache_bytes(config, 100_000)
    folder = Layout.of(tmp_path / "NSD").cache() / "targets"
    folder.mkdir(parents=True)
    np.save(folder / "image_embedding-x.rows.npy", np.ones(250_000))
    assert before == 100_000 * 4 * 128 and 1.9e6 < before - cache_bytes(config, 100_000) < 2.1e6


def test_a_cache_the_disk_cannot_hold_is_refused_before_it_is_begun(tmp_path, monkeypatch):
    write_fake_nsd(tmp_path / "NSD", subjects=[1])
    config = load_config(
        None, {"data.root": str(tmp_path / "NSD"), "run.device": "cpu", "precompute.what": "image"}
    )
    monkeypatch.setattr("braingen.runtime.files.free_bytes", lambda path: 1000)
    with pytest.raises(
        UserError, match=r"The caches need .* GB more in .*free some space, choose fewer"
    ):
        cache_stage.cache(config)
    assert not (Layout.of(tmp_path / "NSD").cache() / "targets").exists()
