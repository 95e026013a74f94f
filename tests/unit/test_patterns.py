"""Laws of activation patterns, on responses whose forward model is known."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from braingen.interpret import patterns
from braingen.interpret.patterns import ClassReadOut, activation_patterns
from braingen.runtime.errors import UserError

IMAGES, VOXELS = 3000, 12
CARRIERS, SILENCERS, NOTHING = slice(0, 4), slice(4, 8), slice(8, 12)
"""Voxels that respond to the source; voxels that only share the carriers' noise; voxels that have
nothing to do with anything.
"""


class Brain:
    """One source, seen by some voxels through noise that others share: three presentations of every
    image.
    """

    def __init__(self, seed: int = 0, images: int = IMAGES) -> None:
        rng = np.random.default_rng(seed)
        self.source_N = rng.standard_normal(images)
        self.forward_V = np.zeros(VOXELS)
        self.forward_V[CARRIERS] = 0.5, 1.0, 1.5, -1.0
        mixing_VK = np.zeros(
            (VOXELS, 4)
        )  # noise: voxel k of the carriers and voxel k of the silencers share it
        mixing_VK[np.arange(4), np.arange(4)] = 2.0
        mixing_VK[np.arange(4, 8), np.arange(4)] = 2.0
        noise_NRV = rng.standard_normal((images, 3, 4)) @ mixing_VK.T + 0.7 * rng.standard_normal(
            (images, 3, VOXELS)
        )
        self.response_NRV = self.source_N[:, None, None] * self.forward_V + noise_NRV
        self.noise_VV = mixing_VK @ mixing_VK.T + 0.49 * np.eye(VOXELS)
        self.weight_V = np.linalg.solve(
            self.noise_VV + np.outer(self.forward_V, self.forward_V), self.forward_V
        )  # the best linear decoder
        self.rows_NR = np.arange(3 * images).reshape(images, 3)

    def read(self, rows: np.ndarray) -> np.ndarray:
        return self.response_NRV.reshape(-1, VOXELS)[rows]

    def patterns(
        self,
        weight_V: np.ndarray | None = None,
        order: np.ndarray | slice = slice(None),
        rows_NR: np.ndarray | None = None,
    ):
        weight_V = (self.weight_V if weight_V is None else weight_V)[order]
        rows_NR = self.rows_NR if rows_NR is None else rows_NR
        return activation_patterns(
            lambda rows: self.read(rows)[:, order],
            rows_NR,
            lambda voxels: (voxels @ weight_V)[:, None],
        )


def test_a_pattern_is_the_forward_model_where_weights_are_not():
    brain = Brain()
    found_V = brain.patterns().map_CV[0]
    assert (
        np.abs(brain.weight_V[SILENCERS]).max() > 0.5 * np.abs(brain.weight_V[CARRIERS]).max()
    )  # they cancel noise
    assert np.corrcoef(brain.weight_V, brain.forward_V)[0, 1] < 0.8
    floor = (
        3 / np.sqrt(IMAGES) / np.sqrt(brain.patterns().floor)
    )  # three standard errors of a voxel without signal
    assert np.abs(found_V[SILENCERS]).max() < floor and np.abs(found_V[NOTHING]).max() < floor
    np.testing.assert_array_equal(np.sign(found_V[CARRIERS]), np.sign(brain.forward_V[CARRIERS]))
    # a carrier repeats nothing but the source: its pattern is the reliability of the decoder,
    # whatever its own noise
    told_RN = np.einsum("nrv,v->rn", brain.response_NRV, brain.weight_V)
    alone = np.mean([np.corrcoef(each_N, brain.source_N)[0, 1] for each_N in told_RN])
    pair = np.mean(
        [
            np.corrcoef(told_RN[[k for k in range(3) if k != r]].mean(0), brain.source_N)[0, 1]
            for r in range(3)
        ]
    )
    np.testing.assert_allclose(np.abs(found_V[CARRIERS]), (alone + pair) / 2, atol=0.06)


def test_a_decoder_that_listens_to_noise_gives_it_no_pattern():
    brain = Brain(1)
    weight_V = np.ones(VOXELS)
    floor = 3 / np.sqrt(IMAGES) / np.sqrt(brain.patterns().floor)
    found_V = brain.patterns(weight_V).map_CV[0]
    assert np.abs(found_V[SILENCERS]).max() < floor and np.abs(found_V[NOTHING]).max() < floor
    mean_NV = brain.response_NRV.mean(1)  # the covariance within the same presentations has it
    within_V = np.array([np.corrcoef(mean_NV @ weight_V, voxel)[0, 1] for voxel in mean_NV.T])
    assert within_V[SILENCERS].min() > floor / 2 and found_V[CARRIERS][1] > 0.3


def test_permuting_voxels_permutes_the_pattern():
    brain, order = Brain(2, 60), np.random.default_rng(0).permutation(VOXELS)
    straight, moved = brain.patterns(), brain.patterns(order=order)
    np.testing.assert_allclose(moved.map_CV, straight.map_CV[:, order], atol=1e-5)
    np.testing.assert_allclose(moved.reliability_V, straight.reliability_V[order], atol=1e-5)


def test_reliability_is_the_share_of_variance_that_comes_back():
    brain = Brain(3)
    expected = brain.forward_V**2 / (brain.forward_V**2 + np.diag(brain.noise_VV))
    np.testing.assert_allclose(brain.patterns().reliability_V, expected, atol=0.03)


def test_missing_presentations_are_left_out_and_single_ones_refused():
    brain = Brain(4, 400)
    rows_NR = brain.rows_NR.copy()
    rows_NR[300:, 2] = -1
    rows_NR[380:, 1] = -1
    again = brain.patterns(rows_NR=rows_NR[:380])
    np.testing.assert_array_equal(
        brain.patterns(rows_NR=rows_NR).map_CV, again.map_CV
    )  # the last 20 were shown once
    assert np.corrcoef(again.map_CV[0, CARRIERS], brain.forward_V[CARRIERS])[0, 1] > 0.8
    with pytest.raises(UserError, match="shown twice"):
        brain.patterns(rows_NR=rows_NR[380:])


@pytest.mark.parametrize("numbers", [6, 200])  # fewer and more than there are images
def test_a_read_out_is_the_logistic_regression_of_every_class(numbers):
    rng = np.random.default_rng(0)
    member = np.zeros((80, 4), dtype=bool)
    member[np.arange(80), rng.integers(2, size=80)] = True
    member[:, 2] = rng.random(80) < 0.3  # an image may have several
    embedding = 3 * rng.standard_normal((80, numbers)) + 5
    embedding[:, 0] += 6 * member[:, 0]
    found = ClassReadOut.learn(embedding, member)
    centred = embedding - embedding.mean(0)
    scaled = centred / np.sqrt(np.square(centred).mean())
    for number in range(3):
        expected = (
            LogisticRegression(C=0.1, max_iter=2000, tol=1e-6)
            .fit(scaled, member[:, number])
            .predict_proba(scaled)[:, 1]
        )
        np.testing.assert_allclose(found.probability(embedding)[:, number], expected, atol=0.005)
    assert (found.weight_CF[3] == 0).all()  # nobody has it


def test_a_pattern_does_not_depend_on_how_many_images_are_read_at_once(monkeypatch):
    brain = Brain(4, 90)
    brain.rows_NR[::7, 2] = -1  # some were shown twice only
    whole = None
    for images in (1000, 13):
        monkeypatch.setattr(patterns, "_IMAGES", images)
        found = brain.patterns()
        whole = whole or found
        np.testing.assert_allclose(found.map_CV, whole.map_CV, atol=1e-6)
        np.testing.assert_allclose(found.reliability_V, whole.reliability_V, atol=1e-6)
