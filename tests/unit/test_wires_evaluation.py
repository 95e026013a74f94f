"""The wires of evaluation: every score is of the right pictures, against the right truth, beside
the right baseline.

Each test fails when a wire is cut: pictures paired by order instead of id, true and generated
exchanged, directions of retrieval exchanged, ridge fitted on test trials, an oracle made of what
was decoded.
"""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image
import pytest
from safetensors.torch import save_file
import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, interpolate
from unit.tiny_finetuning import TableTargets, table, tiny_embedding_decoder
from unit.tiny_training import IMAGES, spy, tiny_config, with_a_gap

from braingen.config import Config
from braingen.data.betas import Betas
from braingen.data.trials import test_trials, train_trials
from braingen.encoders.ridge import fit_ridge
from braingen.evaluation import (
    decoded_images,
    decoding,
    evaluate_images,
    part_scores,
    ridge_baseline,
    score_files,
    scored_source,
    subject_means,
    uncertainty,
)
from braingen.evaluation import evaluate as stage
from braingen.evaluation import identification as identify
from braingen.evaluation import metric_table as scores_sheet
from braingen.evaluation.averaged import Scored
from braingen.evaluation.captions import caption_scores, nearest_captions
from braingen.evaluation.decoding import decoder_scores
from braingen.evaluation.evaluate_captions import caption_table
from braingen.evaluation.feature_store import FeatureStore, as_scored
from braingen.evaluation.image_sets import PngImages, SeenImages
from braingen.runtime.data_layout import Layout
from braingen.runtime.errors import UserError
from braingen.runtime.paths import EMBEDDINGS, INDEX, generated_folder, random_folders
from braingen.types import Score

IDS = np.array([2, 0, 3, 1])
"""The test images of `unit.fake_nsd`, in an order that is not theirs."""


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("wires") / "data"


