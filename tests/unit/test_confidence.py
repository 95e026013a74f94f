"""How close a decoded embedding is: predicted from held-out images, and right for new ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.stats import spearmanr
import torch
from unit.tiny_training import TableTargets, tiny_config

from braingen.encoders import confidence
from braingen.encoders.confidence import FEWEST, MOST, Confidence, angle, read_features
from braingen.encoders.embedding_decoder import EmbeddingDecoder
from braingen.encoders.linear_readout import RIDGE_ALONE
from braingen.evaluation.calibration import calibration_of
from braingen.evaluation.decoded_images import decode_test_images
from braingen.runtime.errors import UserError
from braingen.runtime.paths import EMBEDDING_DECODER
from braingen.training import encoder as stage
from braingen.training import encoder_setup
from braingen.training.calibration import calibrate


def world(images: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Features, and angles of which a third of the variance depends on them."""
    draws = torch.Generator().manual_seed(seed)
    features = torch.randn(images, 3, generator=draws) * torch.tensor([0.3, 2.0, 1.0]) + 5
    weight, noise = torch.tensor([0.5, -0.05, 0.0]), torch.randn(images, generator=draws)
    return features, ((features - 5) @ weight + 0.25 * noise - 1).exp()


def test_shares_of_new_images_are_what_was_asked_for_and_their_order_is_known():
    found = {level: [] for level in (0.5, 0.8, 0.9)}
    for seed in range(8):
        model = Confidence()
        model.fit(2, *world(91, seed))
        features, apart = world(1000, 100 + seed)
        for level, shares in found.items():
            close = model(features, torch.full((1000,), 2), level)
            shares.append(float((apart.cos() >= close.least_B).float().mean()))
        assert spearmanr(close.expected_B, apart.cos()).statistic > 0.4
        torch.testing.assert_close(model(features, torch.full((1000,), 2), 0.5)[0], close[0])
    for level, shares in found.items():  # sd of one calibration: .05 at level .5
        assert abs(np.mean(shares) - level) < 0.06


def test_limits_are_those_of_images_that_the_regression_has_not_seen():
    features, apart = torch.randn(FEWEST, 3), torch.rand(FEWEST) + 0.1
    model = Confidence()
    model.fit(1, features, apart)
    log, features = apart.double().log(), features.double()
    found = []
    for fold in range(confidence.FOLDS):
        out = torch.arange(FEWEST) % confidence.FOLDS == fold
        weight, intercept = confidence._regression(features[~out], log[~out])
        found.append(log[out] - features[out] @ weight - intercept)
    expected = torch.cat(found).sort().values[int(np.ceil(0.9 * (FEWEST + 1))) - 1]
    torch.testing.assert_close(model.excess_RQ[0, 89], expected.float())


def test_without_enough_images_or_with_more_presentations_nothing_is_told():
    model = Confidence()
    model.fit(1, *world(FEWEST - 1, 0))
    model.fit(2, *world(FEWEST, 0))
    features = world(3, 1)[0]
    close = model(features, torch.tensor([1, 2, MOST + 1]))
    assert torch.isnan(close.least_B).tolist() == [True, False, True]
    assert torch.isnan(close.expected_B).tolist() == [True, False, True]
    with pytest.raises(UserError, match=r"level=1 .* 0\.01 to 0\.99"):
        model(features, torch.ones(3), 1.0)


def test_features_are_of_the_mean_of_the_presentations_there_are():
    backbone = torch.randn(2, 3, 1, 5)
    present = torch.tensor([[True, True, False], [True, False, False]])
    read = read_features(backbone, present, lambda x: 2 * x)
    mean = torch.stack([backbone[0, :2].mean(0), backbone[1, 0]])
    torch.testing.assert_close(read.embedding_BTD, 2 * mean)
    length = mean.flatten(1).norm(dim=1)
    error = (backbone[0, :2].var(0) / 2).mean().sqrt()
    torch.testing.assert_close(read.features_BF[:, 0].exp(), length)
    torch.testing.assert_close(read.features_BF[:, 1].exp(), length)
    torch.testing.assert_close(read.features_BF[0, 2].exp(), error)
    assert read.features_BF[1, 2] == pytest.approx(np.log(confidence.SMALL))


@pytest.fixture
def parts(monkeypatch, tmp_path):
    monkeypatch.setattr(encoder_setup, "Targets", TableTargets)
    monkeypatch.setattr(confidence, "FEWEST", 2)
    return encoder_setup.setup(tiny_config(tmp_path / "data", tmp_path / "run"), "image")


def test_held_out_images_are_decoded_as_if_unseen_by_their_first_presentations(parts):
    decoder, ((trials, betas),) = parts.embedding_decoder, parts.held_out
    given = {}

    def taken(times: int, features: torch.Tensor, apart: torch.Tensor) -> None:
        given[times] = features, apart

    decoder.confidence.fit = taken
    torch.nn.init.normal_(decoder.linear.linears["1"].weight_RV)  # unlike that without them
    decoder.linear.choose(RIDGE_ALONE)
    calibrate(decoder, parts)
    assert decoder.training
    images = trials.table.groupby("image")["trial"].apply(list)
    assert {times: len(rows[1]) for times, rows in given.items()} == {
        times: int((images.map(len) >= times).sum()) for times in (1, 2, 3)
    }
    image, rows = next(iter(images.items()))
    decoder.eval()
    with torch.no_grad(), decoder.without_held_out():
        voxels = torch.from_numpy(betas.rows(np.array(rows[:2])))
        mean = decoder(voxels, 1).backbone_BTD.mean(0, keepdim=True)
        truth = parts.targets_ND[parts.row_of_image[[image]]]
        expected = angle(decoder.predicted(mean), truth)
    torch.testing.assert_close(given[2][1][:1], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_a_trained_encoder_is_calibrated_and_test_images_are_held_against_it(
    monkeypatch, tmp_path: Path
):
    monkeypatch.setattr(encoder_setup, "Targets", TableTargets)
    monkeypatch.setattr(confidence, "FEWEST", 2)
    config = tiny_config(tmp_path / "data", tmp_path / "run")
    folder = stage.train(config, "image")
    decoder = EmbeddingDecoder.from_pretrained(folder / EMBEDDING_DECODER)
    assert (decoder.confidence.images_R > 0).all()
    found = calibration_of(config, decode_test_images(config, TableTargets(config)))
    assert [row["level"] for row in found["levels"]] == [0.5, 0.6, 0.7, 0.8, 0.9, 0.95]
    for image in found["images"]:
        assert -1 <= image["least"] <= image["expected"] <= 1 and -1 <= image["true"] <= 1
    inside = np.mean([image["true"] >= image["least"] for image in found["images"]])
    assert found["levels"][4]["value"] == pytest.approx(inside)
    assert {image["image"] for image in found["images"]} == {0, 1, 2, 3}
    decoder.confidence.images_R.zero_()
    decoder.save_pretrained(folder / EMBEDDING_DECODER)
    assert calibration_of(config, decode_test_images(config, TableTargets(config))) is None
