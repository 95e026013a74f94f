"""Gains of regions: found from trials, and followed in decoding."""

from __future__ import annotations

from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import pandas as pd
import pytest
import torch

from braingen.config import load_config
from braingen.encoders.gated_readout import GatedReadout, GatedWeights
from braingen.encoders.linear_readout import LinearReadout
from braingen.encoders.ridge import LinearMap
from braingen.encoding_model.library import Inverse, Library
from braingen.encoding_model.model import EncodingModel
from braingen.encoding_model.noise import NoiseModel
from braingen.encoding_model.region_gains import RegionGains, fit_region_gains
from braingen.encoding_model.responses import average_array
from braingen.training import linear_fit
from braingen.training.linear_fit import LARGER, cosines, fitting_size, scaled
from braingen.types import Trials

REGIONS, WIDTH, FEATURES = 4, 30, 8


class World(NamedTuple):
    """Trials of regions whose gains vary."""

    features_NP: np.ndarray
    image_T: np.ndarray
    response_TV: np.ndarray
    gain_TA: np.ndarray
    region_V: np.ndarray
    signal_NV: np.ndarray


def made_up(images: int = 300, repeats: int = 3, spread: float = 0.6, seed: int = 0) -> World:
    """x = g (s + b) - b + noise; b and s of similar size."""
    draws = np.random.default_rng(seed)
    voxels = REGIONS * WIDTH
    region_V = draws.permutation(np.repeat(np.arange(REGIONS), WIDTH))
    features_NP = draws.normal(size=(images, FEATURES)).astype(np.float32)
    signal_NV = features_NP @ draws.normal(size=(FEATURES, voxels)) / FEATURES**0.5
    image_T = np.repeat(np.arange(images), repeats)
    gain_TA = np.maximum(1 + spread * draws.normal(size=(len(image_T), REGIONS)), 0.05)
    baseline_V = 1 + 0.3 * draws.normal(size=voxels)
    response_TV = gain_TA[:, region_V] * (signal_NV[image_T] + baseline_V) - baseline_V
    response_TV += 1.5 * draws.normal(size=response_TV.shape)
    return World(features_NP, image_T, response_TV.astype(np.float32), gain_TA, region_V, signal_NV)


def fitted(world: World, regions: int = REGIONS) -> tuple[EncodingModel, RegionGains]:
    known = average_array(world.response_TV, world.image_T)
    features, scales = {"embedding": world.features_NP}, np.ones((1, 1))
    model = EncodingModel.fit(features, known, scales)
    found = fit_region_gains(
        features, known, world.image_T, lambda rows: world.response_TV[rows], model, regions, 2000
    )
    return model, found


@pytest.fixture(scope="module")
def world() -> World:
    return made_up()


@pytest.fixture(scope="module")
def gains(world: World) -> RegionGains:
    return fitted(world)[1]


def read_out(weights: GatedWeights, regions: int = REGIONS) -> GatedReadout:
    found = GatedReadout(len(weights.region_V), len(weights.mean_R), regions)
    found.take(weights)
    return found


def test_voxels_that_fluctuate_together_are_a_region(world, gains):
    pairs = gains.region_V[:, None] == gains.region_V
    planted = world.region_V[:, None] == world.region_V
    assert (pairs == planted).mean() > 0.95


def test_the_router_finds_the_gain_of_every_region_in_every_trial(world, gains):
    read = read_out(gains.weights(world.features_NP))
    gain_TA = read.gains(torch.from_numpy(world.response_TV)).numpy()
    for region in range(REGIONS):
        members = np.bincount(gains.region_V[world.region_V == region], minlength=REGIONS)
        mine = gain_TA[:, members.argmax()]
        assert np.corrcoef(mine, world.gain_TA[:, region])[0, 1] > 0.8
        assert 0.35 < mine.std() < 0.9 and abs(mine.mean() - 1) < 0.15  # planted: 0.6 and 1


