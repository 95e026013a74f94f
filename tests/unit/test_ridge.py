"""Ridge regression against scikit-learn, and its closed-form cross-validation against fitting again
without the image.
"""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import Ridge as SklearnRidge

from braingen.encoders import ridge
from braingen.runtime.errors import UserError


def simulated(
    trials: int, voxels: int, width: int = 7, noise: float = 2.0, seed: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Targets of images shown one to three times, and noisy voxels tuned to them, neither
    centred.
    """
    generator = np.random.default_rng(seed)
    image = np.sort(generator.integers(0, trials // 2, trials))[generator.permutation(trials)]
    per_image = generator.standard_normal((trials, width))
    targets = per_image[image] + 0.5
    voxels_NV = (
        targets @ generator.standard_normal((width, voxels))
        + noise * generator.standard_normal((trials, voxels))
        + 1
    )
    return voxels_NV.astype(np.float32), targets.astype(np.float32), image


@pytest.mark.parametrize(("trials", "voxels"), [(80, 30), (40, 90)])
def test_coefficients_are_scikit_learns(trials: int, voxels: int) -> None:
    x, y, image = simulated(trials, voxels)
    fitted = ridge.fit_ridge(x, y, image)
    theirs = SklearnRidge(alpha=fitted.penalty_D[0]).fit(x.astype(np.float64), y)
    np.testing.assert_allclose(fitted.coefficients_VD, theirs.coef_.T, atol=2e-4)
    np.testing.assert_allclose(fitted.predict(x), theirs.predict(x), atol=2e-3)


@pytest.mark.parametrize(("trials", "voxels"), [(50, 20), (30, 60)])
def test_cross_validation_equals_fitting_without_every_image(
    trials: int, voxels: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ridge, "_ROWS", 16)  # several blocks
    x, y, image = simulated(trials, voxels)
    fitted = ridge.fit_ridge(x, y, image, relative_penalties=(0.01, 1.0, 30.0))
    expected = []
    for penalty in fitted.penalties_A:
        squares = 0.0
        for one in np.unique(image):
            out = image == one
            model = SklearnRidge(alpha=penalty).fit(x[~out].astype(np.float64), y[~out])
            squares += ((model.predict(x[out]) - y[out]) ** 2).sum()
        expected.append(squares / ((y - y.mean(0)) ** 2).sum())
    np.testing.assert_allclose(fitted.error_A, expected, rtol=1e-3)


def test_float32_decomposition_agrees(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y, image = simulated(200, 60)
    exact = ridge.fit_ridge(x, y, image)
    monkeypatch.setattr(ridge, "_LARGEST_DOUBLE", 0)
    single = ridge.fit_ridge(x, y, image)
    np.testing.assert_allclose(single.error_A, exact.error_A, rtol=2e-3)
    np.testing.assert_allclose(single.predict(x), exact.predict(x), atol=5e-3)


def test_penalty_of_every_target() -> None:
    """A target that the voxels do not carry is shrunk to its mean; one that they do is not."""
    x, y, image = simulated(200, 40, width=3)
    y[:, 2] = np.random.default_rng(5).standard_normal(200).astype(np.float32)
    fitted = ridge.fit_ridge(x, y, image, per_target=True)
    assert fitted.penalty_D[2] > 30 * fitted.penalty_D[:2].max()
    assert len(np.unique(ridge.fit_ridge(x, y, image).penalty_D)) == 1


def test_memory_map_and_averaging(tmp_path: object) -> None:
    x, y, image = simulated(60, 20)
    np.save(f"{tmp_path}/x.npy", x)
    mapped = ridge.fit_ridge(np.load(f"{tmp_path}/x.npy", mmap_mode="r"), y, image)
    np.testing.assert_array_equal(
        mapped.coefficients_VD, ridge.fit_ridge(x, y, image).coefficients_VD
    )
    means, ids = ridge.average_repeats(x, image)
    np.testing.assert_allclose(means[3], x[image == ids[3]].mean(0), rtol=1e-5)


def test_wrong_inputs_are_refused() -> None:
    x, y, image = simulated(30, 10)
    with pytest.raises(UserError, match="trials x voxels"):
        ridge.fit_ridge(x, y[:-1], image)
    with pytest.raises(UserError, match="1 voxels"):
        ridge.fit_ridge(np.where(np.arange(10) == 4, np.nan, x), y, image)
    with pytest.raises(UserError, match="10 voxels"):
        ridge.fit_ridge(x, y, image).predict(x[:, :9])
