"""Laws of maps: complete, zero at the baseline, blind where the model is blind; and methods against
answers that are known.
"""

from __future__ import annotations

import errno
import tempfile
import tracemalloc

from captum.attr import GradientShap
import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from braingen.data.large_files import scratch_array
from braingen.encoders.embedding_decoder import EmbeddingDecoder
from braingen.interpret.ablation import (
    AblationScores,
    WithoutVoxels,
    ablate_part,
    ablate_voxels,
    ablated,
    ablation_table,
    scores_of,
)
from braingen.interpret.agreement import area_under_roc, group_agreement
from braingen.interpret.attribution import Explainer, PathDraws, Query, completeness, gradient_shap
from braingen.interpret.components import components_of, expression_table, related_classes
from braingen.interpret.experts import (
    ExpertOutputs,
    all_expert_outputs,
    evidence,
    expert_outputs_of,
    profile,
    voxel_selectivity,
)
from braingen.interpret.maps import MapFile, mean_maps, membership, root_mean_square
from braingen.interpret.patterns import activation_patterns
from braingen.interpret.readout import (
    WHOLE,
    DecoderPart,
    Readout,
    class_directions,
    decode,
    experts_per_level,
    parts_of,
)
from braingen.interpret.saliency import (
    ReceptiveFields,
    beyond_usual,
    gaussians,
    inside_outside,
    pointing_game,
    saliency,
)
from braingen.runtime.errors import UserError

pytestmark = pytest.mark.slow  # left out of `make quick`

VOXELS, WIDTH = 30, 8
METHODS = ("integrated_gradients", "gradient_shap")


class Linear(nn.Module):
    """Reads a direction linearly out of voxels."""

    def __init__(self, blind: slice = slice(0, 0)) -> None:
        super().__init__()
        weight = torch.randn(WIDTH, VOXELS, generator=torch.Generator().manual_seed(3))
        weight[:, blind] = 0
        self.weight_FV = nn.Parameter(weight, requires_grad=False)

    def forward(self, voxels_BV, direction_BF):
        return (voxels_BV @ self.weight_FV.T * direction_BF).sum(1)


class Curved(Linear):
    """The same, bent."""

    def forward(self, voxels_BV, direction_BF):
        return (torch.tanh(voxels_BV @ self.weight_FV.T / 4) * direction_BF).sum(1)


def query(count: int = 5, seed: int = 0, voxels: int = VOXELS) -> Query:
    generator = torch.Generator().manual_seed(seed)
    direction = nn.functional.normalize(torch.randn(count, WIDTH, generator=generator), dim=1)
    return Query(np.arange(count), torch.randn(count, voxels, generator=generator), direction)


def explainer(model: nn.Module, method: str, baselines: int = 6, **options) -> Explainer:
    baseline = (
        torch.randn(baselines, VOXELS, generator=torch.Generator().manual_seed(7))
        if method == "gradient_shap"
        else None
    )
    return Explainer(model, method, baseline, **options)


def embedding_decoder(seed: int = 0, **options) -> EmbeddingDecoder:
    torch.manual_seed(seed)
    encoder = {
        "subjects": {"1": VOXELS},
        "hidden_dim": 32,
        "n_blocks": 1,
        "clip_seq_dim": 1,
        "clip_emb_dim": WIDTH,
        "head": "linear",
    }
    kind = options.pop("encoder_class", "BrainMoEMulti")
    prior = {"dim": WIDTH, "num_tokens": 1, "depth": 1, "dim_head": 8}
    return EmbeddingDecoder(kind, {**encoder, **options}, prior).eval()


# --- attributions ---------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_maps_of_a_linear_model_are_complete_and_what_they_must_be(method):
    model, asked = Linear(), query()
    ask = explainer(model, method, steps=8)
    found = ask(asked)
    assert found.error_B.abs().max() < 1e-4
    if method == "integrated_gradients":
        torch.testing.assert_close(
            found.map_BV,
            asked.voxels_BV * (asked.direction_BF @ model.weight_FV),
            atol=1e-5,
            rtol=1e-4,
        )
        torch.testing.assert_close(found.map_BV.sum(1), found.value_B, atol=1e-4, rtol=1e-4)


