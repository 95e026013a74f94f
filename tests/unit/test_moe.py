"""Mixtures of experts: outputs, gradients, precision, published sizes, compiled and
exported forms.
"""

from __future__ import annotations

import copy
from pathlib import Path
import runpy
from typing import Any

from parity.published import to_published
import pytest
import torch
from torch.nn import functional as F

from braingen.compat.keys import load_published, published_keys
from braingen.config.encoders import ENCODER_CONFIGS, BrainMoEMultiConfig, settings_for
from braingen.encoders.base import encoder_class
from braingen.encoders.experts import StackedLinear
from braingen.encoders.feature_router import ExpertChoiceRouter
from braingen.encoders.moe import BrainMoEMulti
from braingen.encoders.parameters import (
    adapting_parameters,
    idle_parameters,
    router_parameters,
    subject_parameters,
    trainable_parameters,
    weight_decay_groups,
)
from braingen.runtime.errors import UserError

SMALL: dict[str, Any] = {
    "subjects": {1: 20, 3: 17},
    "hidden_dim": 32,
    "n_blocks": 2,
    "clip_emb_dim": 8,
}
PUBLISHED = {"routing": "expert_choice", "trunk": "published"}
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "multi": ("BrainMoEMulti", SMALL),
    "multi_tokens": (
        "BrainMoEMulti",
        {**SMALL, "clip_seq_dim": 3, "head": "linear", "level_combine": "mean"},
    ),
    "multi_published": ("BrainMoEMulti", {**SMALL, **PUBLISHED}),
    "multi_published_trunk": ("BrainMoEMulti", {**SMALL, "trunk": "published"}),
    "multi_capacity": (
        "BrainMoEMulti",
        {**SMALL, "num_exp_0": 4, "exp_factor_list": (1, 2), "cap_fac_list": (1, 1.5)},
    ),
    "multi_bottleneck": ("BrainMoEMulti", {**SMALL, "bottleneck_dim": 16, "activation_term": True}),
    "one": ("BrainMoE", {**SMALL, "num_exp": 4}),
    "one_published": (
        "BrainMoE",
        {**SMALL, "num_exp": 4, **PUBLISHED, "meta": True, "clip_seq_dim": 2},
    ),
    "hier": ("BrainMoEHier", {**SMALL, "num_exps": (2, 4, 8), "meta": True}),
    "hier_published": (
        "BrainMoEHier",
        {**SMALL, "num_exps": (2, 4), "capacity_factors": (1, 2), **PUBLISHED, "clip_seq_dim": 2},
    ),
    "dense": ("BrainEncoder", SMALL),
    "dense_text": (
        "BrainEncoder",
        {
            **SMALL,
            "text_output": "joint",
            "text_emb_dims": (3, 5),
            "fusion": "mid",
            "train_pool": True,
            "clip_seq_dim": 2,
        },
    ),
}


def build(name: str, seed: int = 0, **options: Any) -> Any:
    torch.manual_seed(seed)
    kind, settings = VARIANTS[name]
    return encoder_class(kind)(**{**settings, **options})


