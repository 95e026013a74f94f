"""Pixel scores against scikit-image and numpy, and what is refused by name."""

from __future__ import annotations

import numpy as np
from parity import published
import pytest
from skimage.color import rgb2gray
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
import torch
from torch.nn.functional import interpolate

from braingen.evaluation import image_pairs as pairs
from braingen.evaluation import pixel
from braingen.runtime.errors import UserError


def pictures(seed: int, count: int = 4, side: int = 32) -> np.ndarray:
    """Smooth random pictures in [0, 1]."""
    noise = torch.rand(
        count, 3, side // 4, side // 4, generator=torch.Generator().manual_seed(seed)
    )
    return interpolate(noise, size=(side, side), mode="bilinear").numpy()


def at_425(images: np.ndarray) -> np.ndarray:
    return interpolate(
        torch.as_tensor(images), size=(425, 425), mode="bilinear", antialias=False
    ).numpy()


TRUTH, RECONS = pictures(0), pictures(1)


def test_pixcorr_is_numpys() -> None:
    expected = [
        np.corrcoef(a.ravel(), b.ravel())[0, 1] for a, b in zip(at_425(TRUTH), at_425(RECONS))
    ]
    np.testing.assert_allclose(pixel.pixel_correlation(TRUTH, RECONS), expected, atol=1e-6)


@pytest.mark.slow
def test_ssim_is_scikit_images() -> None:
    grey = [[rgb2gray(x.transpose(1, 2, 0)) for x in at_425(images)] for images in (TRUTH, RECONS)]
    settings = {
        "gaussian_weights": True,
        "sigma": 1.5,
        "use_sample_covariance": False,
        "data_range": 1.0,
    }
    expected = [structural_similarity(a, b, **settings) for a, b in zip(*grey)]
    np.testing.assert_allclose(published.structural_similarity(TRUTH, RECONS), expected, atol=1e-5)


def test_legacy_ssim_treats_every_column_as_a_signal() -> None:
    grey = [
        [rgb2gray(x.transpose(1, 2, 0)) for x in at_425(images[:1])] for images in (TRUTH, RECONS)
    ]
    settings = {
        "gaussian_weights": True,
        "sigma": 1.5,
        "use_sample_covariance": False,
        "data_range": 1.0,
    }
    expected = structural_similarity(grey[0][0], grey[1][0], channel_axis=1, **settings)
    np.testing.assert_allclose(
        published.structural_similarity(TRUTH[:1], RECONS[:1], columns=True), expected, atol=1e-5
    )


def test_psnr_is_scikit_images() -> None:
    error = published.squared_error(TRUTH, RECONS, side=32)
    np.testing.assert_allclose(error, ((TRUTH - RECONS) ** 2).mean((1, 2, 3)), rtol=1e-5)
    expected = [peak_signal_noise_ratio(a, b, data_range=1) for a, b in zip(TRUTH, RECONS)]
    np.testing.assert_allclose(pixel.peak_signal_to_noise(error), expected, rtol=1e-5)


@pytest.mark.slow
def test_truth_against_itself_is_perfect() -> None:
    np.testing.assert_allclose(pixel.pixel_correlation(TRUTH, TRUTH), 1, atol=1e-12)
    np.testing.assert_allclose(published.structural_similarity(TRUTH, TRUTH), 1, atol=1e-6)
    np.testing.assert_allclose(
        published.structural_similarity(TRUTH, TRUTH, columns=True), 1, atol=1e-6
    )
    assert (published.squared_error(TRUTH, TRUTH) == 0).all()
    assert (pixel.peak_signal_to_noise(np.zeros(3)) == pixel.HIGHEST_PSNR).all()


@pytest.mark.slow
def test_scores_do_not_depend_on_batch_size() -> None:
    for score in (
        pixel.pixel_correlation,
        published.structural_similarity,
        published.squared_error,
    ):
        np.testing.assert_allclose(
            score(TRUTH, RECONS, batch=1), score(TRUTH, RECONS, batch=3), atol=1e-6
        )


@pytest.mark.slow
def test_one_pass_gives_the_same() -> None:
    together = pixel.all_scores(TRUTH, RECONS)
    a, b = (pixel.resize(torch.as_tensor(images), 256).numpy() for images in (TRUTH, RECONS))
    np.testing.assert_allclose(together["pixcorr"], pixel.pixel_correlation(a, b), atol=1e-9)
    np.testing.assert_allclose(together["ssim"], published.structural_similarity(a, b), atol=1e-9)
    np.testing.assert_allclose(
        together["ssim_columns"], published.structural_similarity(a, b, columns=True), atol=1e-9
    )
    np.testing.assert_allclose(together["mse"], published.squared_error(TRUTH, RECONS), atol=1e-9)


@pytest.mark.slow
def test_more_noise_is_worse() -> None:
    noise = np.random.default_rng(0).standard_normal(TRUTH.shape).astype(np.float32)
    noisy = [np.clip(TRUTH + level * noise, 0, 1) for level in (0.02, 0.1, 0.4)]
    for score, better in (
        (pixel.pixel_correlation, 1),
        (published.structural_similarity, 1),
        (published.squared_error, -1),
    ):
        values = [better * score(TRUTH, images).mean() for images in noisy]
        assert values[0] > values[1] > values[2]


IDS = np.array([11, 12, 13, 14])


def spoiled(row: int, change: object) -> list[np.ndarray]:
    images = [image.copy() for image in TRUTH]
    images[row] = change(images[row])  # type: ignore[operator]
    return images


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda image: np.full_like(image, 0.3), "constant"),
        (lambda image: np.where(image > image.mean(), np.nan, image), "NaN"),
        (lambda image: image * 255, "divide by 255"),
        (lambda image: image * 2 - 1, r"outside \[0, 1\]"),
        (lambda image: image[:, :-1], "shape"),
        (lambda image: image[:1], "shape"),
        (lambda image: image[:, :24, :24], "another size"),
    ],
)
def test_bad_pictures_are_refused_by_name(change: object, words: str) -> None:
    with pytest.raises(UserError, match=words) as refusal:
        pairs.ImageSource(spoiled(2, change), IDS, "reconstructions")
    assert "13" in str(refusal.value)


def test_duplicate_missing_and_unknown_images_are_refused_by_name() -> None:
    with pytest.raises(UserError, match="12 more than once"):
        pairs.match(TRUTH, IDS, RECONS, [11, 12, 12, 14])
    with pytest.raises(UserError, match=r"no reconstruction.*13"):
        pairs.match(TRUTH, IDS, RECONS[[0, 1, 3]], IDS[[0, 1, 3]])
    with pytest.raises(UserError, match="99"):
        pairs.match(TRUTH, IDS, RECONS, [11, 12, 13, 99])
    assert pairs.match(TRUTH, IDS, RECONS[[3, 0]], IDS[[3, 0]], partial=True).image_N.tolist() == [
        11,
        14,
    ]


def test_pictures_are_matched_by_id_and_not_by_order() -> None:
    order = np.array([2, 0, 3, 1])
    matched = pairs.match(TRUTH, IDS, RECONS[order], IDS[order])
    np.testing.assert_array_equal(matched.recons, RECONS)
    np.testing.assert_array_equal(matched.truth[1:3], TRUTH[1:3])
    np.testing.assert_array_equal(matched.image_N, IDS)


def test_bytes_are_read_as_bytes() -> None:
    as_bytes = (TRUTH * 255).round().astype(np.uint8)
    np.testing.assert_allclose(pairs.ImageSource(as_bytes, IDS, "true images"), TRUTH, atol=1 / 500)
