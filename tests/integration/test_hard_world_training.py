"""On the hard world every way of decoding is trained and scored by the ordinary code."""

from __future__ import annotations

import numpy as np
import pytest

from braingen.config import load_config
from braingen.data.betas import Betas
from braingen.data.trials import group_repeats, test_trials, train_trials
from braingen.encoders.embedding_decoder import EmbeddingDecoder
from braingen.encoding_model.features import FeatureSpaces
from braingen.encoding_model.pictures import library_pictures
from braingen.encoding_model.responses import average_responses
from braingen.encoding_model.run import mean_responses
from braingen.encoding_model.train import fit_subject
from braingen.evaluation.embeddings import decode_test_images, score_embeddings, scores_of_decoded
from braingen.evaluation.ridge_baseline import ridge_embeddings
from braingen.runtime.data_layout import Layout
from braingen.runtime.paths import EMBEDDING_DECODER
from braingen.simulation.folder import Arguments
from braingen.simulation.hard_world.dataset import write_hard_dataset
from braingen.targets.tables import Targets
from braingen.training.encoder import train

pytestmark = pytest.mark.slow
SMALL = {
    "encoder.hidden_dim": "32",
    "encoder.n_blocks": "1",
    "prior.depth": "1",
    "training.num_epochs": "2",
    "run.tracker": "none",
    "encoding.band_draws": "0",
}


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hard")
    layout = write_hard_dataset(
        folder / "data",
        Arguments(2, 2, 150, num_voxels=200, num_test_images=20, noise=0.5, seed=0),
        show_progress=False,
    )
    changed = {**SMALL, "data.root": str(layout.root), "run.folder": str(folder / "run")}
    return load_config("simulated_hard", changed)


def test_an_encoder_is_trained_and_scored(config):
    run = train(config, "image")
    decoder = EmbeddingDecoder.from_pretrained(run / EMBEDDING_DECODER)
    decoded = decode_test_images(config, "image", decoder)
    assert decoded.embedding_ND.shape == (20, Targets(config).image(np.array([0])).shape[-1])
    scores = score_embeddings(config, "image", decoder, decoded)
    assert scores.chance["retrieval_brain_to_image"] == 1 / 20
    assert all(np.isfinite(values).all() and len(values) == 20 for values in scores.values.values())


def test_ridge_and_the_encoding_model_decode_above_chance(config):
    layout, targets = Layout.of(config.data.root), Targets(config)
    repeats = group_repeats(test_trials(layout, 1))
    true_ND = targets.image(repeats.image_N).flatten(1).numpy()
    raw_ND, mean_D = ridge_embeddings(config, targets, repeats.image_N)
    spaces = FeatureSpaces(config, targets)
    pictures = library_pictures(config, spaces)
    betas = Betas.of(layout, 1)
    known = average_responses(train_trials(layout, 1), betas)
    model = fit_subject(config, 1, known, spaces, pictures)
    measured_NV = mean_responses(repeats, betas)
    inverted_ND = model.decode(measured_NV, pictures.library(model)).embedding_ND
    for decoded_ND in (raw_ND.numpy(), inverted_ND):
        found = scores_of_decoded(config, decoded_ND, true_ND, mean_D.numpy(), repeats.image_N)
        assert found.values["retrieval_brain_to_image"].mean() > 2 / 20
