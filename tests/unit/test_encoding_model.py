"""The encoding model: noise, ceiling, decoding, people, voxel embeddings, files."""

from __future__ import annotations

from copy import deepcopy
import json

import numpy as np
import pytest
from scipy.stats import multivariate_normal
import torch

from braingen.encoding_model.energy import WIDTH, energy_features
from braingen.encoding_model.evidence import discriminate, evidence_of
from braingen.encoding_model.library import (
    DecodingChoice,
    Inverse,
    Library,
    all_choices,
    choose_decoding,
    refuse_test_pictures,
)
from braingen.encoding_model.model import EncodingModel
from braingen.encoding_model.noise import NoiseModel, _likelihoods, fit_noise
from braingen.encoding_model.people import people_groups
from braingen.encoding_model.responses import average_array
from braingen.encoding_model.voxel_space import shared_space
from braingen.evaluation.brain_correlation import brain_values
from braingen.runtime.errors import UserError


class World:
    """People whose voxels respond to two bands of features, with few kinds of tuning."""

    def __init__(self, seed: int = 0, kinds: int = 4) -> None:
        self.random = np.random.default_rng(seed)
        self.tuning = self.random.standard_normal((kinds, 20))

    def pictures(self, count: int) -> dict[str, np.ndarray]:
        x = self.random.standard_normal((count, 20)).astype(np.float32)
        return {"a": x[:, :12], "b": x[:, 12:]}

    def person(self, voxels: int) -> np.ndarray:
        """Weights of the voxels, features x voxels: mixtures of the kinds."""
        return self.tuning.T @ self.random.standard_normal((len(self.tuning), voxels))

    def responses(self, features, weights, repeats: int = 3, noise: float = 4.0):
        x = np.concatenate(list(features.values()), axis=1)
        image = np.tile(np.arange(len(x)), repeats)
        signal = x @ weights
        trials = signal[image] + noise * self.random.standard_normal((len(image), weights.shape[1]))
        return average_array(trials, image)


Fitted = tuple[World, dict[str, np.ndarray], EncodingModel, np.ndarray]


@pytest.fixture(scope="module")
def fitted_once() -> Fitted:
    world = World()
    features, weights = world.pictures(60), world.person(25)
    return world, features, EncodingModel.fit(features, world.responses(features, weights)), weights


@pytest.fixture
def fitted(fitted_once: Fitted) -> Fitted:
    """A world of each test's own: what one draws does not change what the next one draws."""
    return deepcopy(fitted_once[0]), *fitted_once[1:]


# --- noise and ceiling ----------------------------------------------------------------------------


def test_averages_and_noise_ceiling_are_the_planted_ones():
    world = World()
    features, weights = world.pictures(400), world.person(20)
    found = world.responses(features, weights, repeats=4, noise=4.0)
    planted = np.linalg.norm(weights, axis=0) / 4.0
    assert np.abs(found.snr_V / planted - 1).max() < 0.15
    np.testing.assert_allclose(found.ceiling_V(2), planted**2 / (planted**2 + 0.5), atol=0.08)
    assert found.presentations == 4 and (found.times_N == 4).all()
    once = average_array(np.ones((5, 3)) + np.arange(5)[:, None], np.arange(5))
    assert np.isnan(once.snr_V).all() and np.isnan(once.ceiling_V()).all()


def test_likelihood_and_inverse_are_those_of_the_full_covariance():
    random = np.random.default_rng(0)
    rows = random.standard_normal((60, 3)) @ random.standard_normal((3, 12))
    rows += 0.8 * random.standard_normal(rows.shape)
    known, left = rows[:40], rows[40:]
    own, shared = np.diag((known**2).mean(0)), known.T @ known / 40
    for share in (0.1, 0.6, 1.0):
        full = multivariate_normal(np.zeros(12), (1 - share) * shared + share * own)
        alone = multivariate_normal(np.zeros(12), own)
        expected = full.logpdf(left).sum() - alone.logpdf(left).sum()
        assert _likelihoods(known, left, [share])[0] == pytest.approx(expected, abs=1e-6)
    found = fit_noise(rows.astype(np.float32))
    covariance = np.diag(found.diagonal_V) + found.factor_KV.T @ found.factor_KV
    np.testing.assert_allclose(
        found.whiten(left), left @ np.linalg.inv(covariance), rtol=1e-3, atol=1e-4
    )
    assert found.shrinkage < 0.5 and found.likelihood > 0
    few = fit_noise(rows.astype(np.float32), directions=4)
    assert few.factor_KV.shape == (4, 12)
    np.testing.assert_allclose(
        few.diagonal_V + (few.factor_KV**2).sum(0), (rows**2).mean(0), rtol=1e-3
    )
    drawn = found.sample(20_000, random)
    np.testing.assert_allclose(np.cov(drawn.T), covariance, atol=0.35)


