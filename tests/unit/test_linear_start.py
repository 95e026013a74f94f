"""Training beside ridge regression: what is fitted, what is kept, and that it is never below."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch.nn.functional import cosine_similarity
from unit.tiny_training import TableTargets, spy, tiny_config

from braingen.config import load_config
from braingen.data.betas import Betas
from braingen.data.trials import Repeats
from braingen.encoders.embedding_decoder import EmbeddingDecoder
from braingen.encoders.linear_readout import LinearReadout, OutputWeights
from braingen.encoders.ridge import fit_ridge
from braingen.runtime.data_layout import Layout
from braingen.runtime.run_folder import Run
from braingen.training import diffusion_data, encoder_setup, linear_fit
from braingen.training import encoder as stage
from braingen.types import Trials


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


class Features:
    """Stands in for the frozen image network: the targets themselves, or what has nothing to do
    with pictures.
    """

    useful = True

    def __init__(self, _: object, targets: TableTargets) -> None:
        self.targets = targets

    def of_ids(self, image_N: np.ndarray) -> dict[str, np.ndarray]:
        if self.useful:
            return {"embedding": self.targets.image(image_N).flatten(1).numpy()}
        draws = np.random.default_rng(len(image_N))
        return {"embedding": draws.normal(size=(len(image_N), 3)).astype(np.float32)}


@pytest.mark.parametrize(("useful", "held_images"), [(True, 40), (False, 40), (True, 29)])
def test_the_better_one_of_ridge_and_inversion_is_used(monkeypatch, useful, held_images):
    """The inversion weighs voxels of very different noise, where its features say something."""
    draws = np.random.default_rng(0)
    voxels, images, repeats = 150, 120, 2
    truth_NR = draws.normal(size=(images, 5)).astype(np.float32)
    image_T = np.repeat(np.arange(images), repeats)
    noise_TV = draws.normal(size=(len(image_T), voxels))
    noise_TV *= 10 * np.exp(1.2 * draws.normal(size=voxels))
    signal_TV = truth_NR[image_T] @ draws.normal(size=(5, voxels))
    response_TV = (signal_TV + noise_TV).astype(np.float32)
    betas = SimpleNamespace(voxels=voxels, rows=lambda rows: response_TV[rows])
    table = pd.DataFrame({"trial": np.arange(len(image_T)), "image": image_T})
    left = image_T >= images - held_images
    kept, held = (Trials(table[each], 1) for each in (~left, left))
    linear = LinearReadout({1: voxels}, 5, 1, 5)
    linear.set_basis(torch.from_numpy(truth_NR)[:, None])
    rows = np.arange(images)
    decoder = SimpleNamespace(linear=linear, device="cpu")
    linear_fit.fit_ridges(decoder, (kept, betas), held, torch.from_numpy(truth_NR), rows)
    before = linear.linears["1"].weight_RV.clone(), linear.judged["1"].weight_RV.clone()
    monkeypatch.setattr(linear_fit, "FeatureSpaces", Features)
    monkeypatch.setattr(Features, "useful", useful)
    targets = SimpleNamespace(image=lambda ids: torch.from_numpy(truth_NR[ids]))
    config = load_config(None, {"run.device": "cpu", "training.linear": "best"})
    linear_fit.take_better(
        decoder, [(kept, betas)], [held], torch.from_numpy(truth_NR), rows, config, targets
    )
    after = linear.linears["1"].weight_RV, linear.judged["1"].weight_RV
    taken = [not torch.equal(a, b) for a, b in zip(after, before)]
    used = useful and held_images >= linear_fit.FEWEST_TO_CHOOSE
    assert taken == [used, used]
    assert not torch.equal(*after)  # one knows the held-out images, the other does not


def test_training_asks_for_the_better_one_where_it_is_to(monkeypatch, root, tmp_path):
    asked: list[tuple[int, set[int]]] = []
    monkeypatch.setattr(
        encoder_setup,
        "take_better",
        lambda _, kept, held, *__: asked.extend(
            (trials.subject, set(part.table["image"])) for (trials, _), part in zip(kept, held)
        ),
    )
    encoder_setup.setup(tiny_config(root, tmp_path), "image")
    assert not asked
    config = tiny_config(root, tmp_path, training__linear="best")
    encoder_setup.setup(config, "image")
    ((_, held),) = encoder_setup.splits_of(config)
    assert asked == [(1, set(held.table["image"]))]
