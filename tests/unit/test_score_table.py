"""The score sheet from pictures to pasted table: laws, refusals, what is missing, and what is
printed.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, interpolate

from braingen.evaluation import captions, decoding, feature_store
from braingen.evaluation import image_pairs as pairs
from braingen.evaluation import metric_table as sheet
from braingen.evaluation import tables as table
from braingen.evaluation.metric_type import ALIKE, Metric
from braingen.evaluation.metrics import METRICS, metric
from braingen.runtime.errors import UserError
from braingen.types import Score

pytestmark = pytest.mark.slow  # left out of `make quick`


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    """The stand-ins' scores, which no registry knows."""
    for name in ("two_way_pooled", "two_way_blind", "brightness_accuracy"):
        monkeypatch.setitem(
            METRICS, name, Metric(name, name, "a stand-in's", ALIKE, 99, percent=True, digits=1)
        )


class Pooled:
    """A stand-in for a comparison network: mean colours of patches."""

    name, weights = "pooled", "0123"
    calls = 0

    def features(self, images_B3HW: Tensor) -> Tensor:
        self.calls += len(images_B3HW)
        return avg_pool2d(images_B3HW, 32).flatten(1)


class Distance(Pooled):
    name, use = "swav", "distance"


class Between(Pooled):
    name, use = "lpips", "pair"

    def distance(self, truth: Tensor, recons: Tensor) -> Tensor:
        return (truth - recons).abs().mean((1, 2, 3))


def pictures(count: int = 14, seed: int = 0, side: int = 32) -> np.ndarray:
    noise = torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
    return interpolate(noise, size=(side, side), mode="bilinear").numpy()


IDS = np.arange(100, 114)
TRUTH = pictures()
NETWORKS = (Pooled(), Distance(), Between())


def noisy(level: float, seed: int = 1) -> np.ndarray:
    noise = np.random.default_rng(seed).standard_normal(TRUTH.shape).astype(np.float32)
    return np.clip(TRUTH + level * noise, 0, 1)


def scores_of(recons: np.ndarray, ids: np.ndarray = IDS, **settings: object) -> sheet.MetricTable:
    return sheet.score_images(TRUTH, IDS, recons, ids, NETWORKS, resamples=300, **settings)


def test_truth_against_itself_is_perfect() -> None:
    scores = scores_of(TRUTH).scores
    perfect = {
        "pixcorr": 1,
        "ssim": 1,
        "ssim_columns": 1,
        "mse": 0,
        "psnr": 100,
        "two_way_pooled": 1,
        "swav": 0,
        "lpips": 0,
    }
    assert {name: pytest.approx(score.value, abs=1e-5) for name, score in scores.items()} == perfect
    assert {score.n for score in scores.values()} == {14}
    assert scores["two_way_pooled"].chance == 0.5


def test_shuffled_truth_is_chance() -> None:
    interval = scores_of(TRUTH, np.roll(IDS, 5)).scores["two_way_pooled"]
    assert interval.low is not None and interval.high is not None
    assert interval.low < 0.5 < interval.high


def test_scores_do_not_depend_on_order_or_batch() -> None:
    recons = noisy(0.3)
    order = np.random.default_rng(0).permutation(14)
    first = scores_of(recons)
    with feature_store.FeatureStore(batch=7) as store:
        second = scores_of(recons[order], IDS[order], store=store)
    np.testing.assert_allclose(first.table, second.table, rtol=1e-5)
    for name, score in first.scores.items():
        np.testing.assert_allclose(score[:3], second.scores[name][:3], rtol=1e-5)


def test_scores_do_not_depend_on_the_number_of_threads() -> None:
    recons, before = noisy(0.3), torch.get_num_threads()
    tables = []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            tables.append(scores_of(recons).table)
    finally:
        torch.set_num_threads(before)
    np.testing.assert_allclose(*tables, rtol=1e-5)


def test_two_way_scores_fall_with_noise() -> None:
    values = [
        scores_of(noisy(level)).scores["two_way_pooled"].value for level in (0.0, 0.6, 2.0, 20.0)
    ]
    assert values[0] == 1 and values == sorted(values, reverse=True) and values[-1] < 0.9


def test_noise_is_found_worse_and_a_seed_is_not() -> None:
    runs = {
        "a": scores_of(noisy(0.3, 1)),
        "b": scores_of(noisy(0.3, 2)),
        "worse": scores_of(noisy(0.5, 3)),
    }
    found = {(c.first, c.second, c.score): c for c in sheet.compare_metric_tables(runs)}
    for name in ("pixcorr", "ssim", "mse", "lpips"):
        assert not found["a", "b", name].differs
        assert found["a", "worse", name].differs
        assert (found["a", "worse", name].difference > 0) == metric(name).higher_is_better


