"""Anybody's pictures through `braingen evaluate`, and evaluated runs through `braingen compare`."""

from __future__ import annotations

import json
from pathlib import Path
import shutil

import h5py
import numpy as np
import pandas as pd
from PIL import Image
import pytest
import torch
import torchvision
from unit.fake_report_inputs import write_fake_run

from braingen.cli import main
from braingen.config import Config
from braingen.config.evaluation import EvaluationConfig
from braingen.config.run_and_data import DataConfig
from braingen.data.nsd import SIMULATED_ATTRIBUTE
from braingen.evaluation.compare import read_run
from braingen.evaluation.features import recipes
from braingen.evaluation.observers import observers
from braingen.runtime.errors import UserError

pytestmark = pytest.mark.slow  # left out of `make quick`

IMAGES = 10


@pytest.fixture(scope="module")
def seen(tmp_path_factory) -> tuple[Path, np.ndarray, np.ndarray]:
    """A data folder of simulated pictures with image ids 1, 3, 5, ..., and those pictures."""
    config = write_fake_run(tmp_path_factory.mktemp("seen"), images=IMAGES, epochs=1)
    ids = 2 * np.arange(IMAGES) + 1
    with h5py.File(config.data.root / "coco_images_224_float16.hdf5") as file:
        return config.data.root, ids, file["images"][list(ids)].astype(np.float32)


def pngs(folder: Path, ids: np.ndarray, images_N3HW: np.ndarray) -> Path:
    folder.mkdir()
    for image, picture in zip(ids, images_N3HW):
        Image.fromarray((picture.transpose(1, 2, 0) * 255).round().astype(np.uint8)).save(
            folder / f"{image:06d}.png"
        )
    return folder


def noisy(images_N3HW: np.ndarray, level: float) -> np.ndarray:
    noise = np.random.default_rng(0).standard_normal(images_N3HW.shape).astype(np.float32)
    return np.clip(images_N3HW + level * noise, 0, 1)


def array(path: Path, ids: np.ndarray, images_N3HW: np.ndarray) -> Path:
    np.savez(path, images=images_N3HW, ids=ids)
    return path


def evaluated(folder: Path, truth: Path, recons: Path, *words: str) -> dict[str, dict[str, float]]:
    paths = [
        "--all_recons_path",
        str(recons),
        "--true_images_path",
        str(truth),
        "--folder",
        str(folder),
        "--root",
        str(folder / "no data"),
    ]
    assert main(["evaluate", *paths, "--bootstrap", "100", *words]) == 0
    return json.loads((folder / "scores.json").read_text())


@pytest.mark.slow
def test_the_form_of_the_file_does_not_matter(seen, tmp_path):
    _, ids, images = seen
    truth = array(tmp_path / "truth.npz", ids, images)
    given = noisy(images, 0.2)
    shuffled = np.random.default_rng(1).permutation(IMAGES)
    np.save(tmp_path / "a.npy", given[shuffled])
    np.save(tmp_path / "a_ids.npy", ids[shuffled])
    torch.save(
        {"all_recons": torch.from_numpy(given), "ids": torch.from_numpy(ids)}, tmp_path / "a.pt"
    )
    with h5py.File(tmp_path / "a.hdf5", "w") as file:
        file["images"], file["ids"] = given, ids
    forms = [
        array(tmp_path / "a.npz", ids, given),
        tmp_path / "a.npy",
        tmp_path / "a.pt",
        tmp_path / "a.hdf5",
    ]
    first, *others = [
        evaluated(tmp_path / f"run{number}", truth, path) for number, path in enumerate(forms)
    ]
    assert all(other == first for other in others)
    assert 0 < first["pixcorr"]["value"] < 1 and first["pixcorr"]["n"] == IMAGES
    rounded = evaluated(tmp_path / "rounded", truth, pngs(tmp_path / "pngs", ids, given))
    assert rounded["pixcorr"]["value"] == pytest.approx(first["pixcorr"]["value"], abs=1e-3)


