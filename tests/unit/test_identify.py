"""Identification and retrieval against the plain way of computing them."""

from __future__ import annotations

import numpy as np
import pytest

from braingen.evaluation import identification as identify
from braingen.runtime.errors import UserError


def noisy_copies(
    count: int, width: int, noise: float, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    truth = np.maximum(generator.standard_normal((count, width)), 0).astype(
        np.float32
    )  # as after a ReLU
    return truth, truth + noise * generator.standard_normal((count, width)).astype(np.float32)


def plain_two_way(truth: np.ndarray, recons: np.ndarray) -> np.ndarray:
    """The published way: all correlations of the two stacks."""
    r = np.corrcoef(truth.astype(np.float64), recons.astype(np.float64))[: len(truth), len(truth) :]
    return r < np.diag(r)[None] - 1e-13


@pytest.mark.parametrize("precision", [None, "int8", "float32", "float64"])
@pytest.mark.parametrize("noise", [0.5, 5.0, 50.0])
def test_every_precision_gives_the_wins_of_float64(
    precision: identify.Precision | None, noise: float
) -> None:
    truth, recons = noisy_copies(60, 3000, noise)
    np.testing.assert_array_equal(
        identify.two_way(truth, recons, precision).beats_NN, plain_two_way(truth, recons)
    )


def test_wins_do_not_depend_on_the_block_size(monkeypatch: pytest.MonkeyPatch) -> None:
    truth, recons = noisy_copies(30, 5000, 20.0)
    whole = identify.two_way(truth, recons, "float32").beats_NN
    monkeypatch.setattr(identify, "_BLOCK_VALUES", 30 * 1100)
    np.testing.assert_array_equal(identify.two_way(truth, recons, "float32").beats_NN, whole)


def test_ties_lose() -> None:
    truth = noisy_copies(10, 40, 0.0)[0].astype(np.float64)
    truth[7] = truth[2]
    truth[5] = 3 * truth[4] + 2  # perfectly correlated, so as near as the same picture
    recons = truth + 0.1 * np.random.default_rng(1).standard_normal(truth.shape)
    score = identify.two_way(truth, recons)
    assert score.wins_N.tolist() == [9, 9, 8, 9, 8, 8, 9, 8, 9, 9]
    assert not score.beats_NN[7, 2]
    assert not score.beats_NN[5, 4]


def test_inputs_are_left_as_they_were() -> None:
    truth, recons = noisy_copies(6, 50, 1.0)
    truth, recons = truth.astype(np.float64), recons.astype(np.float64)
    copies = truth.copy(), recons.copy()
    identify.two_way(truth, recons)
    np.testing.assert_array_equal((truth, recons), copies)


def test_truth_is_perfect_and_shuffled_is_chance() -> None:
    truth, _ = noisy_copies(80, 500, 0.0)
    assert identify.two_way(truth, truth).value == 1
    shuffled = identify.two_way(truth, truth[np.random.default_rng(1).permutation(80)]).value
    assert abs(shuffled - 0.5) < 0.12
    np.testing.assert_allclose(identify.correlation_distance(truth, truth), 0, atol=1e-12)
    both = identify.retrieval(truth, truth)
    assert both.brain_to_image.value == both.image_to_brain.value == 1


def test_two_way_falls_with_noise() -> None:
    values = [
        identify.two_way(*noisy_copies(60, 400, noise)).value for noise in (0.1, 3.0, 10.0, 40.0)
    ]
    assert values == sorted(values, reverse=True)
    assert values[0] == 1 and values[-1] < 0.9


def test_two_way_does_not_depend_on_the_order_of_images() -> None:
    truth, recons = noisy_copies(40, 300, 8.0)
    order = np.random.default_rng(2).permutation(40)
    shares = identify.two_way(truth, recons).share_N
    np.testing.assert_array_equal(
        identify.two_way(truth[order], recons[order]).share_N, shares[order]
    )


def test_correlation_distance_is_numpys() -> None:
    truth, recons = noisy_copies(6, 50, 1.0)
    expected = [1 - np.corrcoef(a, b)[0, 1] for a, b in zip(truth, recons)]
    np.testing.assert_allclose(identify.correlation_distance(truth, recons), expected, atol=1e-6)


def test_features_from_a_memory_map(tmp_path: object) -> None:
    truth, recons = noisy_copies(20, 200, 5.0)
    np.save(f"{tmp_path}/truth.npy", truth)
    mapped = np.load(f"{tmp_path}/truth.npy", mmap_mode="r")
    np.testing.assert_array_equal(
        identify.two_way(mapped, recons).beats_NN, identify.two_way(truth, recons).beats_NN
    )


def test_constant_features_are_refused() -> None:
    truth, recons = noisy_copies(5, 30, 1.0)
    recons[3] = 1.0
    with pytest.raises(UserError, match="Row 3 of the features of the reconstructions"):
        identify.two_way(truth, recons)
    with pytest.raises(UserError, match="images x features"):
        identify.two_way(truth, recons[:, :-1])


def test_directions_of_retrieval_are_what_they_are_called() -> None:
    """Two decoded embeddings near one image: from the brains that image is found twice, from the
    images each finds its own brain.
    """
    images = np.array([[1.0, 0.0], [0.0, 1.0]])
    decoded = np.array([[1.0, 0.0], [1.0, 0.3]])
    both = identify.retrieval(decoded, images)
    assert both.brain_to_image.found_N.tolist() == [1, 0]  # both brains find image 0
    assert both.image_to_brain.found_N.tolist() == [1, 1]  # each image finds its own brain
    assert both.brain_to_image.pool == 2


def test_retrieval_draws_are_seeded_and_collapsed_embeddings_are_chance() -> None:
    generator = np.random.default_rng(0)
    true = generator.standard_normal((400, 3, 5))
    decoded = true + 2 * generator.standard_normal(true.shape)
    first, second = identify.retrieval(decoded, true), identify.retrieval(decoded, true)
    assert first.brain_to_image.draws_R.tolist() == second.brain_to_image.draws_R.tolist()
    assert first.brain_to_image.pool == 300 and len(first.brain_to_image.draws_R) == 30
    assert first.brain_to_image.queries_N.sum() == 30 * 300
    same = np.ones_like(true)
    assert identify.retrieval(same, true).image_to_brain.value == pytest.approx(1 / 300)


def test_cosine_flattens_tokens() -> None:
    true = np.random.default_rng(0).standard_normal((4, 2, 3))
    np.testing.assert_allclose(identify.cosine(3 * true, true), 1)
    with pytest.raises(UserError, match="Row 1"):
        identify.cosine(true * np.array([1, 0, 1, 1])[:, None, None], true)