def test_noise_without_covariance_is_shrunk_away():
    noise = fit_noise(np.random.default_rng(0).standard_normal((40, 60)).astype(np.float32))
    assert noise.shrinkage >= 0.9


# --- decoding -------------------------------------------------------------------------------------


def small_library(seed: int = 0) -> tuple[Library, NoiseModel, np.ndarray]:
    random = np.random.default_rng(seed)
    embedding = random.standard_normal((50, 3)) + 2
    weights = random.standard_normal((3, 8))
    noise = NoiseModel(np.full(8, 0.5), 0.3 * random.standard_normal((2, 8)), 0.5, 0.0)
    return Library(embedding, embedding @ weights + 1), noise, weights


def test_gaussian_part_is_the_textbook_inversion():
    library, noise, weights = small_library()
    random = np.random.default_rng(1)
    responses = random.standard_normal((4, 8)) * 3
    mean, spread = library.embedding_LD.mean(0), np.cov(library.embedding_LD.T, bias=True)
    covariance = np.diag(noise.diagonal_V) + noise.factor_KV.T @ noise.factor_KV
    precision = weights @ np.linalg.inv(covariance)
    inner = np.linalg.inv(np.linalg.inv(spread) + 2 * precision @ weights.T)
    expected = mean + (responses - mean @ weights - 1) @ (2 * inner @ precision).T
    inverse = Inverse(library, noise)
    np.testing.assert_allclose(inverse.gaussian(responses, 2), expected, rtol=1e-4, atol=1e-4)
    weight_VD, mean_V, mean_D = inverse.linear_map(2)
    found = (responses - mean_V) @ weight_VD + mean_D
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_posterior_goes_from_the_mean_to_the_likeliest_picture():
    library, noise, _ = small_library()
    inverse = Inverse(library, noise)
    responses = library.predicted_LV[[4, 9]]
    assert inverse.evidence(responses).argmax(1).tolist() == [4, 9]
    np.testing.assert_allclose(
        inverse.posterior(responses, 50.0), library.embedding_LD[[4, 9]], atol=1e-3
    )
    np.testing.assert_allclose(
        inverse.posterior(responses, 0.0), np.tile(library.embedding_LD.mean(0), (2, 1)), atol=1e-6
    )
    half = inverse.decode(responses, DecodingChoice(1.0, 0.2, 0.25))
    parts = 0.75 * inverse.gaussian(responses, 1.0) + 0.25 * inverse.posterior(responses, 0.2)
    np.testing.assert_allclose(half, parts, rtol=1e-5)


def test_held_out_images_choose_and_the_usual_way_is_left_only_for_a_better_one():
    library, noise, _ = small_library()
    random = np.random.default_rng(2)
    truth = random.standard_normal((40, 3)) + 2
    clean = library.predicted_LV[:40]
    inverse, mean = Inverse(library, noise), library.embedding_LD.mean(0)
    chosen = choose_decoding([(inverse, clean, library.embedding_LD[:40])], mean)
    assert chosen.cosine > 0.99 and chosen._replace(cosine=None) in all_choices()
    # embeddings that have nothing to do with the responses: no way is better
    nothing = choose_decoding([(inverse, clean, truth)], mean)
    assert nothing._replace(cosine=None) == DecodingChoice()