@pytest.fixture(scope="module", autouse=True)
def retrieval_among_four():
    """The tiny data folder has four test images."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decoding, "FEWEST_CANDIDATES", 2)
        yield


def scenes() -> np.ndarray:
    """A smooth picture per image id."""
    noise = torch.rand(IMAGES, 3, 4, 4, generator=torch.Generator().manual_seed(2))
    return interpolate(noise, size=(32, 32), mode="bilinear").numpy()


class Pictured:
    """Pictures of a data folder that holds no scenes."""

    simulated, data_name = False, "random numbers"

    def __len__(self) -> int:
        return IMAGES

    def images(self, ids: np.ndarray) -> np.ndarray:
        return scenes()[ids]


class PicturedTargets(TableTargets):
    """With pictures."""

    def __init__(self, config: Config | None = None) -> None:
        super().__init__(config)
        self.stimuli = Pictured()  # type: ignore[assignment]
        self.captions = {
            image: [f"a {word}"]
            for image, word in enumerate(("red car", "blue tree", "green dog", "yellow house"))
        }


class Patches:
    """A comparison network: mean colours of patches."""

    name, weights = "clip", "0123"

    def features(self, images_B3HW: Tensor) -> Tensor:
        return avg_pool2d(images_B3HW, 64).flatten(1)


# --- the decoder ----------------------------------------------------------------------------------


def test_both_directions_of_retrieval_are_what_their_names_say():
    """Every brain is decoded to the first image, more or less: brains find one image, and images
    find their own brains.
    """
    true = np.eye(4)
    decoded = np.array([[1.0, 0, 0, 0], [1, 0.5, 0, 0], [1, 0, 0.5, 0], [1, 0, 0, 0.5]])
    scores, values = decoder_scores(decoded, true, np.array([9, 4, 6, 5]), resamples=20)
    assert (
        scores["retrieval_brain_to_image"].value == 0.25
        and scores["retrieval_image_to_brain"].value == 1
    )
    assert (
        values.loc[9, "retrieval_brain_to_image"] == 1
        and values["retrieval_brain_to_image"].sum() == 1
    )
    assert values.loc[9, "clip_cos"] == pytest.approx(1) and values.loc[
        4, "clip_cos"
    ] == pytest.approx(0.5 / 1.25**0.5)
    assert (
        scores["retrieval_brain_to_image"].chance
        == 0.25
        == 1 / scores["retrieval_brain_to_image"].pool
    )


def test_retrieval_is_among_the_pools_of_the_seed_and_never_among_few(monkeypatch):
    draws = np.random.default_rng(5)
    true = draws.standard_normal((12, 4))
    decoded, ids = true + draws.standard_normal((12, 4)), np.arange(12)
    pools = [identify.draw_pools(12, 3, 4, seed) for seed in (0, 7)]
    expected = [identify.retrieval(decoded, true, pool).brain_to_image for pool in pools]
    assert expected[0].value != expected[1].value
    scores, values = decoder_scores(decoded, true, ids, pool=3, draws=4, seed=7, resamples=20)
    found = scores["retrieval_brain_to_image"]
    assert (found.value, found.pool, found.chance) == (
        pytest.approx(expected[1].found_N.sum() / expected[1].queries_N.sum()),
        3,
        1 / 3,
    )
    np.testing.assert_allclose(
        values["retrieval_brain_to_image"],
        expected[1].found_N / np.maximum(expected[1].queries_N, 1),
    )
    monkeypatch.setattr(decoding, "FEWEST_CANDIDATES", 13)
    assert list(decoder_scores(decoded, true, ids, resamples=20)[0]) == ["clip_cos"]


def test_the_cosine_is_of_the_decoded_embedding_and_retrieval_of_the_projected_output(
    root, tmp_path
):
    config = tiny_config(
        root,
        tmp_path,
        evaluation__bootstrap="30",
        evaluation__retrieval_pool="3",
        evaluation__retrieval_draws="5",
        run__seed="4",
    )
    draws = torch.Generator().manual_seed(1)
    true, other = torch.randn(4, 6, generator=draws), torch.randn(4, 6, generator=draws)
    right = scored_source.decoding_scores(config, true, other, true, true - other, IDS).scores
    assert {name: score.value for name, score in right.items()} == pytest.approx(
        dict.fromkeys(right, 1.0)
    )
    wrong = scored_source.decoding_scores(
        config, true, other[[1, 0, 3, 2]], true, true - other, IDS
    )
    assert wrong.scores["clip_cos"].value == pytest.approx(1)
    assert (
        wrong.scores["retrieval_brain_to_image"].value
        < 1
        > wrong.scores["retrieval_image_to_brain"].value
    )
    far = scored_source.decoding_scores(config, -true, other, true, true - other, IDS)
    assert far.scores["clip_cos"].value == pytest.approx(-1) and far.scores[
        "retrieval_brain_to_image"
    ].value == pytest.approx(1)
    assert far.table.loc[0, "clip_cos"] == pytest.approx(-1) and set(far.table) == set(right)
    assert right["retrieval_brain_to_image"].pool == 3
    asked: list[dict[str, Any]] = []
    intervals: list[tuple[Any, ...]] = []
    with pytest.MonkeyPatch.context() as patch:
        spy(patch, scored_source, "decoder_scores", lambda *_, **named: asked.append(named))
        spy(patch, scored_source, "two_way_interval", lambda beats, *given: intervals.append(given))
        scored_source.decoding_scores(config, true, other, true, true - other, IDS)
    assert asked == [{"pool": 3, "draws": 5, "resamples": 30, "seed": 4}] * 2 and intervals == [
        (30, 4)
    ]


def test_two_way_identification_of_embeddings_is_of_the_decoded_ones_around_the_mean(
    root, tmp_path
):
    """By hand: a decoded embedding beats an image whose own embedding, around the mean, correlates
    less with it.
    """
    draws = torch.Generator().manual_seed(3)
    true, mean, projected = (
        torch.randn(12, 5, generator=draws),
        4 * torch.randn(5, generator=draws),
        torch.randn(12, 5, generator=draws),
    )
    true = true + mean
    decoded = true + torch.randn(12, 5, generator=draws)
    found = scored_source.decoding_scores(
        tiny_config(root, tmp_path), decoded, projected, true, mean, np.arange(12)
    )

    def share(rows: Tensor, columns: Tensor) -> np.ndarray:
        r = np.corrcoef(rows.double().numpy(), columns.double().numpy())[:12, 12:]
        return (r < np.diag(r)[None]).sum(0) / 11

    expected = share(true - mean, decoded - mean)
    np.testing.assert_allclose(found.table[scored_source.TWO_WAY], expected, atol=1e-9)
    assert found.scores[scored_source.TWO_WAY].value == pytest.approx(expected.mean())
    for other in (
        share(decoded - mean, true - mean),
        share(true, decoded),
        share(true - mean, projected),
    ):
        assert np.abs(other - expected).max() > 0.05


def test_images_are_retrieved_around_the_training_mean(root, tmp_path):
    """The projected output is around it already; far from zero all embeddings look alike."""
    draws = torch.Generator().manual_seed(3)
    around, mean = torch.randn(12, 5, generator=draws), 4 * torch.randn(5, generator=draws)
    projected = around + 0.7 * torch.randn(12, 5, generator=draws)
    config = tiny_config(root, tmp_path)
    true = around + mean
    found = scored_source.decoding_scores(config, true, projected, true, mean, np.arange(12)).scores
    right, wrong = (
        identify.retrieval(projected.numpy(), rows.numpy()).brain_to_image.value
        for rows in (around, true)
    )
    assert found["retrieval_brain_to_image"].value == pytest.approx(right)
    assert right > wrong + 0.2


def test_ridge_learns_from_training_trials_alone_and_reads_the_test_images_trials(
    monkeypatch, root, tmp_path
):
    """Fitted by hand on the same trials it predicts the same; its voxels are means over an image's
    test presentations.
    """
    config = tiny_config(root, tmp_path, data__subjects="2,1", data__num_sessions="1")
    layout = Layout.of(root)
    train, test = train_trials(layout, 2, 1).table, with_a_gap(test_trials(layout, 2)).table
    monkeypatch.setattr(
        ridge_baseline, "test_trials", lambda *given: with_a_gap(test_trials(*given))
    )
    betas = Betas.of(layout, 2)
    shown = train["image"].to_numpy()
    assert not set(shown) & set(test["image"])
    own = fit_ridge(
        betas.rows(train["trial"].to_numpy()), table("image")[shown].flatten(1).numpy(), shown
    )
    given: list[tuple[Any, ...]] = []
    spy(monkeypatch, ridge_baseline, "fit_ridge", lambda *arguments, **_: given.append(arguments))
    found, mean = ridge_baseline.ridge_embeddings(config, TableTargets(), IDS)
    np.testing.assert_array_equal(given[0][0], betas.rows(train["trial"].to_numpy()))
    np.testing.assert_array_equal(given[0][1], table("image")[shown].flatten(1).numpy())
    np.testing.assert_array_equal(given[0][2], shown)
    rows = [test["trial"][test["image"] == image].to_numpy() for image in IDS]
    assert [len(each) for each in rows] == [3, 2, 3, 3]
    np.testing.assert_allclose(
        found.numpy(),
        own.predict(np.stack([betas.rows(each).mean(0) for each in rows])),
        rtol=1e-3,
        atol=1e-3,
    )
    torch.testing.assert_close(mean, table("image")[sorted(set(shown))].flatten(1).mean(0))
    first = tiny_config(
        root, tmp_path, data__subjects="2", data__num_sessions="1", generation__repeats="first"
    )
    single = ridge_baseline.ridge_embeddings(first, TableTargets(), IDS)[0]
    np.testing.assert_allclose(
        single.numpy(),
        own.predict(np.stack([betas.rows(each[:1])[0] for each in rows])),
        rtol=1e-3,
        atol=1e-3,
    )


def test_the_training_mean_is_of_images_of_the_subject_and_sessions(monkeypatch, root, tmp_path):
    """Every image once, however often it was shown: scores are around the same mean as ridge's."""
    config = tiny_config(root, tmp_path, data__subjects="2,1", data__num_sessions="1")
    monkeypatch.setattr(
        ridge_baseline, "train_trials", lambda *given: with_a_gap(train_trials(*given))
    )
    shown = with_a_gap(train_trials(Layout.of(root), 2, 1)).table["image"]
    assert shown.value_counts().nunique() > 1
    expected = table("image")[sorted(set(shown))].flatten(1).mean(0)
    torch.testing.assert_close(ridge_baseline.training_mean(config, TableTargets()), expected)
    torch.testing.assert_close(
        ridge_baseline.ridge_embeddings(config, TableTargets(), IDS)[1], expected
    )
    texts = table("text")[sorted(set(shown))].flatten(1).mean(0)
    torch.testing.assert_close(ridge_baseline.training_mean(config, TableTargets(), "text"), texts)


