"""Intervals cover what they should, tests keep their level, corrections are the textbook's."""

from __future__ import annotations

from math import comb

import numpy as np
import pytest
from scipy import stats

from braingen.evaluation import identification as identify
from braingen.evaluation import uncertainty
from braingen.runtime.errors import UserError


@pytest.mark.slow
def test_interval_of_a_mean_is_the_normal_one_for_many_images() -> None:
    values = np.random.default_rng(0).normal(0.4, 0.2, 1000)
    interval = uncertainty.mean_interval(values)
    half = 1.96 * values.std(ddof=1) / np.sqrt(1000)
    assert interval.value == pytest.approx(values.mean())
    assert interval.low == pytest.approx(values.mean() - half, abs=half / 10)
    assert interval.high == pytest.approx(values.mean() + half, abs=half / 10)
    assert uncertainty.mean_interval(values) == interval


@pytest.mark.slow
def test_two_way_interval_covers_the_true_value() -> None:
    """95 % intervals of 100 images hold the value of a large set about 95 times in 100; intervals
    of the shares alone do so less often.
    """

    def features(seed: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        generator = np.random.default_rng(seed)
        truth = generator.standard_normal((count, 5))
        return truth, truth + 1.5 * generator.standard_normal((count, 5))

    value = identify.two_way(*features(999, 2000)).value
    inside = 0
    for seed in range(100):
        interval = uncertainty.two_way_interval(
            identify.two_way(*features(seed, 60)).beats_NN, resamples=400
        )
        inside += interval.low <= value <= interval.high
    assert 88 <= inside <= 100


@pytest.mark.slow
def test_what_an_image_adds_in_both_parts_has_the_spread_of_the_score() -> None:
    """Its mean is the score; its standard error is the spread of the score over sets of images."""
    values, errors = [], []
    for seed in range(200):
        generator = np.random.default_rng(seed)
        truth = generator.standard_normal((40, 5))
        outcome = identify.two_way(truth, truth + 2.0 * generator.standard_normal((40, 5)))
        by_image = uncertainty.two_way_by_image(outcome.beats_NN)
        assert by_image.mean() == pytest.approx(outcome.value)
        values.append(outcome.value)
        errors.append(by_image.std(ddof=1) / np.sqrt(40))
    assert np.mean(errors) == pytest.approx(np.std(values), rel=0.15)


@pytest.mark.slow
def test_two_seeds_of_a_decoder_come_out_as_not_different() -> None:
    """Two-way scores of two equally noisy readings of the same images: called different about once
    in twenty.
    """
    called = 0
    for seed in range(120):
        generator = np.random.default_rng(seed)
        truth = generator.standard_normal((40, 6))
        both = [
            identify.two_way(truth, truth + 2.0 * generator.standard_normal((40, 6))).beats_NN
            for _ in range(2)
        ]
        difference = uncertainty.two_way_by_image(both[0]) - uncertainty.two_way_by_image(both[1])
        called += uncertainty.permutation_p(difference, permutations=400) < 0.05
    assert called <= 12


def test_ratio_interval_of_equal_weights_is_the_mean() -> None:
    found = np.random.default_rng(0).random(50)
    one = uncertainty.mean_interval(found)
    two = uncertainty.ratio_interval(3 * found, np.full(50, 3))
    np.testing.assert_allclose(one, two)


def test_permutation_test_is_scipys() -> None:
    differences = np.random.default_rng(3).normal(0.5, 1, 10)
    theirs = stats.permutation_test(
        (differences,), np.mean, permutation_type="samples", n_resamples=np.inf
    )
    assert uncertainty.permutation_p(differences) == pytest.approx(theirs.pvalue)


def test_permutation_test_keeps_its_level() -> None:
    generator = np.random.default_rng(0)
    below = [
        uncertainty.permutation_p(generator.standard_normal(30), permutations=200) < 0.05
        for _ in range(300)
    ]
    assert 0.02 < np.mean(below) < 0.09


def test_holm_is_the_textbooks() -> None:
    np.testing.assert_allclose(
        uncertainty.holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02]
    )
    np.testing.assert_allclose(uncertainty.holm([0.9, 0.8]), [1, 1])


def test_seeds_are_not_different_and_noise_is_worse() -> None:
    generator = np.random.default_rng(0)
    images = np.arange(200)
    quality = generator.normal(0.3, 0.1, 200)
    runs = {
        "seed 0": {"pixcorr": quality + generator.normal(0, 0.03, 200)},
        "seed 1": {"pixcorr": quality + generator.normal(0, 0.03, 200)},
        "noisy": {"pixcorr": quality - 0.05 + generator.normal(0, 0.03, 200)},
    }
    found = uncertainty.compare(runs, dict.fromkeys(runs, images))
    assert [(c.first, c.second) for c in found] == [
        ("seed 0", "seed 1"),
        ("seed 0", "noisy"),
        ("seed 1", "noisy"),
    ]
    assert [c.differs for c in found] == [False, True, True]
    assert 0.03 < found[1].low < found[1].difference < found[1].high < 0.07