def test_where_nothing_grows_the_signal_no_gain_is_found():
    """Regions that add the same to every picture have fluctuations and no gains."""
    world = made_up(spread=0.0)
    draws = np.random.default_rng(1)
    added_TA = draws.normal(size=world.gain_TA.shape)
    response_TV = world.response_TV + added_TA[:, world.region_V].astype(np.float32)
    _, found = fitted(world._replace(response_TV=response_TV))
    assert found.growth_A.max() < 0.1
    assert np.abs(found.loading_V).mean() > 0.7


def test_decoding_that_follows_the_gains_is_better(world):
    """Left-out images, beside the inversion with fixed weights: from single trials."""
    known = world._replace(
        features_NP=world.features_NP[:200],
        image_T=world.image_T[:600],
        response_TV=world.response_TV[:600],
    )
    model, found = fitted(known)
    truth_TP = world.features_NP[world.image_T[600:]]
    judged_TV = world.response_TV[600:]
    predicted = model.predict({"embedding": known.features_NP})
    fixed = Inverse(Library(known.features_NP, predicted), model.noise).gaussian(judged_TV, 1.0)
    followed = read_out(found.weights(known.features_NP))(torch.from_numpy(judged_TV)).numpy()
    mean = known.features_NP.mean(0)
    gain = cosines(followed - mean, truth_TP - mean) - cosines(fixed - mean, truth_TP - mean)
    assert gain.mean() > 3 * gain.std() / len(gain) ** 0.5 and gain.mean() > 0.01


def weights_of(draws: np.random.Generator, growth: float) -> GatedWeights:
    voxels, kept, rank = 12, 5, 3
    return GatedWeights(
        np.arange(voxels) % REGIONS,
        draws.normal(size=voxels).astype(np.float32),
        np.full(REGIONS, growth, dtype=np.float32),
        draws.normal(size=voxels).astype(np.float32),
        draws.normal(size=(kept, voxels)).astype(np.float32),
        (0.5 + draws.random(voxels)).astype(np.float32),
        draws.normal(size=(2, voxels)).astype(np.float32),
        draws.normal(size=(kept, rank)).astype(np.float32),
        draws.normal(size=rank).astype(np.float32),
        0.7,
    )


def by_hand(weights: GatedWeights, response_V: np.ndarray) -> np.ndarray:
    """The mean of e given the response, by dense matrices."""
    w, member_VA = weights, np.eye(REGIONS)[weights.region_V]
    noise_VV = np.diag(w.diagonal_V) + w.factor_FV.T @ w.factor_FV
    loading_VA = member_VA * w.loading_V[:, None]
    around_VV = np.linalg.inv(noise_VV + w.direction_KV.T @ w.direction_KV)
    z_A = np.linalg.solve(
        np.eye(REGIONS) + loading_VA.T @ around_VV @ loading_VA,
        loading_VA.T @ around_VV @ (response_V - w.mean_V),
    )
    gain_V = np.maximum(1 + w.growth_A * z_A, 0.05)[w.region_V]
    inverse_VV = w.precision * np.linalg.inv(noise_VV)
    scaled_KV = w.direction_KV * gain_V
    left_V = response_V - gain_V * w.mean_V - loading_VA @ z_A
    e_K = np.linalg.solve(
        np.eye(len(scaled_KV)) + scaled_KV @ inverse_VV @ scaled_KV.T,
        scaled_KV @ inverse_VV @ left_V,
    )
    return w.mean_R + e_K @ w.weights_KR