def test_a_library_with_a_test_picture_is_refused_by_name():
    random = np.random.default_rng(0)
    library, test = random.standard_normal((30, 5)), random.standard_normal((4, 5))
    refuse_test_pictures(library, range(30), test, "here")
    library[7] = test[2] * (1 + 1e-6)
    with pytest.raises(UserError, match=r"here holds a test image \(7\)"):
        refuse_test_pictures(library, range(30), test, "here")
    with pytest.raises(UserError, match="at least 10"):
        Inverse(Library(library[:5], library[:5]), NoiseModel(np.ones(5), np.zeros((0, 5)), 1, 0))


def test_decoding_finds_pictures_that_nobody_has_seen(fitted):
    world, _, model, weights = fitted
    seen, library = world.pictures(20), world.pictures(300)
    x, known = (np.concatenate(list(each.values()), 1) for each in (seen, library))
    responses = world.responses(seen, weights).mean_NV
    pictures = Library(known @ weights[:, :6], model.predict(library))
    found = model.decode(responses, pictures)
    true = x @ weights[:, :6]
    match = np.corrcoef(found.embedding_ND, true)[:20, 20:]
    assert (match.argmax(1) == np.arange(20)).mean() > 0.5
    assert found.evidence_NL.shape == (20, 300)
    with pytest.raises(UserError, match="this encoding model has 25"):
        model.decode(responses[:, :5], pictures)


# --- the model as a whole -------------------------------------------------------------------------


def test_explained_variance_stands_beside_the_ceiling_and_is_shared_out_to_bands(fitted):
    _, _, model, _ = fitted
    assert (model.explained_V < model.ceiling_V + 0.1).all()
    assert (model.explained_V / model.ceiling_V).mean() > 0.5
    np.testing.assert_allclose(model.share_BV.sum(0), model.explained_V, rtol=1e-3)


def test_synthetic_responses_have_the_signal_and_the_noise_of_measured_ones(fitted):
    world, _, model, _ = fitted
    features = world.pictures(500)
    made = model.synthesise(features, np.random.default_rng(0))
    signal = model.predict(features)
    np.testing.assert_allclose((made - signal).var(), 16, rtol=0.15)  # planted: 4 squared
    assert np.corrcoef(made.ravel(), signal.ravel())[0, 1] > 0.5
    assert not np.array_equal(made, model.synthesise(features, np.random.default_rng(1)))


def test_other_peoples_tuning_helps_a_person_with_few_images():
    world = World(seed=3, kinds=2)
    many = world.pictures(150)
    others = [EncodingModel.fit(many, world.responses(many, world.person(30))) for _ in range(2)]
    few, weights, new = world.pictures(14), world.person(30), world.pictures(200)
    responses = world.responses(few, weights, repeats=1)
    truth = np.concatenate(list(new.values()), 1) @ weights
    prior = people_groups(others, world.pictures(40), groups=2)

    def error(model: EncodingModel) -> float:
        assert list(model.ridge.bands) == ["a", "b"]  # predicts from features alone
        return float(np.square(model.predict(new) - truth).mean() / truth.var())

    assert error(EncodingModel.fit(few, responses, prior=prior)) < 0.9 * error(
        EncodingModel.fit(few, responses)
    )


def test_voxels_of_two_people_with_equal_tuning_are_equal():
    world = World(seed=5)
    features, weights = world.pictures(300), world.person(12)
    shuffled = np.random.default_rng(0).permutation(12)
    one, two = (
        EncodingModel.fit(features, world.responses(features, each, noise=0.5))
        for each in (weights, 3 * weights[:, shuffled])
    )
    space = shared_space([one, two], world.pictures(200), width=6)
    first, second = one.embed_voxels(space), two.embed_voxels(space)
    np.testing.assert_allclose(np.linalg.norm(first, axis=1), 1, rtol=1e-5)
    assert ((first[shuffled] * second).sum(1) > 0.98).all()
    assert (first @ second.T).argmax(0).tolist() == shuffled.tolist()
    with pytest.raises(UserError, match="this encoding model has 20"):
        one.embed_voxels(space[:, :4])