def test_comparison_goes_by_image_id() -> None:
    values = np.arange(20.0)
    order = np.random.default_rng(0).permutation(20)
    found = uncertainty.compare(
        {"a": {"x": values}, "b": {"x": values[order]}}, {"a": np.arange(20), "b": order}
    )
    assert found[0].difference == 0 and found[0].p == 1
    with pytest.raises(UserError, match="different images"):
        uncertainty.compare(
            {"a": {"x": values}, "b": {"x": values}}, {"a": np.arange(20), "b": np.arange(1, 21)}
        )


def test_summary_averages_seeds_within_subjects() -> None:
    generator = np.random.default_rng(0)
    values = {
        (subject, seed): dict(enumerate(generator.normal(subject, 0.1, 100).tolist()))
        for subject in (1, 2)
        for seed in range(3)
    }
    summary = uncertainty.summarise(values)
    assert summary.value == pytest.approx(1.5, abs=0.02)
    assert summary.low < summary.value < summary.high
    assert summary.between_subjects == pytest.approx(np.sqrt(0.5), abs=0.05)
    assert summary.between_seeds is not None and summary.between_seeds < 0.05
    assert (summary.subjects, summary.seeds) == (2, 3)


def test_undefined_values_are_refused() -> None:
    with pytest.raises(UserError, match="1 of 3"):
        uncertainty.mean_interval(np.array([1.0, np.nan, 2.0]))


@pytest.mark.slow
def test_intervals_over_subjects_that_share_images_hold_the_truth() -> None:
    """Four subjects, the same 60 images: 95 % intervals hold the truth in 95 % of 400 experiments,
    drawn per subject far less often.
    """
    generator = np.random.default_rng(0)
    held = {"once": 0, "per subject": 0}
    experiments, subjects, images, resamples = 400, 4, 60, 300
    for number in range(experiments):
        shared = generator.normal(0, 1, images)
        values = {
            (who, 0): dict(enumerate((shared + generator.normal(0, 0.5, images)).tolist()))
            for who in range(subjects)
        }
        found = uncertainty.summarise(values, resamples, number)
        held["once"] += found.low <= 0 <= found.high
        arrays = [np.array(list(each.values())) for each in values.values()]
        alone = np.mean(
            [each[generator.integers(0, images, (resamples, images))].mean(1) for each in arrays],
            axis=0,
        )
        low, high = np.percentile(alone, [2.5, 97.5])
        held["per subject"] += low <= 0 <= high
    coverage = {way: count / experiments for way, count in held.items()}
    assert 0.92 <= coverage["once"] <= 0.98 and coverage["per subject"] < 0.8


def test_a_summary_goes_by_image_id() -> None:
    runs = {(1, 0): {1: 0.0, 2: 1.0, 3: 1.0}, (2, 0): {3: 1.0, 4: 0.0}}
    found = uncertainty.summarise(runs, 200)
    assert (
        found.value == pytest.approx((2 / 3 + 1 / 2) / 2) and found.low < found.value < found.high
    )
    with pytest.raises(UserError, match="Runs of subject 1 scored different images"):
        uncertainty.summarise({(1, 0): {1: 0.0, 2: 1.0}, (1, 1): {1: 0.0, 3: 1.0}})


@pytest.mark.parametrize("right", [0, 1, 60, 119, 120])
def test_the_interval_of_a_share_is_exact(right: int) -> None:
    """Clopper and Pearson's law: at either end, as many or more (fewer) right images have a
    probability of 2.5 %.
    """
    values = np.r_[np.ones(right), np.zeros(120 - right)]
    found = uncertainty.share_interval(values)

    def chances(share: float) -> np.ndarray:
        return np.array([comb(120, k) * share**k * (1 - share) ** (120 - k) for k in range(121)])

    assert found.value == right / 120
    assert (
        found.low == 0
        if right == 0
        else chances(found.low)[right:].sum() == pytest.approx(0.025, rel=1e-6)
    )
    assert (
        found.high == 1
        if right == 120
        else chances(found.high)[: right + 1].sum() == pytest.approx(0.025, rel=1e-6)
    )
    assert (
        uncertainty.ratio_interval(values * 3, np.full(120, 3.0)) == found
    )  # retrieval from the same pool three times
    assert uncertainty.summarise({(1, 0): dict(enumerate(values))}, share=True)[
        :3
    ] == pytest.approx(found)
    with pytest.raises(UserError, match=r"1 \(correct\) or 0 \(wrong\)"):
        uncertainty.share_interval(np.array([0.5, 1]))


def test_a_perfect_score_is_not_certain() -> None:
    perfect = ~np.eye(120, dtype=bool)
    assert uncertainty.two_way_interval(perfect, 50) == pytest.approx((1, 0.96973, 1), abs=2e-5)
    assert uncertainty.two_way_interval(~perfect & perfect, 50) == pytest.approx(
        (0, 0, 0.03027), abs=2e-5
    )
    asked = np.r_[
        np.full(60, 3.0), np.full(60, 5.0)
    ]  # in random pools some images are asked for more often
    assert uncertainty.ratio_interval(asked, asked) == pytest.approx((1, 0.96973, 1), abs=2e-5)