def test_mindeye2s_evals_are_read_as_they_are(seen, tmp_path):
    """Neither file has ids; all_images.pt lies one folder up and is found."""
    _, _, images = seen
    (tmp_path / "evals" / "model").mkdir(parents=True)
    torch.save(torch.from_numpy(images), tmp_path / "evals" / "all_images.pt")
    given = torch.nn.functional.interpolate(
        torch.from_numpy(images), size=(64, 64), mode="bilinear"
    )
    torch.save(given, tmp_path / "evals" / "model" / "model_all_recons.pt")
    words = [
        "--all_recons_path",
        str(tmp_path / "evals" / "model" / "model_all_recons.pt"),
        "--folder",
        str(tmp_path / "run"),
    ]
    assert (
        main(
            [
                "evaluate",
                *words,
                "--root",
                str(tmp_path / "no data"),
                "--bootstrap",
                "50",
                "--method",
                "theirs",
            ]
        )
        == 0
    )
    scores = json.loads((tmp_path / "run" / "scores.json").read_text())
    assert scores["pixcorr"]["value"] > 0.95 and scores["pixcorr"]["n"] == IMAGES
    assert "| theirs | all_images.pt; no image ids" in (tmp_path / "run" / "scores.md").read_text()
    torch.save(given[:-1], tmp_path / "evals" / "model" / "model_all_recons.pt")
    assert main(["evaluate", *words, "--root", str(tmp_path / "no data")]) == 2


def test_pictures_beside_a_data_folder(seen, tmp_path):
    """What was seen comes from there, by image id; photographs here, so that no judge is asked."""
    root, ids, images = seen
    shutil.copytree(root, tmp_path / "data")
    with h5py.File(tmp_path / "data" / "coco_images_224_float16.hdf5", "r+") as file:
        del file["images"].attrs[SIMULATED_ATTRIBUTE]
    folder = pngs(tmp_path / "pngs", ids[::2], noisy(images[::2], 0.1))
    words = [
        "--all_recons_path",
        str(folder),
        "--folder",
        str(tmp_path / "run"),
        "--root",
        str(tmp_path / "data"),
        "--bootstrap",
        "50",
    ]
    assert main(["evaluate", *words]) == 0
    scores = json.loads((tmp_path / "run" / "scores.json").read_text())
    assert scores["pixcorr"]["n"] == len(ids[::2]) and 0.5 < scores["pixcorr"]["value"] < 1
    with Image.open(tmp_path / "run" / "best_and_worst.png") as sheet:
        assert sheet.width > 500
    assert "NSD, subject 1; matched by image id" in (tmp_path / "run" / "scores.md").read_text()


def test_a_missing_network_is_named_with_its_line_and_strict_refuses(
    seen, tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "nothing"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "nothing"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "nothing"))
    _, ids, images = seen
    truth = array(tmp_path / "truth.npz", ids, images)
    scores = evaluated(tmp_path / "run", truth, truth)
    told = capsys.readouterr().out.replace("\n", "")
    missing = json.loads((tmp_path / "run" / "scores_provenance.json").read_text())["missing"]
    assert missing.keys() == recipes().keys()
    assert not {"two_way_alexnet2", "lpips", "dreamsim"} & scores.keys()
    assert recipes()["alexnet2"].line[:40] in told
    words = [
        "--all_recons_path",
        str(truth),
        "--true_images_path",
        str(truth),
        "--folder",
        str(tmp_path / "strict"),
        "--strict",
    ]
    assert main(["evaluate", *words, "--root", str(tmp_path / "no data")]) == 2
    assert "AlexNet(2) are missing" in capsys.readouterr().err
    assert not (tmp_path / "strict" / "scores.json").exists()