def test_the_penalty_of_ridge_is_chosen_on_left_out_images_not_on_left_out_trials():
    """With targets that follow noise shared by an image's presentations, leaving out a trial would
    choose no penalty at all.
    """
    draws = np.random.default_rng(0)
    image_N = np.repeat(np.arange(30), 3)
    voxels = draws.standard_normal((30, 200))[image_N] + 0.01 * draws.standard_normal((90, 200))
    targets = draws.standard_normal((30, 2))[image_N]  # nothing to learn
    honest, naive = fit_ridge(voxels, targets, image_N), fit_ridge(voxels, targets, np.arange(90))
    assert (
        honest.penalty_D[0] == max(honest.penalties_A)
        and naive.penalty_D[0] < honest.penalty_D[0] / 1000
    )
    assert honest.error_A.min() > 0.9 and naive.error_A.min() < 0.2


def test_levels_and_experts_are_scored_each_by_itself_over_all_presentations(
    monkeypatch, root, tmp_path
):
    config = tiny_config(root, tmp_path)
    embedding_decoder = tiny_embedding_decoder("image")
    with_tiny_encoder(monkeypatch)
    monkeypatch.setattr(
        decoded_images, "test_trials", lambda *given: with_a_gap(test_trials(*given))
    )
    decoded = decoded_images.decode_test_images(config, TableTargets())
    assert decoded.times_N.tolist() == [2, 3, 3, 3] and decoded.read is None
    found = part_scores.scores_of_parts(config, decoded, np.array([0, 2, 3])).set_index(
        ["part", "score"]
    )["value"]
    trials, betas = with_a_gap(test_trials(Layout.of(root), 1)).table, Betas.of(Layout.of(root), 1)
    said: dict[str, list[Tensor]] = {}
    with torch.no_grad():
        for image in (0, 2, 3):
            out = embedding_decoder(
                torch.from_numpy(betas.rows(trials["trial"][trials["image"] == image].to_numpy())),
                1,
                return_experts=True,
            )
            for level, experts_BETD in enumerate(out.expert_backbone):
                said.setdefault(f"level {level}", []).append(
                    out.level_backbone_BLTD[:, level].mean(0).flatten()
                )
                for expert in range(experts_BETD.shape[1]):
                    said.setdefault(f"level {level}, expert {expert}", []).append(
                        experts_BETD[:, expert].mean(0).flatten()
                    )
    assert set(said) == set(found.index.get_level_values(0)) and len(said) == 8
    true = embedding_decoder.standardised(table("image")[[0, 2, 3]]).flatten(1).numpy()
    for part, rows in said.items():
        expected, _ = decoder_scores(
            torch.stack(rows).numpy(), true, np.array([0, 2, 3]), resamples=20
        )
        for name, score in expected.items():
            assert found[part, name] == pytest.approx(score.value, abs=1e-4)


# --- pictures -------------------------------------------------------------------------------------


