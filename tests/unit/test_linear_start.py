"""Training beside ridge regression: what is fitted, what is kept, and that it is never below."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import cosine_similarity
from unit.tiny_training import TableTargets, spy, tiny_config

from braingen.config import load_config
from braingen.data.betas import Betas
from braingen.data.trials import Repeats
from braingen.encoders.embedding_decoder import EmbeddingDecoder
from braingen.encoders.linear_readout import OutputWeights
from braingen.encoders.ridge import fit_ridge
from braingen.runtime.data_layout import Layout
from braingen.runtime.run_folder import Run
from braingen.training import diffusion_data, encoder_setup
from braingen.training import encoder as stage


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("linear") / "data"


@pytest.fixture(autouse=True)
def table_in_place_of_clip(monkeypatch):
    monkeypatch.setattr(encoder_setup, "Targets", TableTargets)


def test_every_subject_has_its_own_ridge_without_and_with_held_out_images(root, tmp_path):
    config = tiny_config(root, tmp_path, data__subjects="1,2")
    parts = encoder_setup.setup(config, "image")
    decoder = parts.embedding_decoder.eval()
    for kept, held in encoder_setup.splits_of(config):
        betas = Betas.of(Layout.of(root), kept.subject)
        expected = []
        for tables in ([kept.table], [kept.table, held.table]):
            image = np.concatenate([table["image"].to_numpy() for table in tables])
            voxels = betas.rows(np.concatenate([table["trial"].to_numpy() for table in tables]))
            aim = parts.targets_ND[parts.row_of_image[image]].flatten(1).numpy()
            expected.append(fit_ridge(voxels, aim, image))
        x = betas.rows(held.table["trial"].to_numpy())
        with decoder.without_held_out():
            unseen = decoder.linear(torch.from_numpy(x), kept.subject).flatten(1)
        found = decoder.linear(torch.from_numpy(x), kept.subject).flatten(1)
        np.testing.assert_allclose(unseen.numpy(), expected[0].predict(x), rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(found.numpy(), expected[1].predict(x), rtol=1e-3, atol=1e-4)
        assert not torch.allclose(unseen, found, atol=1e-3)
    assert not list(decoder.linear.parameters())  # nothing of it is trained


@pytest.mark.slow
def test_what_is_kept_is_used_as_held_out_images_chose_and_is_not_below_ridge(root, tmp_path):
    config = tiny_config(root, tmp_path / "run")
    folder = stage.train(config, "image")
    decoder = EmbeddingDecoder.from_pretrained(folder / "embedding_decoder").eval()
    records = Run(folder).metrics
    best = max(records, key=lambda record: record["validation/cosine"])
    chosen = OutputWeights(best["validation/encoder_weight"], best["validation/prior_weight"])
    assert decoder.linear.weights == chosen
    assert all(
        record["validation/cosine"] >= record["validation/cosine_encoder_0_prior_0"]
        for record in records
    )
    parts = encoder_setup.setup(config, "image")
    ((kept, betas),) = parts.held_out
    rows, image = kept.table["trial"].to_numpy(), kept.table["image"].to_numpy()
    with decoder.without_held_out():
        mean = torch.stack(
            [
                decoder(torch.from_numpy(betas.rows(rows[image == one])), 1).backbone_BTD.mean(0)
                for one in np.unique(image)
            ]
        )
    truth = parts.targets_ND[parts.row_of_image[np.unique(image)]].flatten(1)
    cosine = cosine_similarity(decoder.through_prior(mean).flatten(1), truth).mean()
    assert cosine.item() == pytest.approx(best["validation/cosine"], abs=1e-4)


@pytest.mark.slow
def test_without_ridge_there_is_none(root, tmp_path):
    config = tiny_config(root, tmp_path / "run", training__with_ridge="false")
    folder = stage.train(config, "image")
    assert EmbeddingDecoder.from_pretrained(folder / "embedding_decoder").linear is None
    assert "validation/encoder_weight" not in Run(folder).metrics[0]


@pytest.mark.slow
def test_weights_that_folds_chose_are_used_whatever_the_own_held_out_images_say(
    monkeypatch, root, tmp_path
):
    monkeypatch.setattr(stage, "FOLDS", 2)
    monkeypatch.setattr(
        stage, "choose_by_folds", lambda *_: stage.FoldChoice(2, OutputWeights(0.75, 0.5))
    )
    folder = stage.train(tiny_config(root, tmp_path / "run", training__checkpoint="folds"), "image")
    decoder = EmbeddingDecoder.from_pretrained(folder / "embedding_decoder")
    assert decoder.linear.weights == OutputWeights(0.75, 0.5)


@pytest.mark.slow
def test_a_new_person_gets_ridge_of_its_own(monkeypatch, root, tmp_path):
    first = stage.train(tiny_config(root, tmp_path / "first"), "image")
    start = EmbeddingDecoder.from_pretrained(first / "embedding_decoder")
    fitted: list[int] = []
    spy(
        monkeypatch,
        encoder_setup,
        "fit_ridges",
        lambda _, kept, *__: fitted.append(kept[0].subject),
    )
    config = tiny_config(
        root,
        tmp_path / "second",
        training__init_from=str(first),
        training__trained="subject",
        data__subjects="2",
    )
    decoder = encoder_setup.setup(config, "image").embedding_decoder
    assert fitted == [2] and list(decoder.linear.linears) == ["2"]
    torch.testing.assert_close(decoder.linear.basis_RTD, start.linear.basis_RTD)
    assert decoder.linear.linears["2"].weight_RV.abs().sum() > 0


def test_fine_tuning_decodes_held_out_images_as_unseen_ones(monkeypatch):
    """`decoded_table` is where fine-tuning decodes training images, held-out ones among them."""
    entered: list[bool] = []

    class Stop(Exception):
        pass

    class Decoder:
        noise_shape = ()

        def parameters(self):
            return iter([torch.zeros(1)])

        @contextmanager
        def without_held_out(self):
            entered.append(True)
            yield
            entered.append(False)

    def read(*_, **__):
        assert entered == [True]
        raise Stop

    monkeypatch.setattr(diffusion_data, "decode_voxels", read)
    monkeypatch.setattr(diffusion_data, "fingerprint_of_files", lambda *_: "")
    monkeypatch.setattr(diffusion_data, "identity", lambda *_: "")

    class Computed:
        def __init__(self, *arguments: Any) -> None:
            self.compute = arguments[4]

        def table(self, ids: np.ndarray, _: str) -> Any:
            return self.compute(ids)

    monkeypatch.setattr(diffusion_data, "Cache", Computed)
    repeats = Repeats(np.array([5]), np.array([[0, 1]]))
    config = load_config(None, {"data.root": "nowhere", "run.folder": "nowhere"})
    betas = SimpleNamespace(
        voxels=2, path="", rows=lambda rows: np.zeros((len(rows), 2), dtype=np.float32)
    )
    with pytest.raises(Stop):
        diffusion_data.decoded_table(config, "image", Decoder(), betas, 1, repeats, 9)