def test_gradient_shap_goes_to_the_linear_answer_against_the_mean_of_its_baselines():
    model, asked = Linear(), query()
    ask = explainer(model, "gradient_shap", steps=4000)
    expected = (asked.voxels_BV - ask.baseline_SV.mean(0)) * (asked.direction_BF @ model.weight_FV)
    assert (ask(asked).map_BV - expected).abs().max() < 0.25 * expected.abs().max()
    torch.testing.assert_close(ask(asked).map_BV, ask(asked).map_BV, rtol=0, atol=0)  # seeded


def test_gradient_shap_is_captums_at_the_same_draws():
    model, asked, draws = Curved(), query(3), 10
    baseline = torch.randn(6, VOXELS, generator=torch.Generator().manual_seed(7))
    np.random.seed(
        5
    )  # captum draws from the global generator: baselines first, then places on the way
    told, error = GradientShap(model).attribute(
        asked.voxels_BV,
        baseline,
        n_samples=draws,
        additional_forward_args=(asked.direction_BF,),
        return_convergence_delta=True,
    )
    np.random.seed(5)
    chosen = np.random.choice(6, 3 * draws).reshape(3, draws)
    map_BV, start_B = gradient_shap(
        model,
        asked,
        baseline,
        PathDraws(chosen, np.random.uniform(size=3 * draws).reshape(3, draws)),
        chunk=7,
    )
    torch.testing.assert_close(map_BV, told, atol=1e-5, rtol=1e-4)
    value_B = model(asked.voxels_BV, asked.direction_BF)
    torch.testing.assert_close(
        map_BV.sum(1) - (value_B - start_B), error.view(3, draws).mean(1), atol=1e-5, rtol=1e-4
    )


def test_gradient_shap_depends_neither_on_pieces_nor_on_which_images_come_together():
    asked = query(5)
    whole = explainer(Curved(), "gradient_shap", steps=20)(asked)
    for chunk in (1, 13, 40):
        found = explainer(Curved(), "gradient_shap", steps=20, chunk=chunk)(asked)
        for one, other in zip(found, whole):
            torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)
    ask = explainer(Curved(), "gradient_shap", steps=20, chunk=13)
    for rows in ([3], [4, 1], [0, 2, 3]):
        found = ask(Query(asked.image_B[rows], asked.voxels_BV[rows], asked.direction_BF[rows]))
        torch.testing.assert_close(found.map_BV, whole.map_BV[rows], atol=1e-5, rtol=1e-5)
    other = explainer(Curved(), "gradient_shap", steps=20, seed=1)(asked).map_BV
    assert (other - whole.map_BV).abs().max() > 1e-3


def test_no_more_points_are_computed_at_once_than_a_chunk():
    class Counted(Curved):
        most = 0

        def forward(self, voxels_BV, direction_BF):
            self.most = max(self.most, len(voxels_BV))
            return super().forward(voxels_BV, direction_BF)

    for method in METHODS:
        model = Counted()
        explainer(model, method, steps=40, chunk=20)(query(5))
        assert 5 < model.most <= 20


@pytest.mark.parametrize("method", METHODS)
def test_maps_are_zero_at_the_baseline(method):
    asked = query()
    at_baseline = asked._replace(voxels_BV=torch.zeros_like(asked.voxels_BV))
    ask = explainer(Curved(), method)
    if method == "gradient_shap":
        ask.baseline_SV = torch.zeros(1, VOXELS)
    assert ask(at_baseline).map_BV.abs().max() == 0