def write_pictures(folder: Path, pictures: dict[int, np.ndarray]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for image, values in pictures.items():
        Image.fromarray((values * 255).round().astype(np.uint8).transpose(1, 2, 0)).save(
            folder / f"{image:06d}.png"
        )


def test_pictures_are_found_by_their_ids(tmp_path):
    write_pictures(tmp_path, {int(image): scenes()[image] for image in IDS})
    for row, image in enumerate(IDS):
        assert np.abs(PngImages(tmp_path, IDS)[row] / 255 - scenes()[image]).max() < 0.01
        np.testing.assert_array_equal(SeenImages(Pictured(), IDS)[row], scenes()[image])  # type: ignore[arg-type]


@pytest.mark.slow
def test_a_reconstruction_is_held_against_the_image_of_its_id_and_not_of_its_place():
    """One picture is of nothing; the score that suffers is its own, whatever the order of either
    side.
    """
    truth = scenes()
    recons = truth.copy()
    recons[7] = 1 - truth[7]
    order = np.random.default_rng(0).permutation(IMAGES)
    other = np.random.default_rng(1).permutation(IMAGES)
    found = scores_sheet.score_images(
        truth[other], other, recons[order], order, [Patches()], resamples=20
    )
    assert found.table.index.tolist() == list(range(IMAGES))
    assert found.table["pixcorr"].idxmin() == 7 == found.table["two_way_clip"].idxmin()
    assert found.table["pixcorr"].drop(7).min() > 0.99


def test_two_way_asks_which_true_image_a_reconstruction_resembles_and_not_the_other_way_round():
    """Features by hand: reconstruction 1 beats both others, reconstruction 0 loses to image 1;
    exchanged, the outcome would differ.
    """
    truth = np.array([[1.0, 0, 0, 0], [0.9, 0.5, 0, 0], [0, 0, 1, 0]])
    recons = np.array([[0.8, 0.5, 0, 0.01], [0, 1, 0, 0], [0, 0, 1, 0.2]])
    r = np.corrcoef(truth, recons)[:3, 3:]
    expected = r < np.diag(r)[None]
    found = scores_sheet.identification.two_way(truth, recons).beats_NN
    np.testing.assert_array_equal(found, expected)
    assert (
        not np.array_equal(expected, expected.T)
        and (expected.sum(0) != (r < np.diag(r)[:, None]).sum(1)).any()
    )


@pytest.mark.slow
def test_a_sheet_asks_two_way_with_true_and_generated_pictures_in_their_places():
    noise = np.random.default_rng(2).random((IMAGES, 3, 32, 32)).astype(np.float32)
    recons = 0.04 * scenes() + 0.9 * noise
    found = scores_sheet.score_images(
        scenes(), np.arange(IMAGES), recons, np.arange(IMAGES), [Patches()], resamples=20
    )
    sides = [as_scored(x, slice(0, IMAGES)).flatten(1) for x in (scenes(), recons)]
    r = np.corrcoef(
        *(Patches().features(x.view(IMAGES, 3, 256, 256)).double().numpy() for x in sides)
    )[:IMAGES, IMAGES:]
    expected = (r < np.diag(r)[None]).sum(0) / (IMAGES - 1)
    np.testing.assert_allclose(found.table["two_way_clip"], expected, atol=1e-6)
    assert np.abs(expected - (np.diag(r)[None] > r.T).sum(0) / (IMAGES - 1)).max() > 0.05


@pytest.mark.slow
def test_a_sheet_says_of_every_score_what_it_is_of_its_interval_and_its_chance():
    """Read-outs are asked about the reconstructions; runs are compared by both parts of an image in
    a two-way score.
    """
    truth, recons = scenes()[:6], scenes()[[1, 1, 2, 3, 4, 5]]
    shade = lambda pictures: (pictures.mean((1, 2, 3)) * 1000).long()  # noqa: E731
    there = dict(enumerate(shade(as_scored(truth, slice(0, 6))).tolist()))
    named = scores_sheet.SceneReadout("object", shade, there, 0.25)
    pairs = scores_sheet.match(truth, np.arange(6), recons, np.arange(6))
    found = scores_sheet.metric_table_of(pairs, [Patches()], [named], resamples=30, seed=4)  # type: ignore[list-item]
    assert (
        found.table["object_accuracy"].tolist() == [0, 1, 1, 1, 1, 1]
        and found.scores["object_accuracy"].chance == 0.25
    )
    two_way = found.scores["two_way_clip"]
    beats = found.identified["two_way_clip"].beats_NN
    assert two_way.chance == 0.5 and two_way[:3] == uncertainty.two_way_interval(beats, 30, 4)
    assert found.scores["pixcorr"][:3] == uncertainty.mean_interval(
        found.table["pixcorr"].to_numpy(), 30, 4
    )
    paired = found.paired["two_way_clip"].to_numpy()
    np.testing.assert_allclose(paired, uncertainty.two_way_by_image(beats))
    assert np.abs(paired - found.table["two_way_clip"]).max() > 0.05

    class Unknown(Patches):
        name = "mine"

        def features(self, images_B3HW: Tensor) -> Tensor:
            pytest.fail("computed before its name was looked up")

    with pytest.raises(UserError, match="two_way_mine"):
        scores_sheet.metric_table_of(pairs, [Unknown()])  # type: ignore[list-item]


def test_correlations_of_pairs_are_those_of_all_with_all():
    """The first pass of two-way identification, before what is near a tie is computed again."""
    draws = np.random.default_rng(0)
    truth, recons = draws.standard_normal((5, 40)), draws.standard_normal((5, 40))
    expected = np.corrcoef(truth, recons)[:5, 5:]
    for precision, exact in (("float64", 1e-9), ("float32", 1e-5)):
        every, own = identify._correlate(truth, recons, precision, "cpu")  # type: ignore[arg-type]
        np.testing.assert_allclose(every, expected, atol=exact)
        np.testing.assert_allclose(own, np.diag(expected), atol=exact)


def test_the_side_whose_features_are_constant_is_named():
    draws = np.random.default_rng(0)
    for side, name in enumerate(("true images", "reconstructions")):
        sides = [draws.standard_normal((3, 8)), draws.standard_normal((3, 8))]
        sides[side][1] = 0.5
        with pytest.raises(identify.FlatFeatures, match=f"Row 1 of the features of the {name}"):
            identify.correlation_distance(*sides)


@pytest.mark.slow
def test_networks_that_look_at_pairs_see_a_picture_beside_its_own_reconstruction():
    class Pairwise:
        name, use, weights = "lpips", "pair", "0123"

        def distance(self, truth_B3HW: Tensor, recons_B3HW: Tensor) -> Tensor:
            return (truth_B3HW - recons_B3HW).abs().amax((1, 2, 3))

    truth, recons = scenes()[:9], scenes()[:9]
    recons[7] = 1 - recons[7]
    order = np.random.default_rng(0).permutation(9)
    told: list[tuple[Any, ...]] = []
    with FeatureStore(batch=4, progress=lambda *given: told.append(given)) as store:
        found = scores_sheet.score_images(
            truth, np.arange(9), recons[order], order, [Pairwise()], store=store, resamples=20
        )
    values = found.table["lpips"]
    assert values.idxmax() == 7 and values[7] > 0.1 and values.drop(7).max() < 1e-6
    assert told == [("lpips", done, 9) for done in (4, 8, 9)]
    assert found.scores["lpips"].value == pytest.approx(values.mean())


def test_best_and_worst_pictures_stand_under_their_own_images(monkeypatch, tmp_path):
    sheets: list[list[tuple[Image.Image, Image.Image]]] = []
    monkeypatch.setattr(
        score_files, "write_sheet", lambda path, pairs, *_, **__: sheets.append(pairs)
    )
    monkeypatch.setattr(score_files, "SHOWN", 2)
    values = pd.DataFrame(
        {"pixcorr": [0.1, 0.9, 0.5, 0.3]}, index=pd.Index([0, 1, 2, 3], name="image")
    )
    recons = 1 - scenes()[[3, 1, 0, 2]]
    truth = score_files.LoadedImages(scenes()[IDS], IDS)
    score_files.write_extremes(
        tmp_path, values, truth, score_files.LoadedImages(recons, np.array([3, 1, 0, 2]))
    )
    assert len(sheets[0]) == 4
    for image, (seen, drawn) in zip((1, 2, 3, 0), sheets[0]):  # best first, worst last
        assert np.abs(np.asarray(seen).transpose(2, 0, 1) / 255 - scenes()[image]).max() < 0.01
        assert (
            np.abs(np.asarray(drawn).transpose(2, 0, 1) / 255 - (1 - scenes()[image])).max() < 0.01
        )


# --- the whole evaluation -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def evaluated(root, tmp_path_factory, retrieval_among_four) -> tuple[Config, dict[str, Any]]:
    """An evaluation of pictures of known quality: of the brain half right, of random voxels
    nothing, twice, of the oracle right.

    The decoded embedding of image 3 is that of image 1; captions are right for image 0 alone.
    """
    folder = tmp_path_factory.mktemp("evaluated")
    config = tiny_config(
        root,
        folder,
        generation__source="random",
        generation__random_draws="2",
        evaluation__bootstrap="50",
        run__seed="3",
        evaluation__method="mine",
    )
    noise = np.random.default_rng(0).random((3, IMAGES, 3, 32, 32)).astype(np.float32)
    embedding_decoder, true = tiny_embedding_decoder("image"), table("image")[IDS]
    mean = table("image")[sorted(set(train_trials(Layout.of(root), 1).table["image"]))].mean(0)
    swapped = true.clone()
    swapped[2] = true[3]
    folders = [
        generated_folder(config, "brain"),
        *random_folders(config),
        generated_folder(config, "oracle"),
    ]
    pictures = [0.6 * scenes() + 0.4 * noise[0], noise[1], noise[2], scenes()]
    embeddings = [swapped, *(-1 * true + 0.1 * number for number in range(2)), true]
    captions = {0: "a red car", 1: "a green dog", 2: "a blue tree", 3: "nothing"}
    for place, drawn, decoded in zip(folders, pictures, embeddings, strict=True):
        write_pictures(place, {int(image): drawn[image] for image in IDS})
        centred = (decoded - mean) / embedding_decoder.spread
        save_file(
            {
                "ids": torch.from_numpy(IDS),
                "image": decoded.contiguous(),
                "image_clip": centred.contiguous(),
            },
            place / EMBEDDINGS,
        )
        said = {
            str(int(image)): captions[int(image)] if place == folders[0] else "nothing"
            for image in IDS
        }
        (place / INDEX).write_text(json.dumps({"images": IDS.tolist(), "captions": said}))
    (folder / stage.REFINEMENT).write_text("of pictures that were refined before")
    with pytest.MonkeyPatch.context() as patch:
        with_stand_ins(patch)
        stage.evaluate(config)
    return config, json.loads((folder / "scores.json").read_text())


def with_stand_ins(patch: pytest.MonkeyPatch) -> None:
    """In place of what looks at pictures and of the trained encoder."""
    for module in (stage, scored_source):
        patch.setattr(module, "Targets", PicturedTargets)
    patch.setattr(
        scored_source, "observers", lambda *_: ([Patches()], [], {"lpips": "how to get it"})
    )
    with_tiny_encoder(patch)


def with_tiny_encoder(patch: pytest.MonkeyPatch) -> list[str]:
    """In place of the trained encoder; which ones are loaded."""
    loaded: list[str] = []
    patch.setattr(
        decoded_images,
        "load_embedding_decoder",
        lambda config, name: loaded.append(name) or tiny_embedding_decoder(name),
    )
    return loaded


@pytest.mark.slow
def test_brain_random_ceiling_and_ridge_stand_in_their_own_columns(evaluated, root):
    config, scores = evaluated
    pixcorr = scores["pixcorr"]
    assert pixcorr["oracle"] > 0.99 > pixcorr["value"] > 0.5 > pixcorr["random"]
    assert (
        scores["two_way_clip"]["oracle"] == 1
        and scores["two_way_clip"]["value"] > scores["two_way_clip"]["random"]
    )
    assert (
        scores["clip_cos"]["oracle"] == pytest.approx(1)
        and scores["clip_cos"]["random"] < 0 < scores["clip_cos"]["value"] < 1
    )
    assert scores["retrieval_brain_to_image"]["value"] == pytest.approx(
        0.75
    )  # one was decoded as another
    assert scores["retrieval_brain_to_image"]["oracle"] == 1
    raw, mean = ridge_baseline.ridge_embeddings(config, TableTargets(), IDS)
    true = table("image")[IDS].flatten(1)
    ridge = scored_source.decoding_scores(config, raw, raw - mean, true, mean, IDS).scores
    for name in ("clip_cos", "retrieval_brain_to_image", "retrieval_image_to_brain"):
        assert scores[name]["ridge"] == pytest.approx(ridge[name].value, abs=1e-6)
    assert pixcorr["ridge"] is None


@pytest.mark.slow
def test_random_voxels_are_the_mean_of_their_draws_and_no_other(evaluated):
    config, scores = evaluated
    controls = json.loads((config.run.folder / "controls.json").read_text())
    assert {name: each["draws"] for name, each in controls.items()} == {"random": 2, "oracle": 1}
    for name, each in controls.items():
        for title, values in each["scores"].items():
            assert values["value"] == scores[title][name]
    each = [
        scores_sheet.score_images(scenes()[IDS], IDS, PngImages(folder, IDS), IDS, resamples=20)
        .scores["pixcorr"]
        .value
        for folder in random_folders(config)
    ]
    assert (
        scores["pixcorr"]["random"] == pytest.approx(np.mean(each), abs=1e-6) and each[0] != each[1]
    )


@pytest.mark.slow
def test_values_of_every_image_stand_beside_its_id(evaluated):
    config, scores = evaluated
    found = pd.read_csv(config.run.folder / "scores_per_image.csv", index_col="image")
    assert sorted(found.index) == [0, 1, 2, 3]
    assert (
        found["clip_cos"].idxmin() == 3 and found["clip_cos"].drop(3).min() > 0.999
    )  # the decoded embedding of another image
    assert not (config.run.folder / stage.REFINEMENT).exists()  # what is no more is not shown
    assert (
        scores["rouge_l"]["random"] == scores["rouge_l"]["oracle"] == 0 < scores["rouge_l"]["value"]
    )
    assert (
        found["rouge_l"].idxmax() == 0
        and found.loc[0, "rouge_l"] == 1
        and found["rouge_l"].drop(0).max() < 1
    )
    assert (
        found.loc[0, "clip_text"] == pytest.approx(1, abs=1e-4)
        and found["clip_text"].drop(0).max() < 0.999
    )
    brain = generated_folder(config, "brain")
    pixcorr = scores_sheet.score_images(
        scenes()[IDS], IDS, PngImages(brain, IDS), IDS, resamples=20
    ).table["pixcorr"]
    for image in range(4):
        assert found.loc[image, "pixcorr"] == pytest.approx(pixcorr[image], abs=1e-4)
    assert scores["pixcorr"]["value"] == pytest.approx(pixcorr.mean(), abs=1e-5)


def test_intervals_parts_and_provenance_are_of_the_settings(monkeypatch, evaluated, root):
    config, scores = evaluated
    values = pd.read_csv(config.run.folder / "scores_per_image.csv", index_col="image")
    for name, order in (("pixcorr", sorted(IDS)), ("clip_cos", sorted(IDS)), ("rouge_l", IDS)):
        _, low, high = uncertainty.mean_interval(values.loc[order, name].to_numpy(), 50, 3)
        assert (scores[name]["low"], scores[name]["high"]) == pytest.approx((low, high), abs=1e-4)
    with_tiny_encoder(monkeypatch)
    decoded = decoded_images.decode_test_images(config, TableTargets())
    parts = part_scores.scores_of_parts(config, decoded, IDS)
    written = pd.read_csv(config.run.folder / "scores_by_part.csv")
    pd.testing.assert_frame_equal(written, parts.astype(written.dtypes), rtol=1e-4, atol=1e-5)
    told = json.loads((config.run.folder / "scores_provenance.json").read_text())
    assert (told["method"], told["subject"], told["seed"]) == ("mine", 1, 3) and told[
        "weights"
    ] == {"clip": "0123"}
    assert (
        told["missing"]["lpips"] == "how to get it" and "clip_text" not in told["missing"]
    )  # the text encoder is there
    assert not (config.run.folder / "certainty.json").exists()  # this encoder is not calibrated
    asked: list[dict[str, Any]] = []
    spy(monkeypatch, part_scores, "scores_by_part", lambda *_, **named: asked.append(named))
    part_scores.scores_of_parts(config, decoded, IDS)
    assert asked == [
        {"pool": config.evaluation.retrieval_pool, "draws": 2, "seed": 3, "resamples": 50}
    ]


def test_an_evaluation_decodes_the_test_images_once(monkeypatch, evaluated):
    """Levels, experts and certainty are of one decoding by one loaded encoder."""
    config, _ = evaluated
    with_stand_ins(monkeypatch)
    loaded, used = with_tiny_encoder(monkeypatch), []
    for name in ("scores_of_parts", "calibration_of"):
        spy(monkeypatch, stage, name, lambda config, decoded, *_: used.append(decoded))
    stage.evaluate(config)
    assert loaded == ["image"] and len(used) == 2 and used[0] is used[1]


def test_given_pictures_are_scored_instead_of_a_run(monkeypatch, root, tmp_path):
    config = tiny_config(root, tmp_path, evaluation__all_recons_path="somewhere")
    monkeypatch.setattr(stage, "evaluate_images", lambda config: ("pictures of", config))
    assert stage.evaluate(config) == ("pictures of", config)


def test_pictures_of_a_folder_are_held_against_the_test_images_of_their_ids(root, tmp_path):
    """All of them, or, when asked for, those that have a picture; image 0 is an image like any
    other.
    """
    write_pictures(tmp_path / "some", {image: scenes()[image] for image in (2, 0)})
    write_pictures(tmp_path / "outside", {99: scenes()[0]})

    def asked(folder: str, partial: str) -> Any:
        config = tiny_config(
            root,
            tmp_path,
            evaluation__all_recons_path=str(tmp_path / folder),
            evaluation__partial=partial,
        )
        return evaluate_images._request(config)

    whole, part = asked("some", "false"), asked("some", "true")
    assert sorted(whole.recons.image_N) == sorted(part.recons.image_N) == [0, 2]
    assert whole.truth.image_N.tolist() == [0, 1, 2, 3] and part.truth.image_N.tolist() == [0, 2]
    assert (
        whole.stimuli is not None
        and whole.stimuli.simulated
        and "matched by image id" in whole.protocol
    )
    with pytest.raises(UserError, match="image 99"):
        asked("outside", "true")
    np.save(tmp_path / "whole.npy", scenes()[:4])  # no ids: the test images in their order
    without_ids = asked("whole.npy", "false")
    assert without_ids.recons.image_N.tolist() == without_ids.truth.image_N.tolist() == [0, 1, 2, 3]


def test_the_nearest_caption_is_found_for_every_one_of_many():
    draws = np.random.default_rng(0)
    training, wanted = draws.standard_normal((20, 6)), draws.integers(0, 20, 140)
    names = [f"caption {row}" for row in range(20)]
    found = nearest_captions(training[wanted], training, names, np.arange(100, 120), np.arange(50))
    assert found == [names[row] for row in wanted]


@pytest.mark.parametrize(("said", "seen"), [(["a"], [["a"], ["b"]]), (["a", "b"], [["a"], []])])
def test_captions_without_their_counterpart_are_refused(said, seen):
    with pytest.raises(UserError, match="captions were retrieved"):
        caption_scores(said, seen)


def test_the_encoder_is_compared_with_ridge_and_not_ridge_with_the_encoder(evaluated):
    config, scores = evaluated
    told = {
        each["name"]: each
        for each in json.loads((config.run.folder / "comparisons.json").read_text())
    }
    for name in ("clip_cos", "retrieval_brain_to_image"):
        each = told[f"encoder minus ridge: {name}"]
        assert (
            each["difference"]
            == pytest.approx(scores[name]["value"] - scores[name]["ridge"], abs=1e-6)
            and each["difference"] != 0
        )
        assert each["low"] <= each["difference"] <= each["high"] and 0 < each["p"] <= 1


@pytest.mark.slow
def test_refined_pictures_are_compared_with_unrefined_after_minus_before(
    root, tmp_path, monkeypatch
):
    truth = scenes()[:6]
    noise = np.random.default_rng(1).random(truth.shape).astype(np.float32)
    before, after = (
        scores_sheet.score_images(
            truth,
            np.arange(6),
            share * truth + (1 - share) * noise,
            np.arange(6),
            [Patches()],
            resamples=20,
        )
        for share in (0.4, 0.8)
    )
    monkeypatch.setattr(
        stage,
        "Run",
        lambda folder: type(
            "R", (), {"config": {"refinement": {"strength": 0.5}}, "summary": {"steps": 4}}
        ),
    )
    found = stage._before_and_after(tiny_config(root, tmp_path), before, after)["scores"]["pixcorr"]
    assert found["before"]["value"] == pytest.approx(before.scores["pixcorr"].value)
    assert found["after"]["value"] == pytest.approx(after.scores["pixcorr"].value)
    assert (
        found["difference"] == pytest.approx(found["after"]["value"] - found["before"]["value"])
        and found["difference"] > 0.05
    )


@pytest.mark.slow
def test_refined_pictures_and_what_people_judged_stand_beside_the_scores(
    monkeypatch, root, tmp_path
):
    config = tiny_config(root, tmp_path, evaluation__bootstrap="20")
    brain, refined = generated_folder(config, "brain"), tmp_path / "refined"
    noise = np.random.default_rng(0).random((IMAGES, 3, 32, 32)).astype(np.float32)
    for folder, share in ((brain, 0.3), (refined, 0.7)):
        write_pictures(
            folder,
            {int(image): share * scenes()[image] + (1 - share) * noise[image] for image in IDS},
        )
        (folder / INDEX).write_text(json.dumps({"images": IDS.tolist()}))
    true = table("image")[IDS]
    save_file(
        {"ids": torch.from_numpy(IDS), "image": true, "image_clip": true.clone()},
        brain / EMBEDDINGS,
    )
    (refined / "config.yaml").write_text("refinement: {strength: 0.5}")
    (refined / "finished").write_text('{"steps": 4}')
    with_stand_ins(monkeypatch)
    monkeypatch.setattr(stage, "refined_is_there", lambda config: True)
    monkeypatch.setattr(stage, "refined_folder", lambda config: refined)
    monkeypatch.setattr(stage, "read_study", lambda folder: {"of": folder})
    monkeypatch.setattr(
        stage,
        "scores_in",
        lambda judged: {"human_two_way": score(0.8)} if judged == {"of": tmp_path} else {},
    )
    written: list[Any] = []
    monkeypatch.setattr(
        stage, "write_scores", lambda folder, origin, scores, *_: written.append(scores) or tmp_path
    )
    stage.evaluate(config)
    told = json.loads((tmp_path / stage.REFINEMENT).read_text())["scores"]["pixcorr"]
    assert (
        told["before"]["value"] == pytest.approx(written[0]["pixcorr"].value, abs=1e-5)
        and told["difference"] > 0.1
    )
    assert written[0]["human_two_way"].value == 0.8
    oracle = generated_folder(config, "oracle")
    write_pictures(oracle, {int(image): scenes()[image] for image in IDS})
    (oracle / INDEX).write_text(json.dumps({"images": IDS.tolist()}))
    save_file(
        {"ids": torch.arange(4), "image": true, "image_clip": true.clone()}, oracle / EMBEDDINGS
    )
    with pytest.raises(UserError, match="different images"):
        stage.evaluate(config)


def test_comparisons_are_corrected_and_of_the_settings(monkeypatch, root, tmp_path):
    asked: list[tuple[Any, ...]] = []

    def compare(runs: Any, ids: Any, *given: Any) -> list[uncertainty.Comparison]:
        asked.append((list(runs), *given))
        return [
            uncertainty.Comparison(
                "clip_cos", "encoder", "ridge", 0.5, 0.25, 0.75, p=0.01, p_holm=0.03, n=2
            )
        ]

    monkeypatch.setattr(stage, "compare", compare)
    one = Scored({}, pd.DataFrame({"clip_cos": [0.1, 0.2]}, index=[0, 1]))
    found = stage._comparisons(
        tiny_config(root, tmp_path, run__seed="6"), one, {"ridge": one}, np.arange(2)
    )
    assert asked == [(["encoder", "ridge"], 20, 6)]
    assert found == [
        {
            "name": "encoder minus ridge: clip_cos",
            "difference": 0.5,
            "low": 0.25,
            "high": 0.75,
            "p": 0.03,
        }
    ]


def test_few_pictures_are_told_of_and_a_single_one_refused(caplog):
    stage.warn_of_few(20)
    assert not caplog.records
    stage.warn_of_few(4)
    assert "Only 4 test images" in caplog.text and "+-0.49" in caplog.text
    with pytest.raises(UserError, match="1 test image cannot be scored"):
        stage.warn_of_few(1)


def test_what_captions_cannot_be_scored_by_is_named_and_refused_where_all_is_wanted(root, tmp_path):
    (tmp_path / INDEX).write_text(
        json.dumps({"captions": {str(int(image)): "a red car" for image in IDS}})
    )
    blind: Any = SimpleNamespace(available=False)
    config = tiny_config(root, tmp_path / "run", run__seed="6")
    found, missing = caption_table(config, PicturedTargets(), blind, tmp_path, IDS)  # type: ignore[arg-type]
    assert (
        found is not None
        and "rouge_l" in found.scores
        and "clip_text" not in found.scores
        and "bigG" in missing["clip_text"]
    )
    values = found.table["rouge_l"].to_numpy()
    assert (
        values[1] == 1
        and (found.scores["rouge_l"].low, found.scores["rouge_l"].high)
        == uncertainty.mean_interval(values, 20, 6)[1:]
    )
    with pytest.raises(UserError):
        caption_table(
            tiny_config(root, tmp_path / "run", evaluation__strict="true"),
            PicturedTargets(),
            blind,
            tmp_path,
            IDS,
        )  # type: ignore[arg-type]
    assert caption_table(config, PicturedTargets(), None, tmp_path, IDS) == (None, {})  # type: ignore[arg-type]


# --- figures beside each other --------------------------------------------------------------------


def score(value: float) -> Score:
    return Score(value, value, value, None, None, None, None, 3, None)


def test_baselines_go_into_the_columns_of_their_names():
    one = scores_sheet.with_baselines(
        {"pixcorr": score(0.5), "ssim": score(0.4)},
        {"pixcorr": score(0.1)},
        {"pixcorr": score(0.9)},
        {"ssim": score(0.3)},
    )
    assert (
        one["pixcorr"].value,
        one["pixcorr"].random,
        one["pixcorr"].oracle,
        one["pixcorr"].ridge,
    ) == (0.5, 0.1, 0.9, None)
    assert (one["ssim"].random, one["ssim"].oracle, one["ssim"].ridge) == (None, None, 0.3)


def test_runs_are_compared_image_by_image_whatever_their_order():
    """Images differ far more than the runs do, so that only a paired comparison finds the
    difference and an interval of no width.
    """
    draws = np.random.default_rng(0)
    values, order = 10 * draws.standard_normal(20), draws.permutation(20)
    runs = {"a": {"s": values + 0.25}, "b": {"s": values[order]}}
    (found,) = uncertainty.compare(runs, {"a": np.arange(20), "b": order}, 100)
    assert (found.first, found.second) == ("a", "b") and found.p < 0.01
    assert (found.difference, found.low, found.high) == pytest.approx((0.25, 0.25, 0.25))


def test_intervals_are_of_their_seed_and_comparisons_are_corrected_together():
    draws = np.random.default_rng(0)
    values = draws.standard_normal(40)
    one, again, other = (uncertainty.mean_interval(values, 100, seed) for seed in (1, 1, 2))
    assert one == again != other
    runs = {
        "a": {"s": values + 0.15, "t": values + 0.3 * draws.standard_normal(40), "u": values + 0.1},
        "b": dict.fromkeys("stu", values),
    }
    ids = dict.fromkeys("ab", np.arange(40))
    found = uncertainty.compare(runs, ids, 200, 3)
    assert [one.p_holm for one in found] == pytest.approx(
        uncertainty.holm([one.p for one in found]).tolist()
    )
    assert any(one.p_holm > one.p for one in found)


def test_a_source_brings_every_score_it_has():
    frames = [
        pd.DataFrame({name: [0.1, 0.2]}, index=pd.Index([4, 7], name="image"))
        for name in ("pixcorr", "clip_cos", "rouge_l")
    ]
    sheet = scores_sheet.MetricTable({"pixcorr": score(0.1)}, frames[0], {}, {}, {}, {})
    decoding, captions = (Scored({frame.columns[0]: score(0.2)}, frame) for frame in frames[1:])
    whole = scored_source.ScoredSource(sheet, decoding, captions, None).together()
    assert list(whole.scores) == ["pixcorr", "clip_cos", "rouge_l"] and list(whole.table) == list(
        whole.scores
    )
    assert list(scored_source.ScoredSource(sheet, None, None, None).together().scores) == [
        "pixcorr"
    ]
    words = pd.DataFrame(
        {"colour_true": ["red", ""], "colour_predicted": ["red", "red"]}, index=frames[0].index
    )
    coloured = sheet._replace(scores={**sheet.scores, scored_source.COLOUR: score(1.0)})
    named = (
        scored_source.ScoredSource(coloured, None, None, words)
        .together()
        .table[scored_source.COLOUR]
    )
    assert named[4] == 1 and np.isnan(named[7])  # an object of one colour is not asked about


def test_colours_are_scored_where_an_object_has_several():
    words = pd.DataFrame(
        {
            "colour_true": ["red", "", "blue", "red"],
            "colour_predicted": ["red", "red", "red", "blue"],
        },
        index=[1, 2, 3, 4],
    )
    found = scored_source.colour_score(words)
    assert (
        found.value == pytest.approx(1 / 3)
        and found.n == 3
        and found.chance == 1 / len(scored_source.COLOUR_NAMES)
    )


# --- several subjects -----------------------------------------------------------------------------


def test_every_subject_is_scored_in_its_own_folder_before_their_mean(monkeypatch, root, tmp_path):
    done: list[Any] = []
    monkeypatch.setattr(
        stage, "_require", lambda config: done.append(("looked", config.data.subjects))
    )
    one = lambda config, _: done.append((config.run.folder.name, config.data.subjects)) or tmp_path  # noqa: E731
    monkeypatch.setattr(stage, "evaluate_subject", one)
    monkeypatch.setattr(
        stage, "write_mean", lambda config: done.append("mean") or tmp_path / "scores.json"
    )
    assert (
        stage.evaluate(tiny_config(root, tmp_path, data__subjects="2,1"))
        == tmp_path / "scores.json"
    )
    assert done == [("looked", (2,)), ("looked", (1,)), ("subj02", (2,)), ("subj01", (1,)), "mean"]


def test_the_table_of_several_subjects_has_their_mean_and_each_of_them(monkeypatch, root, tmp_path):
    for number, value in ((1, 0.25), (2, 0.75)):
        folder = tmp_path / f"subj0{number}"
        folder.mkdir()
        fields = score(value)._asdict()
        (folder / "scores.json").write_text(json.dumps({"pixcorr": fields}))
    images = pd.DataFrame({"pixcorr": [0.2, 0.6]}, index=pd.Index([4, 7], name="image"))
    monkeypatch.setattr(subject_means, "read_run", lambda folder: SimpleNamespace(table=images))
    config = tiny_config(root, tmp_path, data__subjects="1,2", data__num_sessions="1")
    subject_means.write_mean(config)
    mean = json.loads((tmp_path / "scores.json").read_text())["pixcorr"]
    summary = uncertainty.summarise(
        {(number, 0): {4: 0.2, 7: 0.6} for number in (1, 2)}, 20, config.run.seed
    )
    assert (mean["value"], mean["low"], mean["high"]) == (0.5, summary.low, summary.high)
    rows = pd.read_csv(tmp_path / "scores.csv")
    ours = rows[rows["method"] == config.evaluation.method]
    told = {
        protocol.partition(", ")[2]: value
        for protocol, value in zip(ours["protocol"], ours["value"])
    }
    assert told == {
        "mean of subjects 1, 2; 1 session": 0.5,
        "subject 1; 1 session": 0.25,
        "subject 2; 1 session": 0.75,
    }


def test_the_mean_over_subjects_and_its_interval_are_what_they_are_by_hand():
    """Baselines are means too; a score that one subject lacks has none."""
    values = {1: {4: 0.1, 7: 0.3}, 2: {4: 0.5, 7: 0.9}}
    subjects = [
        subject_means.SubjectScores(
            number,
            {
                "pixcorr": Score(
                    value,
                    None,
                    None,
                    random=value / 2,
                    oracle=1.0,
                    ridge=None,
                    chance=0.5,
                    n=n,
                    pool=300,
                ),
                **({"ssim": score(0.4)} if number == 1 else {}),
            },
            {"pixcorr": values[number]},
        )
        for number, value, n in ((1, 0.2, 2), (2, 0.7, 4))
    ]
    found = subject_means.mean_scores(subjects, 50, 3)
    assert list(found) == ["pixcorr"]
    summary = uncertainty.summarise({(number, 0): values[number] for number in values}, 50, 3)
    mean = found["pixcorr"]
    assert (mean.value, mean.random, mean.oracle, mean.ridge, mean.chance) == (
        pytest.approx(0.45),
        pytest.approx(0.225),
        1,
        None,
        0.5,
    )
    assert (mean.low, mean.high) == (summary.low, summary.high) and (mean.n, mean.pool) == (3, 300)