def voxels(count: int = 20, batch: int = 4) -> torch.Tensor:
    return torch.randn(batch, count, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", VARIANTS)
def test_outputs_have_their_shapes(name: str) -> None:
    options = VARIANTS[name][1]
    out = build(name).eval()(voxels(17), 3, return_experts=True)
    tokens, width = options.get("clip_seq_dim", 1), options["clip_emb_dim"]
    assert out.backbone_BTD.shape == out.clip_BTD.shape == (4, tokens, width)
    assert out.level_backbone_BLTD.shape == out.level_clip_BLTD.shape
    torch.testing.assert_close(out.level_backbone_BLTD.mean(dim=1), out.backbone_BTD)
    for expert_BETD in (*out.expert_backbone, *out.expert_clip):
        assert expert_BETD.shape[0] == 4 and expert_BETD.shape[2:] == (tokens, width)
    assert out.balance_loss.shape == ()


def test_default_has_the_papers_levels() -> None:
    model = build("multi").eval()
    out = model(voxels(), 1, return_experts=True)
    assert [x.shape[1] for x in out.expert_backbone] == [2, 4, 8, 16]
    assert len(out.routing) == 1 + 2 + 4 + 8
    assert [record.chosen_BEK.shape[-1] for record in out.routing] == [16] + [8] * 2 + [4] * 4 + [
        2
    ] * 8
    for level, experts in enumerate(out.expert_backbone):
        torch.testing.assert_close(experts.sum(dim=1), out.level_backbone_BLTD[:, level])
    assert model(voxels(), 1).expert_backbone == ()


def test_default_equals_a_loop_over_experts() -> None:
    """The independent answer: every expert alone, by torch's own functions."""
    model = build("multi", head="linear").eval()
    x_BH = model.subject_layer.linears["1"](voxels())
    given, levels = [x_BH], []
    for level in model.levels:
        outputs = []
        for parent, x_BU in enumerate(given):
            probability_FU = level.router.affinity[parent].softmax(dim=0)
            for f in range(2):
                units, expert = level.router.chosen_PFK[parent, f], 2 * parent + f
                x = x_BU[:, units] * probability_FU[f, units] * 2
                for norm, up, _, _, down in level.trunk.blocks:
                    inner = F.layer_norm(x, (x.shape[1],), norm.weight[expert], norm.bias[expert])
                    inner = F.gelu(F.linear(inner, up.weight[expert], up.bias[expert]))
                    x = x + F.linear(inner, down.weight[expert], down.bias[expert])
                outputs.append(x)
        heads = level.heads.backbone
        levels.append(
            sum(F.linear(x, heads.weight[e], heads.bias[e]) for e, x in enumerate(outputs))
        )
        given = outputs
    torch.testing.assert_close(
        model(voxels(), 1).level_backbone_BLTD[:, :, 0],
        torch.stack(levels, dim=1),
        rtol=1e-4,
        atol=1e-5,
    )


@pytest.mark.parametrize("layout", ["published", "default, projector heads", "default"])
@pytest.mark.slow
def test_the_loop_of_the_benchmark_computes_the_same(layout: str) -> None:
    benchmark = runpy.run_path(str(Path(__file__).parents[2] / "benchmarks" / "batched_experts.py"))
    assert layout in benchmark["LAYOUTS"]
    stacked = build("multi", **benchmark["LAYOUTS"][layout]).eval()
    loop = benchmark["looped"](copy.deepcopy(stacked)).eval()
    assert not any(isinstance(module, StackedLinear) for module in loop.levels.modules())
    for mine, theirs in zip(stacked(voxels(), 1), loop(voxels(), 1)):
        if isinstance(mine, torch.Tensor):
            torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", VARIANTS)
def test_every_trained_parameter_gets_a_gradient_and_no_idle_one_does(name: str) -> None:
    model = build(name)
    trained, idle = trainable_parameters(model), idle_parameters(model)
    assert (
        trained.keys() | idle.keys() == {key for key, _ in model.named_parameters()}
        and not trained.keys() & idle.keys()
    )
    optimizer = torch.optim.AdamW(weight_decay_groups(model, 0.01), lr=1e-3)
    touched: set[str] = set()
    for _ in range(2):
        optimizer.zero_grad()
        outputs = [model(voxels(count), subject) for subject, count in SMALL["subjects"].items()]
        pooled = [out.pooled_BD.pow(2).sum() for out in outputs if out.pooled_BD is not None]
        losses = [
            out.backbone_BTD.pow(2).sum() + out.clip_BTD.pow(2).sum() + out.balance_loss
            for out in outputs
        ]
        sum(losses + pooled).backward()
        touched |= {
            key
            for key, parameter in model.named_parameters()
            if parameter.grad is not None and parameter.grad.abs().sum() > 0
        }
        optimizer.step()
    assert touched == trained.keys()


@pytest.mark.parametrize("name", ["multi", "multi_published", "hier", "one"])
def test_balance_loss_has_a_gradient_for_every_level(name: str) -> None:
    model = build(name)
    model(voxels(), 1).balance_loss.backward()
    routers = router_parameters(model)
    assert routers and all(
        parameter.grad is not None and parameter.grad.abs().sum() > 0
        for parameter in routers.values()
    )


@pytest.mark.parametrize("name", VARIANTS)
def test_saved_and_loaded_is_the_same(name: str, tmp_path: Path) -> None:
    model = build(name).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    for _ in range(2):  # so that units have moved
        model(voxels(), 1).backbone_BTD.pow(2).sum().backward()
        optimizer.step()
    model.eval().save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path).eval()
    for key, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[key], value)
    torch.testing.assert_close(again(voxels(), 1).clip_BTD, model(voxels(), 1).clip_BTD)


