"""The dense encoder: outputs, options, published sizes, the low-level branch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from parity.published import to_published
import pytest
import torch
from torch.nn import functional as F
from unit.published_models import Text, lively

from braingen.compat.encoder_settings import encoder_settings
from braingen.compat.keys import load_published, published_keys
from braingen.encoders.dense import BrainEncoder, ImageBackbone
from braingen.encoders.parameters import idle_parameters, trainable_parameters
from braingen.runtime.errors import UserError

SMALL: dict[str, Any] = {
    "subjects": {1: 20, 2: 17},
    "hidden_dim": 16,
    "n_blocks": 2,
    "clip_emb_dim": 8,
}
TEXT: dict[str, Any] = {**SMALL, "text_emb_dims": (6, 10)}
VARIANTS: dict[str, dict[str, Any]] = {
    "image": SMALL,
    "tokens": {**SMALL, "clip_seq_dim": 3},
    "published": {**SMALL, "trunk": "published", "head": "linear"},
    "low_level": {**SMALL, "trunk": "published", "low_level": True, "clip_seq_dim": 2},
    "interm": {**SMALL, "interm_out": True},
    "bottleneck": {**SMALL, "bottleneck_dim": 8},
    "L": {**TEXT, "text_output": "L", "clip_emb_dim": 6},
    "bigG_pool": {
        **TEXT,
        "text_output": "bigG",
        "clip_emb_dim": 10,
        "train_pool": True,
        "clip_seq_dim": 3,
    },
    **{
        f"joint_{how}": {**TEXT, "text_output": "joint", "clip_emb_dim": 16, "fusion": how}
        for how in ("none", "early", "mid", "late")
    },
    "joint_published": {
        **TEXT,
        "text_output": "joint",
        "clip_emb_dim": 16,
        "fusion": "late",
        "trunk": "published",
        "train_pool": True,
    },
    **{
        f"joint_published_{how}": {
            **TEXT,
            "text_output": "joint",
            "clip_emb_dim": 16,
            "fusion": how,
            "trunk": "published",
            "n_blocks": 3,
        }
        for how in ("early", "mid")
    },
}


def objective(out: Any) -> torch.Tensor:
    """A number that depends on everything the encoder hands out."""
    parts = [out.backbone_BTD, out.clip_BTD, *out.intermediate_clip, *out.low_level, out.pooled_BD]
    return torch.stack([part.float().pow(2).mean() for part in parts if part is not None]).sum()


@pytest.mark.parametrize("name", VARIANTS)
def test_outputs_have_their_shapes(name: str) -> None:
    options = VARIANTS[name]
    out = BrainEncoder(**options).eval()(torch.randn(3, 17), 2)
    tokens, width = options.get("clip_seq_dim", 1), options["clip_emb_dim"]
    assert out.backbone_BTD.shape == out.clip_BTD.shape == (3, tokens, width)
    assert out.level_backbone_BLTD.shape == (3, 1, tokens, width)
    assert out.routing == out.expert_backbone == () and out.balance_loss == 0
    assert len(out.intermediate_clip) == int(options.get("interm_out", False))
    assert (out.pooled_BD is not None) == options.get("train_pool", False)


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.slow
def test_every_trained_parameter_gets_a_gradient_and_no_idle_one_does(name: str) -> None:
    torch.manual_seed(0)
    model = BrainEncoder(**VARIANTS[name])
    trained, idle = trainable_parameters(model), idle_parameters(model)
    assert (
        trained.keys() | idle.keys() == {key for key, _ in model.named_parameters()}
        and not trained.keys() & idle.keys()
    )
    optimizer = torch.optim.AdamW(trained.values(), lr=1e-3)
    touched: set[str] = set()
    for _ in range(2):
        optimizer.zero_grad()
        torch.stack(
            [
                objective(model(torch.randn(4, count), subject))
                for subject, count in SMALL["subjects"].items()
            ]
        ).sum().backward()
        touched |= {
            key
            for key, parameter in model.named_parameters()
            if parameter.grad is not None and parameter.grad.abs().sum() > 0
        }
        optimizer.step()
    assert touched == trained.keys()


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.slow
def test_saved_and_loaded_is_the_same(name: str, tmp_path: Path) -> None:
    model, voxels_BV = BrainEncoder(**VARIANTS[name]).eval(), torch.randn(2, 20)
    model.save_pretrained(tmp_path)
    again = BrainEncoder.from_pretrained(tmp_path).eval()
    for key, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[key], value)
    torch.testing.assert_close(again(voxels_BV, 1).clip_BTD, model(voxels_BV, 1).clip_BTD)


@pytest.mark.parametrize("name", VARIANTS)
def test_published_names_lead_there_and_back(name: str) -> None:
    model, other = BrainEncoder(**VARIANTS[name]).eval(), BrainEncoder(**VARIANTS[name]).eval()
    places = published_keys(model)
    assert {ours for ours, _ in places.values()} == {key for key, _ in model.named_parameters()}
    assert load_published(other, to_published(model)).is_complete
    voxels_BV = torch.randn(2, 20)
    torch.testing.assert_close(other(voxels_BV, 1).clip_BTD, model(voxels_BV, 1).clip_BTD)


@pytest.mark.parametrize("blocks", [1, 2, 3, 5])
@pytest.mark.parametrize("fusion", ["none", "early", "mid", "late"])
@torch.no_grad()
@pytest.mark.slow
def test_published_fusion_with_any_number_of_blocks(fusion: str, blocks: int) -> None:
    """Against the plainly written text trunks; the settings are read off the weights alone."""
    widths = {"L": 6, "G": 10}
    plain = lively(Text(8, blocks, 2, widths, fusion, pool=True), seed=blocks)
    state = {f"backbone.{key}": value for key, value in plain.state_dict().items()}
    state |= {"ridge.linears.0.weight": torch.eye(8), "ridge.linears.0.bias": torch.zeros(8)}
    settings = encoder_settings(state, subjects=[1])
    wanted = (
        "early" if fusion == "mid" and blocks == 1 else fusion
    )  # one map after the only block: the same thing
    assert settings.arguments["fusion"] == wanted and settings.arguments["n_blocks"] == blocks
    model = BrainEncoder(**settings.arguments)
    assert load_published(model, state).is_complete
    x = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))
    found, exact = model.eval()(x, 1), plain(x[:, None])
    for ours, name in (
        (found.backbone_BTD, "backbone"),
        (found.clip_BTD, "clip"),
        (found.pooled_BD, "pooled"),
    ):
        torch.testing.assert_close(ours, exact[name], rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_every_fusion_map_of_a_working_trunk_has_an_effect_and_of_a_published_one_the_last() -> (
    None
):
    for trunk, acting in (("residual", [0, 1, 2]), ("published", [2])):
        options = {
            **TEXT,
            "text_output": "joint",
            "clip_emb_dim": 16,
            "n_blocks": 3,
            "fusion": "early",
            "trunk": trunk,
        }
        model, x = (
            lively(BrainEncoder(**options), seed=1),
            torch.randn(2, 20, generator=torch.Generator().manual_seed(0)),
        )
        before, felt = model(x, 1).backbone_BTD, []
        for place, linear in enumerate(model.backbone.fusion_linears):
            kept = linear.weight.clone()
            linear.weight.mul_(1.5)
            felt += [place] if (model(x, 1).backbone_BTD - before).abs().max() > 1e-3 else []
            linear.weight.copy_(kept)
        assert felt == acting


def test_what_does_not_fit_is_reported() -> None:
    model = BrainEncoder(**SMALL)
    state = to_published(model)
    del state["ridge.linears.0.bias"]
    state |= {"backbone.backbone_linear.bias": torch.zeros(3), "something.else": torch.zeros(1)}
    report = load_published(model, state)
    assert report.missing == ["ridge.linears.0.bias"] and report.unexpected == ["something.else"]
    assert report.other_shape == ["backbone.backbone_linear.bias: (3,) instead of (8,)"]


def test_the_published_dense_encoder_is_linear_up_to_its_head_and_ours_is_not() -> None:
    """docs/deviations.md, row 1.7."""
    for trunk, is_linear in (("published", True), ("residual", False)):
        model = BrainEncoder(**{**SMALL, "trunk": trunk}).eval()
        a, b, zero = torch.randn(1, 20), torch.randn(1, 20), torch.zeros(1, 20)
        at = {
            name: model(x, 1).backbone_BTD
            for name, x in {"a": a, "b": b, "sum": a + b, "zero": zero}.items()
        }
        gap = (at["sum"] + at["zero"] - at["a"] - at["b"]).abs().max()
        assert (gap < 1e-5) == is_linear


def test_low_level_branch_has_mindeye2_shapes() -> None:
    latents, features = (
        BrainEncoder(**VARIANTS["low_level"]).eval()(torch.randn(2, 20), 1).low_level
    )
    assert latents.shape == (2, 4, 28, 28) and features.shape == (2, 49, 512)


def test_working_trunk_against_torch() -> None:
    """The whole dense encoder by torch's own functions."""
    model, voxels_BV = BrainEncoder(**{**SMALL, "head": "linear"}).eval(), torch.randn(2, 20)
    x = model.subject_layer.linears["1"](voxels_BV)
    for norm, up, _, _, down in model.backbone.trunk.blocks:
        inner = F.gelu(
            F.linear(F.layer_norm(x, (16,), norm.weight[0], norm.bias[0]), up.weight[0], up.bias[0])
        )
        x = x + F.linear(inner, down.weight[0], down.bias[0])
    heads = model.backbone.heads
    backbone = F.linear(x, heads.backbone.weight[0], heads.backbone.bias[0])
    out = model(voxels_BV, 1)
    torch.testing.assert_close(out.backbone_BTD[:, 0], backbone)
    torch.testing.assert_close(
        out.clip_BTD[:, 0], F.linear(backbone, heads.clip.weight[0], heads.clip.bias[0])
    )


