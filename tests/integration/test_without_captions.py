"""Scans of one's own without captions: the image path trains, generates, scores and reports."""

from __future__ import annotations

import json
from pathlib import Path
import shutil

import pytest
from safetensors.torch import load_file
import torch
from unit.fake_scans import write_fake_scans

from braingen.cli import main
from braingen.config import load_config
from braingen.config.overrides import parse_overrides
from braingen.data.betas import Betas
from braingen.demo.flow import save_decoder
from braingen.generation.pipeline import BrainDecoder
from braingen.runtime.data_layout import Layout

SMALL = ["encoder.hidden_dim=16", "encoder.n_blocks=1", "prior.depth=1", "training.num_epochs=1"]
SMALL += [
    "generation.steps=2",
    "evaluation.bootstrap=50",
    "evaluation.retrieval_draws=3",
    "refinement.steps=4",
]
SMALL += ["finetune.max_train_steps=1", "finetune.train_batch_size=2", "--validation_images", "2"]
SMALL += ["finetune.gradient_accumulation_steps=1", "data.holdout_share=0.2"]
SMALL += ["--device", "cpu", "--tracker", "none"]


def remove_captions(scans: Path) -> None:
    for path in scans.rglob("captions.json"):
        path.unlink()


@pytest.fixture(scope="module")
def words(tmp_path_factory) -> list[str]:
    """What is typed after every command; an image encoder has been trained."""
    folder = tmp_path_factory.mktemp("without")
    scans = write_fake_scans(folder / "scans", ("01",)).root
    remove_captions(scans)
    where = ["--data_path", str(folder / "data"), "--folder", str(folder / "run")]
    assert main(["prepare", "--scans", str(scans), "--data_path", str(folder / "data")]) == 0
    assert not Layout.of(folder / "data").captions().exists()
    words = [*where, *SMALL]
    assert main(["doctor", *words]) == 0
    assert main(["precompute", *words]) == 0
    assert main(["train", "image", *words]) == 0
    return words


def run_of(words: list[str]) -> Path:
    return Path(words[3])


def test_text_training_says_how_to_get_captions(words, capsys):
    assert main(["train", "text", *words]) == 2
    assert "captions.json" in capsys.readouterr().err
    assert main(["precompute", *words, "--what", "text"]) == 2
    assert "captions.json" in capsys.readouterr().err


def test_the_image_path_goes_all_the_way(words, capsys):
    for command in ("finetune", "reconstruct", "evaluate", "report"):
        assert main([command, *words]) == 0, command
    for source in ("--random_fmri", "--oracle"):
        assert main(["reconstruct", *words, source]) == 0
    assert main(["evaluate", *words]) == 0 and main(["report", *words]) == 0
    folder = run_of(words) / "reconstructions" / "brain"
    assert "captions" not in json.loads((folder / "index.json").read_text(encoding="utf-8"))
    read = load_file(folder / "embeddings.safetensors")
    assert "image" in read and not [name for name in read if name.startswith("text")]
    scores = json.loads((run_of(words) / "scores.json").read_text(encoding="utf-8"))
    assert {"pixcorr", "clip_cos"} <= set(scores)
    assert not {"meteor", "rouge_l", "clip_text"} & set(scores)
    assert (run_of(words) / "report.html").exists()


def test_refining_needs_the_image_where_there_is_no_text(words, capsys):
    assert main(["reconstruct", *words]) == 0
    assert main(["refine", *words]) == 2
    assert "refinement.use_image=true" in capsys.readouterr().err
    shutil.rmtree(run_of(words) / "reconstructions" / "brain_refined", ignore_errors=True)
    assert main(["refine", *words, "refinement.use_image=true"]) == 0


def test_a_decoder_without_text_is_saved_and_loaded(words):
    config = load_config(*parse_overrides(words))
    assert main(["finetune", *words]) == 0
    decoder = BrainDecoder.from_pretrained(save_decoder(config))
    decoder.set_progress_bar_config(disable=True)
    assert decoder.brain_text is None
    voxels = torch.from_numpy(Betas.of(Layout.of(config.data.root), 1).rows([0, 1]))
    found = decoder(voxels, subject=1, num_inference_steps=2)
    assert len(found.images) == 2 and found.decoded.text_BTD is None
    assert found.decoded.image_BTD.shape[0] == 2
