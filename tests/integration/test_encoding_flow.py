"""Encoding models by the commands people type, at reduced size: fitted for two people, for a new
one with their tuning, scored beside ridge, and drawn from.
"""

from __future__ import annotations

import json
from pathlib import Path
import shutil
from typing import NamedTuple

import numpy as np
import pandas as pd
from PIL import Image
import pytest
from safetensors.torch import load_file
import torch

from braingen.cli import main
from braingen.config import load_config
from braingen.config.overrides import parse_overrides
from braingen.data.pictures import load_picture
from braingen.data.stimuli import Stimuli
from braingen.data.volumes import load_places
from braingen.encoding_model.features import FeatureSpaces
from braingen.encoding_model.model import EncodingModel
from braingen.encoding_model.pictures import library_pictures
from braingen.runtime.data_layout import Layout
from braingen.targets.tables import Targets
from braingen.training.encoder_setup import setup

pytestmark = pytest.mark.slow
IMAGES = 8
REGIONS = ("v1", "v2", "v3", "v4", "higher")
SMALL = [
    "encoder.hidden_dim=32",
    "encoder.n_blocks=1",
    "prior.depth=1",
    "training.num_epochs=1",
    "training.batch_size=20",
    "generation.steps=1",
    "generation.use_text=false",
    "evaluation.bootstrap=50",
    "evaluation.retrieval_draws=3",
]
QUICK = ["encoding.band_draws=1", "encoding.decoding_folds=2"]


class Trained(NamedTuple):
    """Two people with encoding models, one of them with an image encoder."""

    words: list[str]
    run: Path
    data: Path


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Trained:
    folder = tmp_path_factory.mktemp("encoding")
    where = ["--config", "simulated", "--root", str(folder / "data")]
    simulated = [
        "simulation.num_subjects=2",
        "simulation.num_sessions=2",
        "simulation.trials_per_session=60",
        "simulation.num_voxels=120",
        f"--num_test_images={IMAGES}",
    ]
    assert main(["simulate", *where, *simulated]) == 0
    words = [*where, "--folder", str(folder / "run")]
    assert main(["train", "encoding", *words, "--subj", "1,2", *QUICK]) == 0
    assert main(["train", "image", *words, *SMALL]) == 0
    return Trained([*words, *SMALL], folder / "run", folder / "data")


def test_models_voxel_embeddings_and_summary_are_left(trained, capsys):
    folder = trained.run / "encoding"
    summary = json.loads((folder / "summary.json").read_text())
    space = load_file(folder / "voxel_space.safetensors")["space_KP"]
    for name, facts in summary.items():
        table = np.load(folder / f"{name}_voxels.npz")
        assert table["embedding"].shape == (facts["voxels"], len(space))
        np.testing.assert_allclose(np.linalg.norm(table["embedding"], axis=1), 1, rtol=1e-4)
        assert table["bands"].tolist() == ["embedding", "early", "middle", "late", "energy"]
        assert -1 < facts["explained_mean"] < facts["ceiling_median"] < 1
        assert facts["decoding"]["cosine"] is not None
    assert set(summary) == {"subj01", "subj02"}
    before = (folder / "summary.json").stat().st_mtime_ns
    again = [*trained.words[:6], "--subj", "1,2", *QUICK]
    assert main(["train", "encoding", *again]) == 0  # finished: nothing is done again
    assert (folder / "summary.json").stat().st_mtime_ns == before


def test_a_new_person_starts_from_other_peoples_tuning(trained, tmp_path, capsys):
    words = [*trained.words[:4], *QUICK, "--folder", str(tmp_path / "new"), "--num_sessions", "1"]
    assert main(["train", "encoding", *words, "--init_from", str(trained.run)]) == 0
    assert (tmp_path / "new" / "encoding" / "subj01").is_dir()
    other = [*words, "--folder", str(tmp_path / "other"), "--bands", "energy"]
    assert main(["train", "encoding", *other, "--init_from", str(trained.run)]) == 2
    assert "compared by the same features" in capsys.readouterr().err
    words[words.index("--folder") + 1] = str(tmp_path / "third")
    assert main(["train", "encoding", *words, "--init_from", str(trained.data)]) == 2
    assert "holds no encoding models" in capsys.readouterr().err