@pytest.mark.parametrize(("growth", "noise_directions"), [(0.0, 2), (0.8, 2), (0.8, 40)])
def test_the_read_out_is_the_mean_given_the_response(growth, noise_directions):
    draws = np.random.default_rng(3)
    factor_FV = draws.normal(size=(noise_directions, 12)).astype(np.float32)
    weights = weights_of(draws, growth)._replace(factor_FV=factor_FV)
    response_BV = draws.normal(size=(300, 12)).astype(np.float32)  # more than one piece
    found = read_out(weights)(torch.from_numpy(response_BV)).numpy()
    expected = np.stack([by_hand(weights, each.astype(np.float64)) for each in response_BV])
    assert np.allclose(found, expected, rtol=1e-3, atol=1e-3)


def test_a_silenced_region_counts_for_nothing():
    draws = np.random.default_rng(9)
    weights = weights_of(draws, 0.8)
    read, voxels = read_out(weights), torch.from_numpy(draws.normal(size=(3, 12)).astype("f4"))
    one = torch.from_numpy(weights.region_V == 1)
    changed = torch.where(one, voxels + 3, voxels)
    assert not torch.allclose(read(changed), read(voxels), atol=0.1)
    before, after = (read(each, silenced=[1]) for each in (voxels, changed))
    assert torch.allclose(before, after, atol=1e-5)
    alone = torch.zeros(1, 3) + torch.from_numpy(weights.mean_R)
    assert torch.allclose(read(voxels, silenced=range(REGIONS)), alone.expand(3, 3))


def test_without_growth_it_is_linear_and_with_it_is_not():
    draws = np.random.default_rng(4)
    a, b = torch.from_numpy(draws.normal(size=(2, 1, 12)).astype(np.float32))
    for growth, linear in ((0.0, True), (0.8, False)):
        read = read_out(weights_of(np.random.default_rng(5), growth))
        middle = (read(a) + read(b)) / 2
        assert torch.allclose(read((a + b) / 2), middle, atol=1e-4) is linear


def test_it_can_be_differentiated_and_saved():
    read = read_out(weights_of(np.random.default_rng(6), 0.5))
    voxels = torch.randn(2, 12, generator=torch.Generator().manual_seed(0)).requires_grad_()
    read(voxels).square().sum().backward()
    assert voxels.grad is not None and voxels.grad.abs().min() > 0
    other = GatedReadout(12, 3, REGIONS)
    assert not other.used
    other.load_state_dict(read.state_dict())
    assert other.used and torch.equal(other(voxels), read(voxels))


def test_a_linear_map_takes_the_place_of_a_mixture_and_the_other_way_round():
    draws = np.random.default_rng(7)
    linear = LinearReadout({1: 12, 2: 12}, 3, 1, 3, regions=REGIONS)
    linear.set_basis(torch.eye(3)[:, None])
    ridge = LinearMap(np.ones((12, 3), dtype=np.float32), np.zeros(12), np.zeros(3))
    weights, voxels = weights_of(draws, 0.5), torch.ones(1, 12)
    linear.take(1, ridge)
    assert linear(voxels, 1).flatten().tolist() == [12, 12, 12] and linear.router(1) is None
    linear.take(1, weights)
    assert torch.equal(linear(voxels, 1)[:, 0], read_out(weights)(voxels))
    assert linear.router(1) is not None and linear.router(2) is None
    with linear.without_held_out():  # that fit is another one
        assert linear(voxels, 1).flatten().tolist() == [0, 0, 0]
    linear.take(1, ridge)
    assert linear(voxels, 1).flatten().tolist() == [12, 12, 12]


def test_regions_may_stay_empty():
    world = made_up(images=60, repeats=2)
    same_TV = np.repeat(world.response_TV[:, :5], 2, axis=1)
    _, found = fitted(world._replace(response_TV=same_TV), regions=16)
    read = read_out(found.weights(world.features_NP), regions=16)
    assert torch.isfinite(read(torch.from_numpy(same_TV))).all()