@pytest.mark.parametrize("method", METHODS)
def test_permuting_voxels_permutes_the_map(method):
    order, asked, model, moved = torch.randperm(VOXELS), query(), Curved(), Curved()
    moved.weight_FV.data = model.weight_FV[:, order]
    ask, ask_moved = explainer(model, method), explainer(moved, method)
    if method == "gradient_shap":
        ask_moved.baseline_SV = ask.baseline_SV[:, order]
    found = ask_moved(asked._replace(voxels_BV=asked.voxels_BV[:, order])).map_BV
    torch.testing.assert_close(found, ask(asked).map_BV[:, order], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_a_model_that_ignores_a_region_gives_it_nothing(method):
    found = explainer(Curved(blind=slice(5, 12)), method)(query()).map_BV
    assert found[:, 5:12].abs().max() == 0
    assert found[:, :5].abs().min() > 0


def test_more_points_make_maps_more_complete():
    few, many = (
        explainer(Curved(), "integrated_gradients", steps=steps)(query()).error_B.abs().mean()
        for steps in (2, 16)
    )
    assert many < few / 10 and completeness(np.ones(3), np.zeros(3)) == 0


@pytest.mark.parametrize("kind", ["BrainMoEMulti", "BrainMoEVoxel"])
def test_a_level_is_the_sum_of_its_experts_in_maps_too(kind):
    model, asked = embedding_decoder(encoder_class=kind), query(voxels=VOXELS)
    experts = experts_per_level(model, VOXELS, 1)
    assert experts == [2, 4, 8, 16] and len(parts_of(experts)) == 1 + 4 + 30
    level, *its = (
        Explainer(Readout(model, 1, part), "integrated_gradients", steps=4)(asked).map_BV
        for part in (DecoderPart(1), *(DecoderPart(1, expert) for expert in range(4)))
    )
    torch.testing.assert_close(level, sum(its), atol=1e-5, rtol=1e-3)


def test_parts_have_names():
    for part in (WHOLE, DecoderPart(2), DecoderPart(3, 11)):
        assert DecoderPart.parse(part.name) == part
    with pytest.raises(UserError, match="level-0-expert-1"):
        DecoderPart.parse("expert-3")
    with pytest.raises(UserError, match="no level-9"):
        decode(embedding_decoder(), torch.zeros(1, VOXELS), 1, DecoderPart(9))
    with pytest.raises(UserError, match="counted from 0"):
        decode(embedding_decoder(), torch.zeros(1, VOXELS), 1, DecoderPart(0, 2))


def test_directions_point_from_the_others_to_a_class():
    embedding = torch.tensor([[2.0, 0], [4, 0], [0, 1], [0, 3]])
    member = membership([("a",), ("a", "all"), ("b",), ("b",)], ("a", "b", "none"))
    found = class_directions(embedding, member)
    torch.testing.assert_close(found[0], nn.functional.normalize(torch.tensor([3.0, -2.0]), dim=0))
    torch.testing.assert_close(found[1], -found[0])
    assert found[2].abs().sum() == 0


# --- maps on disk ---------------------------------------------------------------------------------


def test_an_interrupted_file_of_maps_goes_on_with_the_same_bits(tmp_path):
    asked = query(11)
    ask = explainer(Curved(), "gradient_shap")

    def of(rows):
        return Query(asked.image_B[rows], asked.voxels_BV[rows], asked.direction_BF[rows])

    whole = MapFile(tmp_path / "whole.npy")
    whole.fill(ask, asked.image_B, VOXELS, of, 3)
    stopped, calls = MapFile(tmp_path / "stopped.npy"), []

    def dies(rows):
        calls.append(rows)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return of(rows)

    with pytest.raises(KeyboardInterrupt):
        stopped.fill(ask, asked.image_B, VOXELS, dies, 3)
    assert not stopped.finished
    with pytest.raises(UserError, match="continues"):
        stopped.maps()
    stopped.fill(ask, asked.image_B, VOXELS, dies, 3)
    assert [rows[0] for rows in calls] == [0, 3, 6, 6, 9]
    assert stopped.maps().tobytes() == whole.maps().tobytes() and stopped.notes() == whole.notes()
    stopped.fill(ask, asked.image_B, VOXELS, dies, 3)
    assert len(calls) == 5  # nothing is computed again


def test_memory_does_not_grow_with_the_number_of_images(tmp_path):
    voxels, model = 2000, nn.Linear(2000, WIDTH).requires_grad_(False)

    class Wide(nn.Module):
        def forward(self, voxels_BV, direction_BF):
            return (model(voxels_BV) * direction_BF).sum(1)

    def peak(count: int) -> int:
        tracemalloc.start()
        file = MapFile(tmp_path / f"{count}.npy")
        file.fill(
            Explainer(Wide(), "integrated_gradients", steps=2),
            np.arange(count),
            voxels,
            lambda rows: Query(rows, torch.randn(len(rows), voxels), torch.randn(len(rows), WIDTH)),
            16,
        )
        mean_maps(file.maps(), np.ones((count, 1))), root_mean_square(file.maps())
        size = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return size

    peak(32)
    few, many = peak(64), peak(512)
    assert many < few + 512 * voxels * 4 / 4  # all maps together would be 4 MB more


def test_a_scratch_array_leaves_no_file_and_tells_a_full_disk(tmp_path, monkeypatch):
    kept = scratch_array(tmp_path, (3, 5))
    assert (
        kept.shape == (3, 5)
        and kept.dtype == np.float32
        and not kept.any()
        and not list(tmp_path.iterdir())
    )
    kept[1] = np.arange(5)
    assert kept.sum() == 10 and kept[1, 4] == 4

    class Full:
        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def write(self, _):
            raise OSError(errno.ENOSPC, "no space")

    monkeypatch.setattr(tempfile, "TemporaryFile", lambda **_: Full())
    with pytest.raises(UserError, match="disk is full"):
        scratch_array(tmp_path, (3, 5))


@pytest.mark.parametrize("step", ["components", "saliency", "patterns", "ablation"])
def test_what_is_made_of_maps_and_responses_holds_no_copy_of_them(step, tmp_path):
    voxels, rng = 12000, np.random.default_rng(0)
    inside = np.arange(voxels) < 9

    def peak(count: int) -> int:
        kept_NV, out_NP = (scratch_array(tmp_path, (count, width)) for width in (voxels, 400))
        for row_V in kept_NV:
            row_V[:] = rng.standard_normal(voxels)
        tracemalloc.start()
        if step == "components":
            components_of([kept_NV], 4)
        elif step == "saliency":
            inside_outside(
                beyond_usual(saliency(kept_NV, np.ones((voxels, 400), np.float32), out_NP), out_NP),
                out_NP > 0,
            )
        elif step == "patterns":
            rows = np.arange(count).reshape(-1, 2)
            activation_patterns(lambda some: kept_NV[some], rows, lambda some: some[:, :2].copy())
        else:
            ablate_voxels(
                "some",
                inside,
                kept_NV,
                lambda some: AblationScores(
                    *3 * (np.concatenate([some[:64], some[64:128]])[:, 0],)
                ),
                draws=2,
            )
        size = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return size

    peak(128)
    few, many = peak(256), peak(768)
    assert (
        many < few + 512 * voxels * 4 / 4
    )  # a copy of them would be 25 MB more, or twice that as float64


def test_means_are_those_of_numpy():
    maps = np.random.default_rng(0).standard_normal((150, 7)).astype(np.float32)
    member = np.random.default_rng(1).random((150, 3)) < 0.3
    member[:, 2] = False
    found = mean_maps(maps, member)
    np.testing.assert_allclose(found[0], maps[member[:, 0]].mean(0), atol=1e-6)
    assert (found[2] == 0).all()
    np.testing.assert_allclose(root_mean_square(maps), np.sqrt((maps**2).mean(0)), rtol=1e-5)


# --- experts --------------------------------------------------------------------------------------


def test_voxels_are_followed_to_the_expert_that_reads_their_unit():
    model = embedding_decoder()
    encoder = model.encoder
    with torch.no_grad():
        encoder.subject_layer.linears["1"].weight.copy_(
            torch.eye(32)[:, :VOXELS]
        )  # voxel v is unit v
        for block in (block for level in encoder.levels for block in level.trunk.blocks):
            block[-1].weight.zero_()  # nothing but the residual path
            block[-1].bias.zero_()
    voxels = torch.randn(4, VOXELS)
    for level, found in enumerate(voxel_selectivity(model, 1, voxels)):
        assert found.exact and found.share_EV.shape == (2 ** (level + 1), VOXELS)
        np.testing.assert_allclose(found.share_EV.sum(0), 1, atol=1e-5)
        for voxel in (
            0,
            9,
            23,
        ):  # an expert that reads a voxel says something else when it changes; the others do not
            changed = voxels.clone()
            changed[:, voxel] += 1
            before, after = (
                model(x, 1, return_experts=True).expert_backbone[level] for x in (voxels, changed)
            )
            differs = ((before - after).abs().amax(dim=(0, 2, 3)) > 1e-6).numpy()
            assert np.array_equal(differs, found.share_EV[:, voxel] > 0)


def test_selectivity_of_published_routing_is_marked_as_inexact_and_of_a_dense_encoder_refused():
    found = voxel_selectivity(
        embedding_decoder(routing="expert_choice", trunk="published"), 1, torch.randn(4, VOXELS)
    )
    assert not any(level.exact for level in found)
    with pytest.raises(UserError, match="BrainEncoder"):
        voxel_selectivity(
            embedding_decoder(encoder_class="BrainEncoder"), 1, torch.randn(2, VOXELS)
        )


def test_a_profile_finds_what_an_expert_speaks_for_and_nothing_in_noise():
    rng = np.random.default_rng(0)
    member = np.eye(4, dtype=bool)[rng.integers(4, size=120)]
    said = rng.standard_normal((120, 3, 4))
    said[:, 1, 2] += 2 * member[:, 2]
    table = profile(said, member, permutations=300).set_index(["expert", "class"])
    assert table.loc[(1, 2), "q"] < 0.05 and table.loc[(1, 2), "standardised"] > 5
    assert table.loc[(1, 2), "difference"] == pytest.approx(
        said[member[:, 2], 1, 2].mean() - said[~member[:, 2], 1, 2].mean()
    )
    assert (table.drop((1, 2))["q"] < 0.05).sum() == 0
    p = np.concatenate(
        [profile(rng.standard_normal((40, 2, 4)), member[:40], 99, seed)["p"] for seed in range(40)]
    )
    assert 0.02 < (p <= 0.1).mean() < 0.2  # p values of noise are even
    assert evidence(torch.ones(3, 2, WIDTH), torch.ones(4, WIDTH)).shape == (3, 2, 4)


# --- components -----------------------------------------------------------------------------------


def test_planted_components_come_back_in_both_subjects_and_their_category_is_named():
    rng = np.random.default_rng(0)
    loading = rng.standard_normal((60, 3))
    inside = np.zeros(60, dtype=bool)
    inside[:15] = True
    loading[inside, 1] += 4
    patterns = [
        rng.laplace(size=(3, width)) * (rng.random((3, width)) < 0.3) for width in (400, 300)
    ]
    maps = [
        loading @ pattern + 0.05 * rng.standard_normal((60, pattern.shape[1]))
        for pattern in patterns
    ]
    found = components_of(maps, 3)
    match = np.abs(
        np.corrcoef(np.concatenate(found.maps, axis=1), np.concatenate(patterns, axis=1))[:3, 3:]
    )
    assert (match.max(axis=0) > 0.95).all() and found.explained > 0.95 and found.converged
    table = related_classes(
        found.loading_NK, np.stack([inside, ~inside & (np.arange(60) % 2 == 0)], axis=1)
    )
    best = table.loc[table["p"].idxmin()]
    assert best["class"] == 0 and best["component"] == match[:, 1].argmax() and best["q"] < 0.001
    expressed = expression_table(found, [1, 2])
    assert len(expressed) == 6 and (expressed["agreement"] > 0.95).all()


# --- saliency -------------------------------------------------------------------------------------


def test_a_voxel_lights_up_where_it_looks():
    fields = ReceptiveFields.from_polar(
        np.array([2.0, 2.0, np.nan]), np.array([0.0, 90.0, 0.0]), np.array([0.5, 0.5, 0.5])
    )
    places = gaussians(fields, 21, 8.4)
    np.testing.assert_allclose(places.sum(1), [1, 1, 0], atol=1e-5)
    assert np.unravel_index(places[0].argmax(), (21, 21)) == (
        10,
        15,
    )  # right of the centre: 2 degrees are 5 squares of 0.4
    assert np.unravel_index(places[1].argmax(), (21, 21)) == (5, 10)  # up is towards row 0
    spread = saliency(np.array([[1.0, 0, 0], [-3.0, 2.0, 5.0], [-1.0, 0, 5.0]]), places)
    np.testing.assert_allclose(
        spread[:2], places[:2], atol=1e-6
    )  # what speaks against does not light up
    assert (spread[2] == 0).all()


def test_pointing_is_judged_against_other_images_maps():
    rng = np.random.default_rng(0)
    objects = np.zeros((60, 100), dtype=bool)
    for row, start in enumerate(rng.integers(0, 90, 60)):
        objects[row, start : start + 10] = True
    noise = rng.random((60, 100))
    good, blind = pointing_game(noise + 2 * objects, objects), pointing_game(noise, objects)
    assert good.hits == 1 and good.gain_low > 0.5 and good.chance < 0.3
    assert blind.gain_low <= 0 <= blind.gain_high
    np.testing.assert_allclose(inside_outside(objects.astype(float), objects), 1)
    assert abs(inside_outside(noise, objects).mean() - 0.5) < 0.05
    same = np.tile(noise[:1], (60, 1))
    assert np.abs(beyond_usual(same)).max() < 1e-9  # what is in every image says nothing about one


# --- agreement ------------------------------------------------------------------------------------


def test_agreement_is_one_for_the_same_groups_and_zero_by_chance():
    area = np.repeat(["a", "b", "c"], 50)
    same, random = (
        group_agreement(np.repeat([2, 0, 1], 50), area),
        group_agreement(np.random.default_rng(0).integers(3, size=150), area),
    )
    assert (
        same.value == pytest.approx(1)
        and same.value > same.permuted_high
        and abs(same.permuted) < 0.02
    )
    assert random.value <= random.permuted_high
    assert area_under_roc(np.arange(6), np.arange(6) > 2) == 1 and np.isnan(
        area_under_roc(np.arange(3), np.ones(3))
    )


# --- ablations ------------------------------------------------------------------------------------


def test_silencing_an_expert_takes_what_it_says_about_images_and_no_offset():
    model, voxels = (
        embedding_decoder(),
        np.random.default_rng(0).standard_normal((12, VOXELS)).astype(np.float32),
    )
    before = all_expert_outputs(expert_outputs_of(model, voxels, 1))
    kept = {}
    ablate_part(
        model,
        DecoderPart(1, 2),
        voxels,
        1,
        lambda said: kept.setdefault("said", all_expert_outputs(said)),
    )  # type: ignore[arg-type,return-value]
    after = kept["said"]
    torch.testing.assert_close(
        after.experts[1][:, 2], before.experts[1][:, 2].mean(0).expand(12, -1)
    )
    torch.testing.assert_close(after.experts[1][:, 3], before.experts[1][:, 3])
    torch.testing.assert_close(after.levels_NLF.mean(0), before.levels_NLF.mean(0))
    torch.testing.assert_close(
        all_expert_outputs(expert_outputs_of(model, voxels, 1)).whole_NF, before.whole_NF
    )  # and afterwards it speaks again


def test_what_silencing_takes_away_does_not_depend_on_how_many_images_are_read_at_once():
    model, voxels = (
        embedding_decoder(),
        np.random.default_rng(0).standard_normal((12, VOXELS)).astype(np.float32),
    )
    heard = []
    for batch_size in (5, 12):
        with ablated(model, DecoderPart(2), voxels, 1, batch_size):
            heard.append(all_expert_outputs(expert_outputs_of(model, voxels, 1, batch_size)))
    for one, other in zip(*heard):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)
    assert (
        heard[0].levels_NLF[:, 2].std(dim=0).max()
        < 1e-5
        < heard[0].levels_NLF[:, 1].std(dim=0).min()
    )


