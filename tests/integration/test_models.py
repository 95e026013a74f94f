"""Model cards: published parameter counts, part by part, for every variant, and no memory for any
of them.
"""

from __future__ import annotations

import json
from pathlib import Path
import resource

import pytest
import torch

from braingen.cli import main
from braingen.config import load_config
from braingen.diagnostics.summary import Card, cards_of
from braingen.encoders.moe import BrainMoEMulti
from braingen.encoders.parameters import adapting_parameters, count_by_part

ROOT = Path(__file__).parents[2]
KEYS = json.loads((ROOT / "tests/parity/data/checkpoint_keys.json").read_text())


@pytest.fixture(scope="module")
def nsd() -> dict[str, Card]:
    return {
        card.name: card for card in cards_of(load_config("nsd_subj01", {"data.root": "nowhere"}))
    }


@pytest.fixture(scope="module")
def tokens() -> dict[str, Card]:
    """MindEye2's target: 256 tokens of 1664."""
    choice = {
        "data.root": "nowhere",
        "image_output": "tokens",
        "image_projected": "false",
        "low_level": "false",
    }
    return {card.name: card for card in cards_of(load_config("nsd_subj01", choice))}


def test_more_brains_published_layout_part_by_part(nsd: dict[str, Card]) -> None:
    card, published = (
        nsd["BrainMoEMulti, published layout: image 1 x 1280"],
        KEYS["encoder"]["parameters_by_part"],
    )
    assert card.total == KEYS["encoder"]["parameters"] == 553_738_318
    assert card.parts == {
        "subject layer": published["ridge"],
        "routers, first level": published["router_0"],
        "trunk, first level": published["experts_0"],
        "CLIP tokens, first level": published["backbone_proj_0"],
        "projection heads, first level": published["clip_proj_0"],
        "routers, further levels": published["router_list"],
        "trunk, further levels": published["expert_list"],
        "CLIP tokens, further levels": published["b_proj_list"],
        "projection heads, further levels": published["c_proj_list"],
    }
    assert (
        card.parts["projection heads, further levels"] == 367_539_200
        and published["router_0"] + published["router_list"] == 30
    )
    assert card.idle == 67_174_408


def test_mindeye2_at_its_published_sizes(tokens: dict[str, Card]) -> None:
    """2,227,294,844 = 64,409,600 + 1,903,020,028 + 259,865,216; 16 rotary frequencies of the last
    are constants here.
    """
    encoder = tokens["BrainEncoder, published layout, low-level branch: image 256 x 1664"]
    assert encoder.parts["subject layer"] == 64_409_600
    assert encoder.total - encoder.parts["subject layer"] == 1_903_020_028
    assert tokens["DiffusionPrior: image 256 x 1664"].total + 16 == 259_865_216
    assert encoder.total + 259_865_216 == 2_227_294_844


def test_mindeye2_1024_wide_without_low_level_branch() -> None:
    choice = {
        "data.root": "nowhere",
        "image_output": "tokens",
        "image_projected": "false",
        "hidden_dim": "1024",
    }
    cards = {card.name: card for card in cards_of(load_config("nsd_subj01", choice))}
    assert (
        cards["BrainEncoder, published layout: image 256 x 1664"].total + 259_865_216 == 729_327_896
    )


def test_diffusion_routers_at_their_published_sizes(nsd: dict[str, Card]) -> None:
    assert (
        nsd["DiffuseRouter: time attention, space off"].total
        == KEYS["diffusion_router"]["parameters"]
        == 249_600
    )
    both = (
        nsd["DiffuseRouter: time attention, space off"].total
        + nsd["DiffuseRouter: time off, space cross"].total
    )
    assert both == KEYS["diffusion_router_with_space"]["parameters"] == 34_328_320
    own = (
        nsd["DiffuseRouter: time attention, space off"].total
        + nsd["DiffuseRouter: time off, space mix"].total
    )
    assert nsd["DiffuseRouter as configured: time attention, space mix"].total == own


def test_the_papers_size_and_trained_share_are_found_again() -> None:
    """293.4 M with 44.84 % trained: the published layout with a 768-wide target, of which subject
    layer, routers and the first level's trunk are trained, the last by a pattern that misses its
    name. That trunk is idle, so what adapts is 21.9 %.
    """
    with torch.device("meta"):
        model = BrainMoEMulti(
            subjects={1: 15724}, clip_emb_dim=768, routing="expert_choice", trunk="published"
        )
    parts = count_by_part(model)
    trained = (
        parts["subject layer"]
        + parts["routers, first level"]
        + parts["routers, further levels"]
        + parts["trunk, first level"]
    )
    assert sum(parts.values()) == 293_445_710 and trained == 131_584_078
    assert round(100 * trained / 293_445_710, 2) == 44.84
    effective = sum(parameter.numel() for parameter in adapting_parameters(model, [1]).values())
    assert effective == 64_409_630 and round(100 * effective / 293_445_710, 1) == 21.9


def test_the_small_configuration_is_a_fifth_of_the_published_size() -> None:
    cards = cards_of(load_config("nsd_subj01_small", {"data.root": "nowhere"}))
    assert cards[0].name == "BrainMoEMulti, as configured: image 1 x 1280"
    assert cards[0].total == 109_956_096 < 0.2 * 553_738_318


def test_every_variant_is_listed_and_every_parameter_has_a_part(nsd: dict[str, Card]) -> None:
    names = " ".join(nsd)
    for word in ("BrainMoEMulti", "BrainMoE,", "BrainMoEHier", "meta expert", "low-level branch"):
        assert word in names, word
    for word in (
        "text L 1 x 768",
        "text bigG 1 x 1280",
        "text joint 1 x 2048",
        "early fusion",
        "mid fusion",
        "late fusion",
    ):
        assert word in names, word
    for word in (
        "time fixed",
        "time mlp",
        "with context",
        "gate_softmax",
        "gate_sigmoid",
        "gate_gumbel",
        "space weight",
        "space self",
    ):
        assert word in names, word
    assert len(nsd) == len(set(nsd)) and all("other" not in card.parts for card in nsd.values())


def test_the_command_allocates_nothing(capsys) -> None:
    """553,738,318 parameters alone would be 2.2 GB."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert main(["summary", "--config", "nsd_subj01", "--root", "nowhere"]) == 0
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000  # kilobytes
    assert (
        "    553,738,318  BrainMoEMulti, published layout: image 1 x 1280"
        in capsys.readouterr().out
    )


def test_sizes_of_the_simulated_subject_come_from_the_shipped_backbone() -> None:
    config = load_config("simulated", {"data.root": "nowhere", "simulation.num_voxels": "77"})
    cards = {card.name: card for card in cards_of(config)}
    card = cards["BrainMoEMulti, as configured: image 1 x 128"]
    assert card.parts["subject layer"] == 77 * 512 + 512
    assert any(name.startswith("BrainEncoder: text joint 1 x 224") for name in cards)