def test_what_is_decoded_is_made_as_large_as_fits_best():
    draws = np.random.default_rng(8)
    truth = draws.normal(size=(50, 4))
    found = 3 * truth + 0.1 * draws.normal(size=truth.shape)
    size = fitting_size(found, truth)
    assert size == pytest.approx(LARGER / 3, rel=0.02) and fitting_size(-found, truth) == 0
    weights = weights_of(draws, 0.5)
    voxels = torch.from_numpy(draws.normal(size=(4, 12)).astype(np.float32))
    larger = read_out(scaled(weights, 2.0))(voxels)
    assert torch.allclose(larger, 2 * read_out(weights)(voxels), atol=1e-5)
    linear = LinearMap(np.ones((3, 2), dtype=np.float32), np.ones(3), np.ones(2))
    twice = scaled(linear, 2.0)
    assert twice.coefficients_VD.tolist() == [[2, 2]] * 3
    assert twice.target_mean_D.tolist() == [2, 2] and twice.voxel_mean_V.tolist() == [1, 1, 1]


def test_trials_count_by_the_square_of_their_gain():
    """The refitted model predicts noise-free responses better than the one without gains."""
    world = made_up(images=150, repeats=2, spread=0.8)
    model, found = fitted(world)
    planted = world.signal_NV - world.signal_NV.mean(0)
    close = [
        np.mean([np.corrcoef(a, b)[0, 1] for a, b in zip(each.T, planted.T)])
        for each in (model.predict({"embedding": world.features_NP}), found.predicted_NV)
    ]
    assert 1 - close[1] < 0.8 * (1 - close[0])


def test_the_noise_is_that_of_single_trials(gains):
    assert isinstance(gains.noise, NoiseModel)
    assert np.sqrt(gains.noise.variance_V).mean() == pytest.approx(1.5, rel=0.03)


@pytest.mark.parametrize("regions", [REGIONS, 0])
def test_held_out_images_choose_the_mixture_where_gains_vary(world, monkeypatch, regions):
    """Both fits are taken over: the one to choose by, and the one that knows all images."""
    held_images = 100
    images = len(world.features_NP)
    table = pd.DataFrame({"trial": np.arange(len(world.image_T)), "image": world.image_T})
    left = world.image_T >= images - held_images
    kept, held = (Trials(table[each], 1) for each in (~left, left))
    betas = SimpleNamespace(
        voxels=world.response_TV.shape[1], rows=lambda rows: world.response_TV[rows]
    )
    truth_NR = torch.from_numpy(world.features_NP)
    linear = LinearReadout({1: betas.voxels}, FEATURES, 1, FEATURES, regions=regions)
    linear.set_basis(truth_NR[:, None])
    decoder, rows = SimpleNamespace(linear=linear, device="cpu"), np.arange(images)
    linear_fit.fit_ridges(decoder, (kept, betas), held, truth_NR, rows)
    spaces = SimpleNamespace(of_ids=lambda ids: {"embedding": world.features_NP[ids]})
    monkeypatch.setattr(linear_fit, "FeatureSpaces", lambda *_: spaces)
    overrides = {"run.device": "cpu", "training.linear": "best"}
    config = load_config(None, {**overrides, "training.gain_regions": str(regions)})
    linear_fit.take_better(decoder, [(kept, betas)], [held], truth_NR, rows, config, None)
    voxels = torch.from_numpy(world.response_TV[:5])
    after = linear(voxels, 1)
    with linear.without_held_out():
        assert (linear.router(1) is not None) == bool(regions)
        assert not torch.equal(linear(voxels, 1), after)
    assert (linear.router(1) is not None) == bool(regions)
    if not regions:
        return  # ridge regression stays, as it was
    judged = average_array(world.response_TV[left], world.image_T[left])
    with linear.without_held_out():
        held_TR = linear(torch.from_numpy(world.response_TV[left]), 1)[:, 0].numpy()
    held_NR = average_array(held_TR, world.image_T[left]).mean_NV
    # of that size already: LARGER times the least squares
    assert fitting_size(held_NR, world.features_NP[judged.image_N]) == pytest.approx(1, rel=1e-3)