def test_a_library_of_ones_own_is_read_and_refused_with_a_test_image(trained, tmp_path, capsys):
    library = tmp_path / "pictures"
    library.mkdir()
    stimuli = Stimuli(Layout.of(trained.data))
    ids = np.arange(IMAGES, IMAGES + 14)

    def save(image: int) -> None:
        pixels = np.round(stimuli.images(np.array([image]))[0] * 255).astype(np.uint8)
        Image.fromarray(pixels.transpose(1, 2, 0)).save(library / f"{image}.png")

    for image in ids:
        save(int(image))
    config = load_config(*parse_overrides(trained.words))
    spaces = FeatureSpaces(config)
    kept = spaces.of_ids(ids[:2])
    pixels = np.stack([load_picture(library / f"{i}.png", 224, "") for i in ids[:2]])
    again = spaces.of_images(torch.from_numpy(pixels).float() / 255)
    assert list(again) == list(kept)
    for band, rows in kept.items():
        np.testing.assert_allclose(again[band], rows, atol=0.05 * rows.std())
    words = [*trained.words[:4], "--subj", "1", *QUICK, "--library", str(library)]
    assert main(["train", "encoding", *words, "--folder", str(tmp_path / "own")]) == 0
    shown, both = (
        library_pictures(load_config(*parse_overrides(given)), spaces)
        for given in (words[: words.index("--library")], words)
    )
    own = sorted(f"{image}.png" for image in ids)
    assert both.names == (*shown.names, *own)  # beside those that were shown
    np.testing.assert_array_equal(both.embedding_LD[: len(shown.names)], shown.embedding_LD)
    assert all(len(rows) == len(both.names) for rows in both.features.values())
    assert both.without(np.array(shown.names)).names == both.names[len(shown.names) :]
    save(3)
    assert main(["train", "encoding", *words, "--folder", str(tmp_path / "refused")]) == 2
    assert "holds a test image (3.png)" in capsys.readouterr().err


@pytest.mark.parametrize("folder", [False, True])
def test_synthetic_trials_are_of_pictures_that_were_not_seen(trained, tmp_path, folder, capsys):
    flags = ["data.synthetic_share=0.5", *QUICK, "--num_sessions", "1"]
    stimuli = Stimuli(Layout.of(trained.data))
    if folder:
        for image in range(IMAGES, IMAGES + 12):
            pixels = np.round(stimuli.images(np.array([image]))[0] * 255).astype(np.uint8)
            Image.fromarray(pixels.transpose(1, 2, 0)).save(tmp_path / f"{image}.png")
        flags += ["--synthetic_images", str(tmp_path)]
    config = load_config(*parse_overrides([*trained.words, *flags]))
    parts = setup(config, "image")
    measured = setup(load_config(*parse_overrides(trained.words[:6])), "image")
    betas = parts.batches._betas[0]
    rows, images = parts.batches._rows[0], parts.batches._images[0]
    made = rows >= betas.measured.trials
    assert made.sum() == (~made).sum() and betas.trials == betas.measured.trials + made.sum()
    held = parts.held_out[0][0].table["image"].unique()
    assert not np.isin(images[made], [*held, *images[~made], *range(IMAGES)]).any()
    own = betas.rows(rows[made])
    assert np.isfinite(own).all() and 0.5 < own.std() < 2
    mixed = np.array([rows[made][3], rows[~made][2], rows[made][0]])
    np.testing.assert_array_equal(betas.rows(mixed)[[0, 2]], own[[3, 0]])
    np.testing.assert_array_equal(betas.rows(mixed)[1], betas.measured.rows(mixed[1:2])[0])
    places = parts.row_of_image[images[made]]
    assert (places >= 0).all()
    if folder:
        assert images[made].min() >= len(stimuli)
        truth = Targets(config).image(np.arange(IMAGES, IMAGES + 12))
        decoder = parts.embedding_decoder
        found = parts.targets_ND[parts.row_of_image[len(stimuli) + np.arange(12)]]
        found = decoder.in_clip_units(found)
        gap = torch.cdist(found.flatten(1), truth.flatten(1)).min(1).values
        assert gap.max() < 0.1 * truth.std() * truth.shape[-1] ** 0.5
        assert main(["train", "text", *trained.words, *flags]) == 2
        assert "has no captions" in capsys.readouterr().err
    assert measured.batches._rows[0].max() < betas.measured.trials