@pytest.mark.long
@pytest.mark.slow
def test_who_looks_at_simulated_pictures(seen, tmp_path, monkeypatch):
    """The tiny CLIP and the judge; the field's networks too when asked for, from the folder that is
    named, but CLIP.
    """
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "nothing"))
    monkeypatch.setenv("HOME", str(tmp_path / "nothing"))
    monkeypatch.setattr("braingen.evaluation.observers.readouts", lambda judge, layout, ids: [])
    root, ids, _ = seen
    torch.save(
        torchvision.models.alexnet(weights=None).state_dict(), tmp_path / recipes()["alexnet2"].file
    )

    def looking(**scores: object) -> tuple[list[str], dict[str, str]]:
        config = Config(
            data=DataConfig(root=root),
            evaluation=EvaluationConfig(feature_weights=str(tmp_path), **scores),
        )
        networks, _, missing = observers(config, True, ids)
        return [network.name for network in networks], missing

    assert looking() == (["clip", "classifier_early", "classifier_late"], {})
    names, missing = looking(published_networks=True)
    assert names == ["clip", "classifier_early", "classifier_late", "alexnet2", "alexnet5", "lpips"]
    assert missing.keys() == {"inception", "effnet_b1", "swav", "dreamsim"}
    with pytest.raises(UserError, match="Inception"):
        looking(published_networks=True, strict=True)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda ids, images: (ids, images * 255), "divide by 255"),
        (
            lambda ids, images: (
                ids,
                np.where(np.arange(IMAGES)[:, None, None, None] == 2, np.nan, images),
            ),
            "NaN or infinity in image 5",
        ),
        (
            lambda ids, images: (
                ids,
                np.where(np.arange(IMAGES)[:, None, None, None] == 1, 0.5, images),
            ),
            "constant",
        ),
        (lambda ids, images: (np.r_[ids[:-1], ids[0]], images), "more than once"),
        (lambda ids, images: (ids[:-2], images[:-2]), "have no reconstruction: images 17, 19"),
        (lambda ids, images: (np.r_[ids[:-1], 999], images), "reconstructions of image 999"),
        (lambda ids, images: (ids, images[:, :, :100]), "square"),
    ],
)
def test_pictures_that_cannot_be_scored_are_refused_by_name(
    seen, tmp_path, capsys, change, sentence
):
    _, ids, images = seen
    truth, given = (
        array(tmp_path / "truth.npz", ids, images),
        array(tmp_path / "given.npz", *change(ids, images)),
    )
    words = [
        "--all_recons_path",
        str(given),
        "--true_images_path",
        str(truth),
        "--folder",
        str(tmp_path / "run"),
    ]
    assert main(["evaluate", *words]) == 2
    assert sentence in capsys.readouterr().err
    assert not (tmp_path / "run" / "scores.json").exists()


def test_some_pictures_are_scored_when_asked_for(seen, tmp_path):
    _, ids, images = seen
    truth, given = (
        array(tmp_path / "truth.npz", ids, images),
        array(tmp_path / "given.npz", ids[:-2], images[:-2]),
    )
    assert evaluated(tmp_path / "run", truth, given, "--partial")["ssim"]["n"] == IMAGES - 2


def test_tables_hold_published_rows_with_their_n_and_protocol(seen, tmp_path):
    _, ids, images = seen
    truth = array(tmp_path / "truth.npz", ids, images)
    evaluated(tmp_path / "run", truth, array(tmp_path / "given.npz", ids, noisy(images, 0.1)))
    markdown, latex = (
        (tmp_path / "run" / name).read_text() for name in ("scores.md", "scores.tex")
    )
    table = pd.read_csv(tmp_path / "run" / "scores.csv")
    for text in (markdown, latex):
        assert "MindEye2" in text and "Brain-IT" in text and "without antialiasing" in markdown
    ours = table[(table.method == "BrainGen") & (table.score == "pixcorr")].iloc[0]
    theirs = table[(table.method == "MindEye2") & (table.score == "pixcorr")].iloc[0]
    assert ours.n == IMAGES and ours.low <= ours.value <= ours.high
    assert theirs.value == 0.322 and theirs.n == 1000 and "40 sessions" in theirs.protocol


def fake_run(
    folder: Path, values_N: np.ndarray, seed: int, subject: int = 1, width: int = 64
) -> Path:
    """What an evaluated run leaves, as far as a comparison reads it."""
    drawn = folder / "reconstructions" / "brain"
    drawn.mkdir(parents=True)
    (folder / "image").mkdir()
    (folder / "image" / "config.yaml").write_text(
        f"encoder: {{hidden_dim: {width}}}\nseed: {seed}\n"
    )
    (drawn / "config.yaml").write_text(
        f"data: {{subjects: [{subject}]}}\nseed: {seed}\nweights: {seed}\n"
    )
    pd.DataFrame(
        {"pixcorr": values_N, "object_predicted": "cup"},
        index=pd.Index(range(len(values_N)), name="image"),
    ).to_csv(folder / "scores_per_image.csv")
    return folder