@pytest.mark.parametrize(
    "name",
    [name for name, (_, options) in VARIANTS.items() if options.get("routing") == "expert_choice"],
)
def test_published_names_lead_there_and_back(name: str) -> None:
    model, other = build(name).eval(), build(name, seed=1).eval()
    places = published_keys(model)
    assert {ours for ours, _ in places.values()} == {key for key, _ in model.named_parameters()}
    assert load_published(other, to_published(model)).is_complete
    torch.testing.assert_close(other(voxels(), 1).clip_BTD, model(voxels(), 1).clip_BTD)


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize(("dtype", "bound"), [(torch.bfloat16, 0.1), (torch.float16, 0.02)])
def test_half_precision_agrees_with_float32(name: str, dtype: torch.dtype, bound: float) -> None:
    """Root mean square of the difference, as a share of the output's, in trials in which the same
    units are chosen.

    Affinity routing chooses the same in all; the published router sorts by activation, and rounding
    moves units on the border.
    """
    model, other = build(name).eval(), build(name).eval()
    for encoder in (model, other):
        for router in encoder.modules():
            if isinstance(
                router, ExpertChoiceRouter
            ):  # at the initial 1e-4 all units are on the border
                router.weight.data.normal_(
                    generator=torch.Generator().manual_seed(router.weight.numel())
                )
    x_BV = voxels(batch=64)
    exact, rounded = model(x_BV, 1), other.to(dtype)(x_BV.to(dtype), 1)
    same_B = torch.ones(64, dtype=torch.bool)
    for one, two in zip(exact.routing, rounded.routing):
        same_B &= (one.chosen_BEK == two.chosen_BEK).flatten(1).all(dim=1).expand(64)
    by_value = VARIANTS[name][1].get("routing") == "expert_choice"
    assert same_B.sum() >= 4 if by_value else same_B.all()
    for ours, theirs in (
        (rounded.backbone_BTD, exact.backbone_BTD),
        (rounded.clip_BTD, exact.clip_BTD),
    ):
        gap, size = (ours.float() - theirs)[same_B], theirs[same_B]
        assert gap.pow(2).mean().sqrt() < bound * size.pow(2).mean().sqrt()


def test_training_makes_no_difference_to_which_units_an_expert_reads_in_evaluation() -> None:
    model = build("multi").eval()
    first, second = model(voxels(), 1), model(voxels() + 1, 1)
    for one, other in zip(first.routing, second.routing):
        assert torch.equal(one.chosen_BEK, other.chosen_BEK)


def test_published_gradients_in_float32_and_float64() -> None:
    """The recorded ones hold the published code's rounding noise (tests/parity/declined.json); ours
    must not.
    """
    model = build("multi_published").eval()
    # at the initial 1e-4, probabilities are so close that rounding decides which units are chosen
    for level in model.levels:
        torch.nn.init.normal_(level.router.weight)
    gradients = []
    for dtype in (torch.float64, torch.float32):
        model.zero_grad()
        model.to(dtype)
        out = model(voxels().to(dtype), 1)
        (out.backbone_BTD.sin().sum() + out.clip_BTD.cos().sum()).backward()
        gradients.append(
            {key: p.grad.double() for key, p in model.named_parameters() if p.grad is not None}
        )
    for key, exact in gradients[0].items():
        torch.testing.assert_close(
            gradients[1][key],
            exact,
            rtol=1e-3,
            atol=1e-5,
            msg=lambda text, key=key: f"{key}: {text}",
        )


@pytest.mark.parametrize(
    "name", [name for name, (_, options) in VARIANTS.items() if "routing" not in options]
)
def test_every_unit_is_read_exactly_once_per_level(name: str) -> None:
    """With capacity 1 and experts that divide the units; every parent's units are shared out among
    its own experts.
    """
    options = {"cap_fac_list": None} if name == "multi_capacity" else {}
    out = build(name, **options).eval()(voxels(), 1)
    assert out.routing or name.startswith("dense")
    for record in out.routing:
        units = record.probabilities_BEH.shape[2]
        for (
            chosen_EK
        ) in record.chosen_BEK:  # one for all trials, unless an activation term makes them differ
            assert torch.equal(chosen_EK.flatten().sort().values, torch.arange(units))