def test_silenced_responses_are_those_with_zeros():
    voxels = np.random.default_rng(0).standard_normal((12, VOXELS)).astype(np.float32)
    inside = np.arange(VOXELS) % 3 == 0
    found = WithoutVoxels(voxels, inside)
    assert (
        len(found) == 12
        and np.array_equal(found[3:7], np.where(inside, 0, voxels[3:7]))
        and voxels.all()
    )


def test_silencing_the_voxels_that_carry_it_costs_more_than_others():
    rng = np.random.default_rng(0)
    truth = torch.from_numpy(rng.standard_normal((40, WIDTH))).float()
    voxels = np.concatenate([truth.numpy(), rng.standard_normal((40, 60))], axis=1).astype(
        np.float32
    )
    direction, member = (
        torch.eye(WIDTH)[:2],
        np.stack([np.arange(40) < 20, np.arange(40) >= 20], axis=1),
    )

    def score(responses) -> AblationScores:
        return scores_of(map(listen_as, (responses[:25], responses[25:])), truth, direction, member)

    def listen_as(responses):
        said = torch.from_numpy(responses[:, :WIDTH])
        return ExpertOutputs(said[:, None], (), said + 1e-6, said + 1e-6)

    inside = np.zeros(68, dtype=bool)
    inside[: WIDTH // 2] = True
    before = score(voxels)
    assert before.cosine_N.min() > 0.999 and before.found_N.min() == 1
    table = ablation_table(
        before,
        [ablate_voxels("half", inside, voxels, score, draws=10)],
        {"all": np.ones(40, dtype=bool)},
    )
    row = table.set_index("score").loc["cosine"]
    assert (
        row["loss"] > 0.2 and row["excess_low"] > 0.1 and row["p_random"] == pytest.approx(1 / 11)
    )
    assert isinstance(table, pd.DataFrame) and set(table["score"]) == {
        "cosine",
        "found",
        "evidence",
    }