def test_published_sizes_on_the_meta_device() -> None:
    """MindEye2 subject 1: 2,227,294,844 parameters with the prior's 259,865,216; 1024 wide without
    low-level branch 729,327,896.
    """
    prior, tokens = 259_865_216, {"clip_emb_dim": 1664, "clip_seq_dim": 256, "trunk": "published"}
    with torch.device("meta"):
        large = BrainEncoder(subjects={1: 15724}, hidden_dim=4096, low_level=True, **tokens)
        small = BrainEncoder(subjects={1: 15724}, hidden_dim=1024, **tokens)
    sizes = [
        sum(p.numel() for p in part.parameters())
        for part in (large.subject_layer, large.backbone, small)
    ]
    assert sizes[:2] == [64_409_600, 1_903_020_028]
    assert sum(sizes[:2]) + prior == 2_227_294_844
    assert sizes[2] + prior == 729_327_896


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"text_output": "joint", "clip_emb_dim": 5}, "clip_emb_dim=5.*2048"),
        ({"text_output": "both"}, "text_output=both"),
        ({"text_output": "L", "clip_emb_dim": 768, "fusion": "late"}, "fusion=late"),
        ({"text_output": "L", "clip_emb_dim": 768, "train_pool": True}, "train_pool"),
        ({"text_output": "L", "clip_emb_dim": 768, "low_level": True}, "low_level"),
    ],
)
def test_impossible_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        BrainEncoder(**{**SMALL, **options})


def test_several_tokens_inside_need_the_published_trunk() -> None:
    assert ImageBackbone(16, 2, 3, 8, trunk="published", seq_len=2).eval()(
        torch.randn(2, 2, 16)
    ).clip_BTD.shape == (2, 3, 8)
    with pytest.raises(UserError, match="trunk=residual with 2 tokens"):
        ImageBackbone(16, 2, 3, 8, seq_len=2)
