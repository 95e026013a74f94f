"""Small data sets: what few pictures cannot say is told, and nothing better than chance is made of
them.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from unit.fake_report_inputs import write_fake_run
from unit.fake_scans import write_fake_scans
from unit.tiny_training import TableTargets, spy, tiny_config

from braingen.cli import main
from braingen.data import nsd
from braingen.data.checks import all_checks, check_before_training
from braingen.encoders.embedding_decoder import EmbeddingDecoder
from braingen.evaluation import evaluate, scored_source
from braingen.evaluation.decoding import decoder_scores
from braingen.evaluation.score_files import published_beside
from braingen.evaluation.tables import PUBLISHED
from braingen.report.inputs import read_inputs
from braingen.report.page import cannot_generate, render
from braingen.runtime.data_layout import Layout
from braingen.runtime.errors import UserError
from braingen.runtime.paths import EMBEDDING_DECODER
from braingen.runtime.run_folder import remove_run
from braingen.training import encoder as train
from braingen.training import encoder_setup, trainer


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("small") / "data"


# --- scores of few pictures -----------------------------------------------------------------------


@pytest.mark.parametrize(("count", "there"), [(2, False), (4, False), (5, True), (9, True)])
def test_no_retrieval_among_fewer_than_five_pictures(count, there):
    true = np.random.default_rng(0).normal(size=(count, 8))
    scores, table = decoder_scores(true, true, np.arange(count), resamples=10)
    found = {name for name in scores if name.startswith("retrieval")}
    assert bool(found) == there and set(table.columns) == set(scores)


def test_one_test_picture_is_refused_and_few_are_warned_of(caplog):
    with pytest.raises(UserError, match="cross-validate"):
        evaluate.warn_of_few(1)
    evaluate.warn_of_few(4)
    assert "0.500" in caplog.text and "0.49" in caplog.text and "Retrieval needs 5" in caplog.text
    caplog.clear()
    evaluate.warn_of_few(12)
    assert "0.28" in caplog.text and "Retrieval" not in caplog.text
    caplog.clear()
    evaluate.warn_of_few(20)
    assert not caplog.text


def test_two_way_identification_of_the_embedding_is_around_the_training_mean(root, tmp_path):
    """Embeddings far from zero and alike: only what is around the mean tells pictures apart."""
    config = tiny_config(root, tmp_path)
    draws = torch.Generator().manual_seed(0)
    mean_D = 100 * torch.randn(12, generator=draws)
    along_D = torch.nn.functional.normalize(
        mean_D - mean_D.mean(), dim=0
    )  # a correlation with the mean in it hardly sees this
    true_ND = (
        mean_D
        + 5 * torch.randn(10, 1, generator=draws) * along_D
        + 0.3 * torch.randn(10, 12, generator=draws)
    )
    image_ND = mean_D + 0.8 * (true_ND - mean_D) + 0.9 * torch.randn(10, 12, generator=draws)
    found = scored_source.decoding_scores(
        config, image_ND, image_ND - mean_D, true_ND, mean_D, np.arange(10)
    )
    around = [(x - mean_D).numpy() for x in (true_ND, image_ND)]

    def by_hand(truth: np.ndarray, decoded: np.ndarray) -> float:
        r = np.corrcoef(truth, decoded)[:10, 10:]
        return float(np.mean([[r[i, j] < r[j, j] for i in range(10) if i != j] for j in range(10)]))

    expected = by_hand(*around)
    assert abs(expected - by_hand(true_ND.numpy(), image_ND.numpy())) > 0.05
    score = found.scores["two_way_embedding"]
    assert score.value == pytest.approx(expected) and 0.5 < expected < 1
    assert score.chance == 0.5 and score.n == 10
    assert found.table["two_way_embedding"].mean() == pytest.approx(expected)
    assert found.identified["two_way_embedding"].value == pytest.approx(expected)


# --- a head that was never trained ----------------------------------------------------------------


@pytest.mark.parametrize(("scale", "trained"), [("0", False), ("0.33", True)])
@pytest.mark.slow
def test_pictures_are_retrieved_by_the_embedding_where_no_head_was_trained(
    monkeypatch, root, tmp_path, scale, trained
):
    monkeypatch.setattr(encoder_setup, "Targets", TableTargets)
    config = tiny_config(
        root,
        tmp_path,
        loss_image__clip_scale=scale,
        loss_image__mse_scale="1",
        training__with_ridge="false",
    )
    embedding_decoder = EmbeddingDecoder.from_pretrained(
        train.train(config, "image") / EMBEDDING_DECODER
    ).eval()
    voxels = torch.randn(3, int(embedding_decoder.config.encoder_config["subjects"]["1"]))
    out, own = embedding_decoder(voxels, 1), embedding_decoder.encoder(voxels, 1)
    assert embedding_decoder.config.head_trained == trained
    wanted = own.clip_BTD if trained else own.backbone_BTD
    torch.testing.assert_close(out.clip_BTD, wanted)
    assert not torch.allclose(own.clip_BTD, own.backbone_BTD)


# --- tables, reports and advice -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "beside"), [("NSD", True), ("simulated data", True), ("own scans", False)]
)
def test_published_figures_on_nsd_stand_beside_no_own_scans(data, beside):
    assert bool(published_beside(f"{data}, subject 1; all sessions")) == beside
    assert not beside or published_beside(data) == PUBLISHED


@pytest.mark.parametrize("able", [True, False])
@pytest.mark.slow
def test_the_report_says_when_the_models_cannot_generate_such_pictures(tmp_path, able):
    config = write_fake_run(tmp_path, images=8)
    random = {
        "pixcorr": {"value": 0.1, "low": 0.05, "high": 0.15},
        "mse": {"value": 0.2, "low": 0.18, "high": 0.22},
    }
    random["two_way_embedding"] = {"value": 0.5, "low": 0.4, "high": 0.6}
    oracle = {name: dict(ends) for name, ends in random.items()}
    oracle["two_way_embedding"] = {
        "value": 1.0,
        "low": 1.0,
        "high": 1.0,
    }  # of the embedding, no picture
    if able:
        oracle["mse"] = {"value": 0.1, "low": 0.09, "high": 0.11}  # lower is better
    controls = {"random": {"draws": 1, "scores": random}, "oracle": {"draws": 1, "scores": oracle}}
    (config.run.folder / "controls.json").write_text(json.dumps(controls), encoding="utf-8")
    inputs = read_inputs(config.run.folder, config.data.root)
    assert cannot_generate(inputs) != able
    assert ("cannot generate such images" in render(inputs)) != able


@pytest.mark.slow
def test_nothing_is_said_of_pictures_without_controls(tmp_path):
    config = write_fake_run(tmp_path, images=8)
    (config.run.folder / "controls.json").unlink(missing_ok=True)
    assert not cannot_generate(read_inputs(config.run.folder, config.data.root))


def test_advice_fits_a_folder_made_from_own_scans(tmp_path, capsys):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "prepared.json").write_text(
        json.dumps({"data": "own scans"}), encoding="utf-8"
    )
    sentences = [
        one.sentence
        for one in all_checks(Layout.of(tmp_path / "data"), [1])
        if one.level == "error"
    ]
    assert sentences and any("braingen prepare --scans" in text for text in sentences)
    assert not any("pscotti" in text for text in sentences)
    words = [
        "train",
        "image",
        "--data_path",
        str(tmp_path / "data"),
        "--folder",
        str(tmp_path / "run"),
        "--device",
        "cpu",
    ]
    assert main(words) == 2
    told = capsys.readouterr().err
    assert "braingen prepare --scans" in told and "pscotti" not in told
    text = f"x is missing; {nsd.GET_IT}."
    assert nsd.fitting_advice(text, tmp_path / "elsewhere") == text


@pytest.mark.slow
def test_warnings_fit_a_folder_made_from_own_scans_too(tmp_path, caplog):
    scans = write_fake_scans(tmp_path / "scans", subjects=("01",)).root
    root = tmp_path / "data"
    assert main(["prepare", "--scans", str(scans), "--data_path", str(root)]) == 0
    Layout.of(root).wds_test(1, "new_test").unlink()
    warnings = check_before_training(Layout.of(root), [1], captions=False)
    assert warnings and "0.tar is missing" in caplog.text
    assert "braingen prepare --scans" in caplog.text and "pscotti" not in caplog.text


def test_a_refused_training_leaves_no_run_folder(root, tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise UserError("no")

    config = tiny_config(root, tmp_path / "runs" / "one")
    monkeypatch.setattr(train, "setup", refuse)
    with pytest.raises(UserError, match="no"):
        train.train(config, "image")
    assert not (tmp_path / "runs" / "one").exists()


@pytest.mark.parametrize("name", ["run/image", "run/reconstructions/brain"])
def test_nothing_of_a_refused_run_is_left(tmp_path, name):
    (tmp_path / "kept").mkdir()
    (tmp_path / name).mkdir(parents=True)
    (tmp_path / name / "config.yaml").write_text("a: 1")
    remove_run(tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]


@pytest.mark.slow
def test_a_folder_with_work_or_of_an_earlier_run_stays_when_a_training_is_refused(
    root, tmp_path, monkeypatch
):
    monkeypatch.setattr(encoder_setup, "Targets", TableTargets)
    config = tiny_config(root, tmp_path, training__num_epochs="1")

    def stop(*_, **__):
        raise UserError("halfway")

    with monkeypatch.context() as patched:
        patched.setattr(trainer, "end_tracking", stop)
        with pytest.raises(UserError, match="halfway"):
            train.train(config, "image")
    assert (tmp_path / "image" / "metrics.jsonl").exists()
    calls: list[str] = []
    spy(monkeypatch, train, "fit", lambda *_: calls.append("fit"))
    train.train(config, "image")  # goes on
    assert calls == ["fit"] and (tmp_path / "image" / EMBEDDING_DECODER).is_dir()