def test_features_of_the_truth_are_computed_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = Pooled()
    matched = pairs.match(TRUTH, IDS, noisy(0.2), IDS)
    for _ in range(2):
        sheet.metric_table_of(
            matched, [network], store=feature_store.FeatureStore(tmp_path), resamples=10
        )
    assert network.calls == 14 + 2 * 14
    assert len(list(tmp_path.iterdir())) == 1  # nothing but the truth is left
    changed = pairs.match(TRUTH[::-1], IDS, noisy(0.2), IDS)
    sheet.metric_table_of(
        changed, [network], store=feature_store.FeatureStore(tmp_path), resamples=10
    )
    assert network.calls == 14 + 2 * 14 + 28
    monkeypatch.setattr(feature_store, "_IN_MEMORY", 0)  # on the disk without a folder
    in_memory = sheet.metric_table_of(
        matched, [network], store=feature_store.FeatureStore(tmp_path), resamples=10
    ).table
    with feature_store.FeatureStore() as store:
        np.testing.assert_array_equal(
            sheet.metric_table_of(matched, [network], store=store, resamples=10).table, in_memory
        )


def test_random_weights_are_never_a_score() -> None:
    network = Pooled()
    network.weights = None  # type: ignore[assignment]
    with pytest.raises(UserError, match="random weights"):
        sheet.score_images(TRUTH, IDS, TRUTH, IDS, [network])


def test_a_picture_without_features_is_named() -> None:
    class Blind(Pooled):
        name = "blind"

        def features(self, images_B3HW: Tensor) -> Tensor:
            features = super().features(images_B3HW)
            features[:, :] *= (images_B3HW[:, 0, 0, 0] != 0)[:, None]
            return features

    recons = noisy(0.3)
    recons[:, 0, :2, :2] = 0.5
    recons[4, 0, :2, :2] = 0
    truth = TRUTH.copy()
    truth[:, 0, :2, :2] = 0.5
    with pytest.raises(UserError, match="image 104"):
        sheet.score_images(truth, IDS, recons, IDS, [Blind()])


def test_read_outs_and_baselines() -> None:
    bright = {int(i): int(image.mean() > 0.5) for i, image in zip(IDS, TRUTH)}
    readout = sheet.SceneReadout(
        "brightness", lambda x: (x.mean((1, 2, 3)) > 0.5).long(), bright, chance=0.5
    )
    matched = pairs.match(TRUTH, IDS, TRUTH, IDS)
    result = sheet.metric_table_of(matched, readouts=[readout], resamples=20)
    assert result.scores["brightness_accuracy"][:3] == pytest.approx(
        (1, 0.025 ** (1 / 14), 1)
    )  # all of 14 right
    together = sheet.with_baselines(
        result.scores, random=scores_of(noisy(0.9)).scores, oracle=result.scores
    )
    assert (
        together["pixcorr"].oracle == pytest.approx(1)
        and together["pixcorr"].random is not None
        and together["pixcorr"].random < 1
    )
    assert together["pixcorr"].ridge is None and together["brightness_accuracy"].random is None
    with pytest.raises(UserError, match="image 100"):
        sheet.metric_table_of(matched, readouts=[readout._replace(truth={})])


def test_decoder_scores_do_not_depend_on_order_and_state_their_pool() -> None:
    generator = np.random.default_rng(0)
    true = generator.standard_normal((50, 2, 8))
    decoded = true + generator.standard_normal(true.shape)
    scores, values = decoding.decoder_scores(
        decoded, true, np.arange(50), pool=20, draws=5, resamples=100
    )
    order = generator.permutation(50)
    again, _ = decoding.decoder_scores(
        decoded[order], true[order], order, pool=20, draws=5, resamples=100
    )
    assert scores == again
    assert (
        scores["retrieval_brain_to_image"].pool == 20
        and scores["retrieval_brain_to_image"].chance == 1 / 20
    )
    assert values.index.tolist() == list(range(50))
    small, _ = decoding.decoder_scores(decoded, true, np.arange(50), resamples=100)
    assert small["retrieval_image_to_brain"].pool == 50
    parts = decoding.scores_by_part(
        {"level 0": decoded, "level 1": true}, true, np.arange(50), resamples=20
    )
    assert parts.loc[parts.part == "level 1", "value"].tolist() == pytest.approx([1, 1, 1])