GRAPHS: dict[str, dict[str, Any]] = {
    "multi": {"exp_factor_list": (2,), "n_blocks": 1},
    "multi_published": {"exp_factor_list": (2,), "n_blocks": 1},
    "one": {"n_blocks": 1, "meta": True},
    "hier": {"num_exps": (2, 4), "n_blocks": 1},
    "dense": {"n_blocks": 1},
    "dense_text": {"n_blocks": 1},
}
"""Every encoder, small: tracing takes longer than computing."""


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize("name", GRAPHS)
def test_compiled_whole(name: str) -> None:
    """One graph without breaks."""
    model = build(name, **GRAPHS[name]).eval()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(voxels(), 1).clip_BTD, model(voxels(), 1).clip_BTD)


@pytest.mark.slow
@pytest.mark.parametrize("name", GRAPHS)
def test_exported(name: str) -> None:
    """For any batch size."""
    model = build(name, **GRAPHS[name]).eval()
    sizes = {"voxels_BV": {0: torch.export.Dim.AUTO}, "subject": None}
    program = torch.export.export(model, (voxels(),), {"subject": 1}, dynamic_shapes=sizes)
    many = voxels(batch=7)
    torch.testing.assert_close(program.module()(many, subject=1).clip_BTD, model(many, 1).clip_BTD)


@pytest.mark.long
@pytest.mark.slow
def test_compiled_training_step_moves_units_as_the_plain_one_does() -> None:
    plain, other = (build("multi", **GRAPHS["multi"], dropout=0.0).train() for _ in range(2))
    compiled = torch.compile(other, backend="aot_eager")
    for model in (plain, other):
        with torch.no_grad():
            model.levels[0].router.affinity.neg_()
    plain(voxels(), 1).backbone_BTD.pow(2).sum().backward()
    compiled(voxels(), 1).backbone_BTD.pow(2).sum().backward()
    assert torch.equal(plain.levels[0].router.chosen_PFK, other.levels[0].router.chosen_PFK)
    for ours, theirs in zip(other.parameters(), plain.parameters()):
        if theirs.grad is not None:
            torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-5)


def test_what_a_new_subject_trains() -> None:
    model = build("multi")
    names = adapting_parameters(model, [3]).keys()
    assert names == {"subject_layer.linears.3.weight", "subject_layer.linears.3.bias"} | {
        f"levels.{i}.router.affinity" for i in range(4)
    }
    assert len(subject_parameters(model)) == 4


def test_only_weights_of_linear_maps_decay() -> None:
    model = build("multi")
    decayed, plain = (group["params"] for group in weight_decay_groups(model, 0.01))
    names = {id(parameter): key for key, parameter in model.named_parameters()}
    assert len(decayed) + len(plain) == len(names)
    norms = tuple(f".{place}.weight" for place in (0, 3, 6))
    linear = {
        key
        for key in names.values()
        if key.endswith("weight") and ("linears" in key or not key.endswith(norms))
    }
    assert {names[id(p)] for p in decayed} == linear


def test_settings_of_a_config_fit_every_encoder() -> None:
    given = BrainMoEMultiConfig(hidden_dim=32, exp_factor_list=(2, 2), n_blocks=1)
    for name in ENCODER_CONFIGS:
        settings = settings_for(name, given)
        assert (settings.model, settings.hidden_dim) == (name, 32)
        encoder_class(name)(subjects={1: 5}, clip_emb_dim=4, clip_seq_dim=1, **settings.arguments())
    assert settings_for("BrainMoEHier", given).arguments()["num_exps"] == [2, 4, 8]
    assert settings_for("BrainMoE", given).arguments()["num_exp"] == 8


def test_one_more_brain_encoder_size() -> None:
    """MoRE-Brain's published encoder: 553,738,318 parameters, 67.2 M of them idle."""
    with torch.device("meta"):
        model = BrainMoEMulti(subjects={1: 15724}, **PUBLISHED)
    sizes = {key: parameter.numel() for key, parameter in model.named_parameters()}
    assert sum(sizes.values()) == 553_738_318
    assert sum(sizes[key] for key in idle_parameters(model)) == 67_174_408
    assert sum(parameter.numel() for parameter in router_parameters(model).values()) == 30


def test_impossible_options_are_refused() -> None:
    for options, message in (
        ({"routing": "random"}, "routing=random"),
        ({"level_combine": "max"}, "level_combine=max"),
        ({"cap_fac_list": (1,)}, "cap_fac_list"),
        ({"hidden_dim": 12}, "cannot be split among"),
    ):
        with pytest.raises(UserError, match=message):
            build("multi", **options)