def test_decoding_is_scored_beside_ridge_and_pictures_are_drawn_from_it(trained, tmp_path, capsys):
    words = [*trained.words, "--folder", str(tmp_path / "drawn")]
    words += ["--run.image", str(trained.run / "image")]
    words += ["--run.encoding", str(trained.run / "encoding")]
    assert main(["reconstruct", *words, "--decode_by", "encoding_model"]) == 0
    found = load_file(tmp_path / "drawn" / "reconstructions" / "brain" / "embeddings.safetensors")
    assert main(["evaluate", *words]) == 0
    scores = json.loads((tmp_path / "drawn" / "scores.json").read_text())
    cosine = scores["clip_cos"]
    assert cosine["encoding_model"] == pytest.approx(cosine["value"], abs=1e-5)
    brain = {name for name in scores if name.startswith("brain_correlation")}
    assert brain == {"brain_correlation", *(f"brain_correlation_{r}" for r in REGIONS)}
    assert all(scores[name]["chance"] == 0 and scores[name]["n"] == IMAGES for name in brain)
    assert "By the encoding model: clip_cos" in capsys.readouterr().out
    assert cosine["ridge"] != cosine["value"] and scores["pixcorr"]["encoding_model"] is None
    compared = json.loads((tmp_path / "drawn" / "comparisons.json").read_text())
    assert {"encoder minus ridge: clip_cos", "ridge minus encoding model: clip_cos"} <= {
        each["name"] for each in compared
    }
    assert found["image"].shape == found["image_clip"].shape == (IMAGES, 1, 128)
    first = tmp_path / "drawn" / "reconstructions" / "brain"
    many = [*words, "--decode_by", "encoding_model", "--samples", "3", "--choose_by", "responses"]
    many += ["--folder", str(tmp_path / "chosen")]
    assert main(["reconstruct", *many]) == 0
    folder = tmp_path / "chosen" / "reconstructions" / "brain"
    samples = json.loads((folder / "index.json").read_text())["samples"]
    assert {len(each["similarity"]) for each in samples.values()} == {3}
    for image, each in samples.items():
        assert each["similarity"][each["sample"]] == max(each["similarity"])
        pixels = [np.asarray(Image.open(at / f"{int(image):06d}.png")) for at in (folder, first)]
        same = np.array_equal(*pixels)
        assert same == (each["sample"] == 0)
    shutil.rmtree(tmp_path / "drawn")
    words[words.index("--run.encoding") + 1] = str(tmp_path / "nothing")
    assert main(["reconstruct", *words, "--decode_by", "encoding_model"]) == 2
    assert "There is no encoding model of subject 1" in capsys.readouterr().err


def test_tuning_of_bands_and_categories_is_mapped_and_compared(trained):
    words = [*trained.words, "--points", "2", "--parts", "whole"]
    words += ["--steps", "attributions,patterns,tuning,page"]
    assert main(["interpret", *words]) == 0
    out = trained.run / "interpret" / "image-target-integrated_gradients"
    own, places = out / "subj01", load_places(Layout.of(trained.data), 1)
    model = EncodingModel.load(trained.run / "encoding" / "subj01")
    for band, share_V in zip(model.ridge.bands, model.share_BV):
        np.testing.assert_array_equal(
            places.read(own / "nifti" / "bands" / f"{band}.nii.gz"), share_V
        )
    regions = pd.read_csv(own / "bands_regions.csv")
    assert {"explained", "noise-ceiling", *model.ridge.bands} == set(regions["map"])
    tuning = pd.read_csv(out / "tuning.csv")
    assert tuning["attributions"].dropna().between(-1, 1).all()
    assert tuning["patterns"].notna().any()
    name = tuning["class"][tuning["size"].idxmax()]
    map_V = places.read(own / "nifti" / "tuning" / f"{name.replace(' ', '_')}.nii.gz")
    assert np.abs(map_V).mean() == pytest.approx(tuning["size"].max(), rel=1e-3)
    said = " ".join(json.loads((out / "findings.json").read_text())["tuning"])
    assert "explains" in said and "with patterns" in said and "and with attributions" in said
    assert "Tuning: of subject 1" in (out / "interpret.html").read_text()
