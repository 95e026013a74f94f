"""Every encoder and every kind of target is reached from the configuration and trains: flags in, a
embedding decoder of what was asked out.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from braingen.cli import main
from braingen.config import load_config
from braingen.config.overrides import parse_overrides
from braingen.data.batches import RepeatBatches
from braingen.data.betas import Betas
from braingen.data.trials import group_repeats, test_trials
from braingen.encoders.embedding_decoder import EmbeddingDecoder
from braingen.runtime.data_layout import Layout
from braingen.runtime.paths import EMBEDDING_DECODER

ROOT = Path(__file__).parents[2]
SIZES = [
    "--hidden_dim",
    "32",
    "--n_blocks",
    "1",
    "--num_epochs",
    "1",
    "--batch_size",
    "40",
    "prior.depth=1",
    "run.tracker=none",
]
UNDRAWN = ["backbone.ip_adapter=none"]  # which takes one token
PUBLISHED = ["--routing", "expert_choice", "--trunk", "published", "--head", "projector"]
CASES = {
    "published": (
        "image",
        [
            *PUBLISHED,
            "--num_exp_0",
            "2",
            "--exp_factor_list",
            "2,2",
            "--capacity_factor_0",
            "1",
            "--b_size",
            "-1",
        ],
    ),
    "bottleneck": (
        "image",
        [
            "--b_size",
            "16",
            "--exp_factor_list",
            "2",
            "--cap_fac_list",
            "1.5",
            "--level_combine",
            "mean",
        ],
    ),
    "one level": (
        "image",
        [
            "--model",
            "BrainMoE",
            "--num_exp",
            "4",
            "--meta",
            "--no-use_prior",
            "prior.depth=default",
        ],
    ),
    "side by side": (
        "image",
        [
            "--model",
            "BrainMoEHier",
            "--num_exps",
            "2,4",
            "--capacity_factors",
            "1,2",
            "--meta",
            "--activation_term",
        ],
    ),
    "dense": (
        "image",
        ["--model", "BrainEncoder", "--text_output", "joint", "--fusion", "late", "--train_pool"],
    ),  # of its text side
    "tokens": (
        "image",
        ["--image_output", "tokens", "--no-image_projected", "--exp_factor_list", "2", *UNDRAWN],
    ),
    "pooled and tokens, dense": (
        "image",
        ["--image_output", "both", "--model", "BrainEncoder", "--trunk", "published", *UNDRAWN],
    ),
    "joint, fused": (
        "text",
        ["--text_output", "joint", "--model", "BrainEncoder", "--fusion", "mid", "--low_level"],
    ),
    "first text encoder": (
        "text",
        ["--text_output", "L", "--model", "BrainEncoder", "--trunk", "published"],
    ),
    "all tokens": (
        "text",
        ["--text_tokens", "all", "--exp_factor_list", "2", "--no-use_prior", "prior.depth=default"],
    ),
}
TOKENS = {"tokens", "pooled and tokens, dense", "all tokens"}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("settings") / "data"
    sizes = [
        "simulation.num_sessions=1",
        "simulation.trials_per_session=60",
        "simulation.num_voxels=60",
        "--num_test_images",
        "6",
    ]
    assert main(["simulate", "--root", str(root), *sizes]) == 0
    return root


@pytest.mark.parametrize("name", CASES)
def test_flags_make_the_encoder_they_say(name: str, data: Path, tmp_path: Path) -> None:
    modality, flags = CASES[name]
    words = [
        "--config",
        "simulated",
        "--root",
        str(data),
        "--folder",
        str(tmp_path),
        *SIZES,
        *flags,
    ]
    config = load_config(*parse_overrides(words))
    assert main(["train", modality, *words]) == 0
    embedding_decoder = EmbeddingDecoder.from_pretrained(
        tmp_path / modality / EMBEDDING_DECODER
    ).eval()
    encoder = embedding_decoder.encoder
    assert (
        type(encoder).__name__ == config.encoder.model
        and (embedding_decoder.prior is not None) == config.prior.use_prior
    )
    for field in ("routing", "trunk", "head", "level_combine", "meta", "bottleneck_dim"):
        if field in encoder.config:
            assert encoder.config[field] == getattr(config.encoder, field), field
    layout = Layout.of(data)
    batch = next(
        iter(RepeatBatches(group_repeats(test_trials(layout, 1)), Betas.of(layout, 1), 1, 2))
    )
    with torch.no_grad():
        out = embedding_decoder(batch.voxels_BRV[:, 0], 1)
        embedding_BTD = embedding_decoder.embedding(out.backbone_BTD)
    assert (
        embedding_BTD.shape
        == out.backbone_BTD.shape
        == out.clip_BTD.shape
        == (2, *embedding_decoder.mean_TD.shape)
    )
    assert (embedding_BTD.shape[1] > 1) == (name in TOKENS) and embedding_BTD.isfinite().all()
    if modality == "text":
        widths = {"L": 96, "bigG": 128, "joint": 224}
        assert embedding_BTD.shape[2] == widths[config.backbone.text_output]


def test_parts_without_a_target_are_refused_before_anything_is_written(
    data: Path, tmp_path: Path, capsys
) -> None:
    words = [
        "--root",
        str(data),
        "--folder",
        str(tmp_path / "run"),
        *SIZES,
        "--model",
        "BrainEncoder",
        "--blurry_recon",
    ]
    assert main(["train", "image", *words]) == 2
    assert "encoder.low_level=true has no target in stage 1" in capsys.readouterr().err
    assert not list((tmp_path / "run").rglob("*.safetensors"))