def test_a_saved_model_comes_back_whole(fitted, tmp_path):
    world, features, model, _ = fitted
    model = model._replace(decoding=DecodingChoice(0.3, 0.4, 1.0, 0.5))
    model.save(tmp_path / "subj01")
    again = EncodingModel.load(tmp_path / "subj01")
    np.testing.assert_array_equal(again.predict(features), model.predict(features))
    np.testing.assert_array_equal(again.ceiling_V, model.ceiling_V)
    rows = world.random.standard_normal((2, 25))
    np.testing.assert_array_equal(again.noise.whiten(rows), model.noise.whiten(rows))
    assert again.decoding == model.decoding and again.ridge.bands == model.ridge.bands
    facts = json.loads((tmp_path / "subj01" / "model.json").read_text())
    del facts["noise"]
    (tmp_path / "subj01" / "model.json").write_text(json.dumps(facts))
    with pytest.raises(UserError, match="holds no encoding model"):
        EncodingModel.load(tmp_path / "subj01")
    with pytest.raises(UserError, match="braingen train encoding"):
        EncodingModel.load(tmp_path / "nothing")


# --- features -------------------------------------------------------------------------------------


def test_energy_tells_orientation_scale_place_and_colour():
    axis = torch.arange(96.0)
    wave = 0.5 + 0.5 * torch.cos(2 * torch.pi * axis / 8)
    upright, level = wave.expand(96, 96), wave[:, None].expand(96, 96)
    half = torch.where(axis < 48, wave, 0.5).expand(96, 96)
    pictures = torch.stack([each.expand(3, 96, 96) for each in (upright, level, half)])
    red = torch.zeros(1, 3, 96, 96)
    red[:, 0] = 1
    found = energy_features(torch.cat([pictures, red])).unflatten(1, (15, 4, 4))
    assert found.shape[1:].numel() == WIDTH
    energy = found[:, 3:].unflatten(1, (3, 4)).mean((3, 4))  # pictures x scales x orientations
    assert energy[0].flatten().argmax() == 4 and energy[1].flatten().argmax() == 6
    assert found[2, 7, :, 0].mean() > 5 * found[2, 7, :, 3].mean()
    assert (found[3, 1] > 0.9).all() and found[:3, 1:3].abs().max() < 1e-5


# --- which picture? -------------------------------------------------------------------------------


def test_evidence_prefers_the_seen_picture_to_another_and_to_half_of_it(fitted):
    world, _, model, weights = fitted
    seen = world.pictures(60)
    # one noisy presentation, so that some pairs are confused
    responses = world.responses(seen, weights, repeats=1, noise=8.0).mean_NV
    predicted = model.predict(seen)
    own = evidence_of(model, responses, predicted)
    assert (own > evidence_of(model, responses, predicted[::-1])).mean() > 0.8
    beats, nearest = discriminate(model, responses, predicted)
    assert not beats.diagonal().any() and (nearest != np.arange(60)).all()
    assert beats.sum() / (60 * 59) > 0.8
    hardest = beats[np.arange(60), nearest].mean()
    assert 0.4 < hardest < beats.sum() / (60 * 59)
    covariance = np.diag(model.noise.diagonal_V) + model.noise.factor_KV.T @ model.noise.factor_KV
    mean = model.ridge.voxel_mean_V
    expected = multivariate_normal(predicted[0], covariance).logpdf(
        responses[0]
    ) - multivariate_normal(mean, covariance).logpdf(responses[0])
    assert own[0] == pytest.approx(expected, rel=1e-3)


def test_brain_correlation_is_the_mean_correlation_over_voxels_by_region():
    random = np.random.default_rng(0)
    measured = random.standard_normal((30, 6))
    predicted = measured + random.standard_normal((30, 6))
    predicted[:, 5] = 3.0  # a voxel that is predicted to be the same for all: no correlation
    regions = {"V1": np.arange(6) < 2, "higher_vis": np.zeros(6, bool), "V2": np.ones(4, bool)}
    values = brain_values(predicted, measured, regions)
    assert set(values) == {"brain_correlation", "brain_correlation_v1"}
    each = [np.corrcoef(predicted[:, v], measured[:, v])[0, 1] for v in range(5)] + [0]
    assert values["brain_correlation"].mean() == pytest.approx(np.mean(each), abs=1e-9)
    assert values["brain_correlation_v1"].mean() == pytest.approx(np.mean(each[:2]), abs=1e-9)