def test_a_seed_makes_no_difference_and_noise_does(tmp_path):
    rng = np.random.default_rng(0)
    truth = rng.uniform(0.2, 0.6, 80)
    one = fake_run(tmp_path / "one", truth + rng.normal(0, 0.05, 80), seed=0)
    two = fake_run(tmp_path / "two", truth + rng.normal(0, 0.05, 80), seed=1)
    worse = fake_run(tmp_path / "worse", truth - 0.08 + rng.normal(0, 0.05, 80), seed=0, width=32)
    out = tmp_path / "out"
    assert main(["compare", str(one), str(two), str(worse), "--output", str(out)]) == 0
    told = json.loads((out / "comparisons.json").read_text())
    found = {(each["first"], each["second"]): each for each in told if each["level"] == "runs"}
    assert found[str(one), str(two)]["conclusion"] == "not different"
    noise = found[str(one), str(worse)]
    assert noise["conclusion"] == "better" and 0.05 < noise["low"] < 0.08 < noise["high"] < 0.11
    summary = pd.read_csv(out / "summary.csv").set_index("method")
    assert (
        summary.loc[str(one), "seeds"] == 2 and summary.loc[str(worse), "seeds"] == 1
    )  # settings tell methods apart
    (methods,) = [each for each in told if each["level"] == "methods"]
    assert (methods["first"], methods["second"], methods["conclusion"]) == (
        str(one),
        str(worse),
        "better",
    )
    assert 0.05 < methods["low"] < 0.08 < methods["high"] < 0.11
    assert "not different" in (out / "comparison.md").read_text()


def test_subjects_are_averaged_and_not_paired_with_each_other(tmp_path):
    folders = [
        fake_run(tmp_path / str(subject), np.linspace(0, 1, 20) + subject, seed=0, subject=subject)
        for subject in (1, 2)
    ]
    out = tmp_path / "out"
    assert main(["compare", *map(str, folders), "--output", str(out)]) == 0
    assert json.loads((out / "comparisons.json").read_text()) == []
    summary = pd.read_csv(out / "summary.csv").iloc[0]
    assert summary["value"] == pytest.approx(2.0, rel=1e-5) and summary["subjects"] == 2
    assert summary["between_subjects"] == pytest.approx(np.sqrt(0.5), rel=1e-5)


def test_methods_are_compared_over_subjects_and_seeds(tmp_path):
    """Subjects weigh the same whatever their number of seeds, and an image that all saw is one
    image.
    """
    rng = np.random.default_rng(0)
    folders = []
    for width, gain in ((64, 0.05), (32, 0.0)):
        for subject, seeds in ((1, 3), (2, 1)):
            for seed in range(seeds):
                values = subject + gain * subject + rng.normal(0, 0.02, 60)
                folders.append(
                    fake_run(tmp_path / f"{width}-{subject}-{seed}", values, seed, subject, width)
                )
    out = tmp_path / "out"
    assert main(["compare", *map(str, folders), "--output", str(out)]) == 0
    (found,) = [
        each
        for each in json.loads((out / "comparisons.json").read_text())
        if each["level"] == "methods"
    ]
    assert (
        found["difference"] == pytest.approx(0.05 * 1.5, abs=0.006)
        and found["n"] == 60
        and found["conclusion"] == "better"
    )
    summary = pd.read_csv(out / "summary.csv").set_index("method")
    assert (
        summary.loc[str(folders[0]), "subjects"] == 2 and summary.loc[str(folders[0]), "seeds"] == 3
    )
    assert summary.loc[str(folders[0]), "between_seeds"] < 0.02


def test_a_run_given_twice_is_told(tmp_path, capsys):
    folders = [
        fake_run(tmp_path / name, np.linspace(0, 1, 20), seed=0) for name in ("a", "copy of a")
    ]
    assert main(["compare", *map(str, folders), "--output", str(tmp_path / "out")]) == 2
    assert "would count twice" in capsys.readouterr().err


def test_mistakes_are_told(tmp_path, capsys):
    assert main(["compare", "runs/a"]) == 2
    assert "at least 2" in capsys.readouterr().err
    with pytest.raises(UserError, match="braingen evaluate"):
        read_run(tmp_path)