def rows() -> list[table.TableRow]:
    ours = {
        "pixcorr": Score(0.31, 0.29, 0.33, 0.02, 0.6, None, None, 1000, None),
        "two_way_clip": Score(0.921, 0.91, 0.93, 0.5, 0.99, None, 0.5, 1000, None),
        "swav": Score(0.35, 0.34, 0.36, None, None, None, None, 1000, None),
    }
    return [*table.rows_of("ours_1", "simulated, subject 1", ours), *table.PUBLISHED]


def test_tables_have_the_fields_order_and_published_figures() -> None:
    text = table.markdown(rows())
    head = text.splitlines()[0]
    order = [
        head.index(title)
        for title in ("PixCorr", "SSIM", "Alex(2)", "Alex(5)", "Incep", "CLIP", "Eff", "SwAV")
    ]
    assert order == sorted(order)
    assert ".310 [.290, .330]" in text and "92.1 [91.0, 93.0]" in text
    published = next(
        line
        for line in text.splitlines()
        if line.startswith("| MindEye2 | NSD, mean") and "40 sessions" in line
    )
    assert "| 1000 | .322 | .431 | 96.1 | 98.6 | 95.4 | 93.0 | .619 | .344 |" in published
    assert "oracle: true embeddings" in text and ".600" in text


def test_latex_is_escaped_and_the_best_is_bold() -> None:
    text = table.latex(rows())
    assert (
        r"ours\_1" in text and r"\toprule" in text and r"\textbf{.320}" in text
    )  # Brain-IT's SwAV is the lowest
    body = [line for line in text.splitlines() if line.endswith(r"\\")]
    assert len({line.replace(r"\&", "").count("&") for line in body}) == 1


def test_csv_has_a_line_per_score() -> None:
    lines = table.comma_separated(rows()[:1]).splitlines()
    assert (
        lines[0] == "method,protocol,score,better,value,low,high,random,oracle,ridge,chance,n,pool"
        ",encoding_model,low_level"
    )
    assert (
        lines[1] == 'ours_1,"simulated, subject 1",pixcorr,higher,0.31,0.29,0.33,0.02,0.6,,,1000,,,'
    )


def test_json_has_null_for_what_is_undefined() -> None:
    plain = table.as_json({"psnr": Score(float("inf"), 1.0, None, None, None, None, None, 3, None)})
    assert plain["psnr"]["value"] is None and plain["psnr"]["low"] == 1.0
    assert list(plain["psnr"]) == [
        "value",
        "low",
        "high",
        "random",
        "oracle",
        "ridge",
        "chance",
        "n",
        "pool",
        "encoding_model",
        "low_level",
    ]


def test_best_and_worst_pictures() -> None:
    recons = TRUTH.copy()
    recons[3] = noisy(0.9)[3]
    recons[5] = noisy(0.5)[5]
    best, worst = table.best_and_worst(scores_of(recons).table, 2)
    assert worst.tolist() == [103, 105] and not {103, 105} & set(best)


def test_captions_come_from_the_training_set() -> None:
    training = np.eye(3)
    said = captions.nearest_captions(
        np.array([[0.1, 0.9, 0], [1, 0, 0]]),
        training,
        ["a dog", "a red car", "a bus"],
        [1, 2, 3],
        [7, 8],
    )
    assert said == ["a red car", "a dog"]
    with pytest.raises(UserError, match="image 2"):
        captions.nearest_captions(training, training, ["a", "b", "c"], [1, 2, 3], [2, 9])


def test_caption_scores_prefer_the_right_caption() -> None:
    seen = [["a red car on the road", "one car"], ["two dogs play in the snow"]]
    words = sorted({word for true in seen for caption in true for word in caption.split()})

    def embed(texts: list[str]) -> np.ndarray:
        return (
            np.array([[text.split().count(word) for word in words] for text in texts], dtype=float)
            + 0.01
        )

    right, values, missing = captions.caption_scores(
        ["a red car on the road", "two dogs play in the snow"], seen, embed, resamples=10
    )
    wrong, _, _ = captions.caption_scores(
        ["two dogs play in the snow", "one car"], seen, embed, resamples=10
    )
    assert right["rouge_l"].value == pytest.approx(1) and right["clip_text"].value == pytest.approx(
        1
    )
    for name in right:
        assert (wrong[name].value or 0) < (right[name].value or 0)
    assert ("meteor" in right) != ("meteor" in missing)
    assert "meteor" in right or captions.METEOR_LINE in missing["meteor"]
    assert values["rouge_l"].shape == (2,)
