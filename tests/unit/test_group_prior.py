"""A person's encoding model by groups of other people's voxels: closed forms against the long way,
and what the groups are for.
"""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import softmax
from scipy.stats import multivariate_normal

from braingen.encoding_model import group_prior
from braingen.encoding_model.group_prior import (
    PENALTIES,
    GroupPrior,
    fit_group_prior,
    leading_directions,
)
from braingen.encoding_model.model import EncodingModel
from braingen.encoding_model.people import people_groups
from braingen.encoding_model.responses import average_array
from braingen.runtime.errors import UserError


def world(images: int, voxels: int = 5) -> tuple[dict[str, np.ndarray], np.ndarray, GroupPrior]:
    rng = np.random.default_rng(images)
    features = {
        "a": rng.normal(size=(images, 4)).astype(np.float32),
        "b": rng.normal(size=(images, 3)).astype(np.float32),
    }
    responses = rng.normal(size=(images, voxels)).astype(np.float32)
    maps = tuple(rng.normal(size=(7, 3)).astype(np.float32) for _ in range(2))
    return features, responses, GroupPrior(maps)


@pytest.mark.parametrize("images", [6, 40])
def test_the_fit_averages_gaussian_posteriors_by_their_marginal_likelihood(images):
    features, y, prior = world(images)
    x = np.concatenate(list(features.values()), 1)
    x, centred = x - x.mean(0), y - y.mean(0)
    bands = [np.eye(7)[:, :4], np.eye(7)[:, 4:]]
    predicted, likelihood = [], []
    for each in [*prior.maps_GPK, *bands]:
        along = x @ each
        along = along / np.sqrt((along**2).sum() / images)
        for penalty in PENALTIES:
            covariance = along @ along.T + penalty * np.eye(images)
            inverse = np.linalg.inv(covariance)
            scale = np.einsum("nv,nm,mv->v", centred, inverse, centred) / images
            likelihood.append(
                [
                    multivariate_normal(np.zeros(images), s * covariance).logpdf(centred[:, v])
                    for v, s in enumerate(scale)
                ]
            )
            predicted.append(along @ along.T @ inverse @ centred)
    weight = softmax(np.array(likelihood), axis=0)
    expected = np.einsum("cv,cnv->nv", weight, np.array(predicted)) + y.mean(0)
    found = fit_group_prior(features, y, prior)
    np.testing.assert_allclose(found.predict(features), expected, rtol=0.02, atol=0.02)
    assert np.array_equal(found.candidate_V, weight.argmax(0) // len(PENALTIES))


def test_left_out_residuals_of_a_candidate_are_those_of_fits_without_the_image(monkeypatch):
    features, y, _ = world(12, voxels=3)
    x = np.concatenate(list(features.values()), 1).astype(float)

    def first_alone(candidates, along, total_V, images):
        found = np.zeros((len(candidates), 1, len(total_V)))
        found[0] = 1
        return found

    monkeypatch.setattr(group_prior, "PENALTIES", (1.0,))
    monkeypatch.setattr(group_prior, "_weights", first_alone)
    alone = fit_group_prior(features, y, GroupPrior((np.eye(7, dtype=np.float32),)))
    scale = np.square(x - x.mean(0)).sum() / len(x)
    for left in range(len(x)):
        rest = np.arange(len(x)) != left
        mean_x, mean_y = x[rest].mean(0), y[rest].mean(0)
        xc = (x[rest] - mean_x) / np.sqrt(scale)
        weights = np.linalg.solve(xc.T @ xc + np.eye(7), xc.T @ (y[rest] - mean_y))
        by_hand = y[left] - mean_y - (x[left] - mean_x) / np.sqrt(scale) @ weights
        np.testing.assert_allclose(alone.residual_JV[left], by_hand, rtol=1e-3, atol=1e-4)


def test_presentations_count_as_often_as_they_are():
    features, y, prior = world(10)
    times = np.array([3, 1, 1, 1, 1, 1, 1, 1, 1, 1])
    weighted = fit_group_prior(features, y, prior, times).predict(features)
    alike = fit_group_prior(features, y, prior, 5 * np.ones(10)).predict(features)
    plain = fit_group_prior(features, y, prior).predict(features)
    np.testing.assert_allclose(alike, plain, rtol=1e-3, atol=1e-3)
    assert np.abs(weighted[0] - y[0]).sum() < np.abs(plain[0] - y[0]).sum()
    both = np.array(
        [50, 50, *[1] * 8]
    )  # not only the mean goes to them, also what tells them apart
    apart = fit_group_prior(features, y, prior, both).predict(features)
    true, found, before = (x[0] - x[1] for x in (y, apart, plain))
    assert np.abs(found - true).sum() < 0.8 * np.abs(before - true).sum()


def people(seed: int, groups: int = 3) -> tuple[list[EncodingModel], np.ndarray, dict]:
    """Three people whose voxels are tuned to one of a few directions each."""
    rng = np.random.default_rng(seed)
    directions = np.linalg.qr(rng.normal(size=(24, groups * 2)))[0].T.reshape(groups, 2, 24)
    features = {"a": rng.normal(size=(120, 24)).astype(np.float32)}
    models = []
    for _ in range(3):
        group = rng.integers(groups, size=60)
        weights = np.einsum("vk,vkp->pv", rng.normal(size=(60, 2)), directions[group])
        image = np.tile(np.arange(120), 3)
        trials = features["a"][image] @ weights + rng.normal(size=(360, 60))
        models.append(EncodingModel.fit(features, average_array(trials, image)))
    return models, directions, features


def test_a_new_persons_voxel_borrows_from_the_group_it_belongs_to():
    models, directions, features = people(1)
    prior = people_groups(models, features, groups=6)
    rng = np.random.default_rng(9)
    weights = np.einsum(
        "vk,vkp->pv", rng.normal(size=(50, 2)), directions[rng.integers(3, size=50)]
    )
    few = {"a": rng.normal(size=(14, 24)).astype(np.float32)}
    new = {"a": rng.normal(size=(300, 24)).astype(np.float32)}
    image = np.arange(14)
    responses = average_array(few["a"] @ weights + rng.normal(size=(14, 50)), image)
    truth = new["a"] @ weights

    def error(prior: GroupPrior | None) -> float:
        model = EncodingModel.fit(few, responses, prior=prior)
        return float(np.square(model.predict(new) - truth).mean() / truth.var())

    everybody = GroupPrior(prior.maps_GPK[:1])
    assert error(prior) < 0.9 * error(everybody) < 0.9 * error(None)


def test_directions_of_few_voxels_and_of_many_span_the_same_covariance():
    weights = np.random.default_rng(0).normal(size=(6, 9)).astype(np.float32)
    few = leading_directions(weights[:, :4])
    np.testing.assert_allclose(few @ few.T, weights[:, :4] @ weights[:, :4].T / 4, atol=1e-4)
    many = leading_directions(weights)
    np.testing.assert_allclose(many @ many.T, weights @ weights.T / 9, atol=1e-4)


def test_responses_that_are_no_numbers_are_refused():
    features, y, prior = world(8)
    y[2, 1] = np.nan
    with pytest.raises(UserError, match="NaN"):
        fit_group_prior(features, y, prior)
