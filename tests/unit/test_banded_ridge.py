"""Banded ridge against scikit-learn on the scaled features, and against fitting again without an
image; voxels choose the band that drives them.
"""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import Ridge as SklearnRidge

from braingen.encoding_model import banded_ridge
from braingen.encoding_model.banded_ridge import band_slices, candidate_scales, fit_banded_ridge
from braingen.runtime.errors import UserError

SCALES = np.array([[0.6, 0.8]])


def planted(
    images: int, widths: tuple[int, int], seed: int = 0
) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
    """Two bands of other sizes and means, noisy responses to both, and presentations."""
    generator = np.random.default_rng(seed)
    features = {
        "first": generator.standard_normal((images, widths[0])),
        "second": 3 * generator.standard_normal((images, widths[1])) + 1,
    }
    x = np.concatenate(list(features.values()), axis=1)
    responses = x @ generator.standard_normal((x.shape[1], 5))
    responses += 3 * generator.standard_normal(responses.shape)
    return features, responses, generator.integers(1, 4, images)


def scaled(features: dict[str, np.ndarray], times: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """Bands of unit variance in all, times their scales: what is an ordinary ridge then."""
    share = times / times.sum()
    parts = []
    for values, scale in zip(features.values(), scales):
        centred = values - share @ values
        parts.append(values * scale / np.sqrt((share @ centred**2).sum()))
    return np.concatenate(parts, axis=1)


@pytest.mark.parametrize(("images", "widths"), [(40, (8, 6)), (20, (18, 15))])
@pytest.mark.parametrize("penalty", [0.003, 0.3])
def test_is_scikit_learns_ridge_on_scaled_features(images, widths, penalty):
    features, responses, times = planted(images, widths)
    ours = fit_banded_ridge(features, responses, times, SCALES, (penalty,))
    x = scaled(features, times, SCALES[0])
    theirs = SklearnRidge(alpha=penalty * times.sum()).fit(x, responses, sample_weight=times)
    np.testing.assert_allclose(ours.predict(features), theirs.predict(x), atol=1e-4)
    for i in range(images):
        kept = np.arange(images) != i
        without = SklearnRidge(alpha=penalty * times.sum())
        without.fit(x[kept], responses[kept], sample_weight=times[kept])
        left = (responses[i] - without.predict(x[i : i + 1])[0]) * np.sqrt(times[i])
        np.testing.assert_allclose(ours.residual_JV[i], left, atol=1e-4)


def test_voxels_choose_the_best_candidate_and_say_how_much_it_explains():
    features, responses, times = planted(30, (8, 6))
    scales, penalties = candidate_scales(2, 3), (0.003, 0.1, 1.0)
    ours = fit_banded_ridge(features, responses, times, scales, penalties)
    errors = {
        (c, p): (fit_banded_ridge(features, responses, times, scales[[c]], (p,)).residual_JV ** 2)
        for c in range(len(scales))
        for p in penalties
    }
    for voxel in range(5):
        best = min(errors, key=lambda key: errors[key][:, voxel].sum())
        assert (ours.candidate_V[voxel], ours.penalty_V[voxel]) == best
    share = times / times.sum()
    total = times @ (responses - share @ responses) ** 2
    np.testing.assert_allclose(
        ours.explained_V, 1 - (ours.residual_JV**2).sum(0) / total, rtol=1e-4
    )


def test_a_voxel_finds_the_band_that_drives_it():
    generator = np.random.default_rng(1)
    features = {name: generator.standard_normal((80, 30)) for name in ("a", "b")}
    responses = np.concatenate(
        [values @ generator.standard_normal((30, 10)) for values in features.values()], axis=1
    )
    responses += 4 * generator.standard_normal(responses.shape)
    found = fit_banded_ridge(features, responses)
    length = {
        name: np.linalg.norm(found.coefficients_PV[part], axis=0)
        for name, part in found.slices().items()
    }
    assert (length["a"][:10] > 1.5 * length["b"][:10]).all()
    assert (length["b"][10:] > 1.5 * length["a"][10:]).all()
    alone = fit_banded_ridge({"a": features["a"]}, responses)
    assert found.explained_V[10:].mean() > alone.explained_V[10:].mean() + 0.3


@pytest.mark.parametrize("widths", [(8, 6), (18, 15)])
def test_pieces_of_voxels_make_no_difference(widths, monkeypatch):
    features, responses, times = planted(25, widths)
    whole = fit_banded_ridge(features, responses, times)
    monkeypatch.setattr(banded_ridge, "PIECE", 2)
    pieces = fit_banded_ridge(features, responses, times)
    np.testing.assert_allclose(pieces.coefficients_PV, whole.coefficients_PV, atol=1e-5)
    np.testing.assert_allclose(pieces.residual_JV, whole.residual_JV, atol=1e-5)
    monkeypatch.setattr(banded_ridge, "LARGEST_DOUBLE", 0)
    single = fit_banded_ridge(features, responses, times)
    np.testing.assert_allclose(single.predict(features), whole.predict(features), atol=2e-2)


def test_few_left_out_images_give_exact_residuals_too():
    features, responses, times = planted(40, (8, 6))
    every = fit_banded_ridge(features, responses, times, SCALES, (0.1,))
    some = fit_banded_ridge(features, responses, times, SCALES, (0.1,), left_out=7)
    assert len(some.left_out_J) == 7
    np.testing.assert_allclose(some.residual_JV, every.residual_JV[some.left_out_J], atol=1e-5)


def test_candidates_are_each_band_all_alike_and_draws():
    scales = candidate_scales(3, 4)
    assert scales.shape == (8, 3)
    np.testing.assert_allclose((scales**2).sum(1), 1)
    assert (np.sort(scales[1:4], axis=1) == [0, 0, 1]).all()
    assert (candidate_scales(3, 4, seed=1) != scales)[4:].all()
    assert candidate_scales(1, 4).tolist() == [[1]]


def test_what_cannot_be_fitted_is_refused():
    features, responses, _ = planted(20, (8, 6))
    assert band_slices({"a": 2, "b": 3}) == {"a": slice(0, 2), "b": slice(2, 5)}
    with pytest.raises(UserError, match="at least 3"):
        fit_banded_ridge({"a": features["first"][:2]}, responses[:2])
    with pytest.raises(UserError, match="same images"):
        fit_banded_ridge(features, responses[:5])
    with pytest.raises(UserError, match="NaN"):
        fit_banded_ridge(features, np.where(responses > 5, np.nan, responses))
    with pytest.raises(UserError, match="'flat' is the same for all"):
        fit_banded_ridge({**features, "flat": np.ones((20, 2))}, responses)
    found = fit_banded_ridge(features, responses)
    with pytest.raises(UserError, match="'second' is missing"):
        found.predict({"first": features["first"]})
    with pytest.raises(UserError, match="images x 6 was expected"):
        found.predict({**features, "second": features["first"]})
