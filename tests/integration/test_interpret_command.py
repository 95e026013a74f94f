"""`braingen interpret` on a small simulated run: every file is there, finished work stays, wrong
questions are refused.
"""

from __future__ import annotations

import json
from pathlib import Path

import nibabel
import numpy as np
import pandas as pd
import pytest
from unit.told_commands import ROOT

from braingen.cli import main
from braingen.data.volumes import load_places
from braingen.runtime.data_layout import Layout

IMAGES = 12


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> tuple[Path, Path, list[str]]:
    folder = tmp_path_factory.mktemp("explained")
    words = [
        "--config",
        "simulated",
        "--folder",
        str(folder / "run"),
        "--root",
        str(folder / "data"),
    ]
    words += [
        "simulation.num_sessions=1",
        "simulation.trials_per_session=90",
        "simulation.num_voxels=200",
    ]
    words += [
        f"--num_test_images={IMAGES}",
        "encoder.hidden_dim=32",
        "encoder.n_blocks=1",
        "prior.depth=1",
        "training.num_epochs=1",
    ]
    words += ["--tracker", "none", "run.device=cpu"]
    assert main(["simulate", *words]) == 0
    assert main(["train", "image", *words]) == 0
    return folder / "run", folder / "data", words


def explain(words: list[str], *more: str) -> int:
    return main(
        [
            "interpret",
            *words,
            "--points",
            "2",
            "--permutations",
            "50",
            "--draws",
            "2",
            "--components",
            "2",
            *more,
        ]
    )


def test_maps_tables_and_a_page_are_left_and_maps_are_not_made_twice(run, capsys):
    folder, data, words = run
    assert explain(words, "--nifti_images", "1", "--parts", "whole,level-0,level-0-expert-1") == 0
    told = capsys.readouterr().out
    out = folder / "interpret" / "image-target-integrated_gradients"
    assert "Completeness" in told and str(out / "interpret.html") in told.replace("\n", "")
    own, places = out / "subj01", load_places(Layout.of(data), 1)
    maps = np.load(own / "maps" / "whole.npy")
    assert maps.shape == (IMAGES, places.voxels) and np.isfinite(maps).all() and (maps != 0).any()
    first = json.loads((own / "maps" / "whole.json").read_text())["images"][0]
    assert (
        places.read(own / "nifti" / "images" / f"whole-{first:06d}.nii.gz").tobytes()
        == maps[0].tobytes()
    )
    np.testing.assert_allclose(
        places.read(own / "nifti" / "whole-mean.nii.gz"), maps.mean(0), atol=1e-6
    )
    regions = pd.read_csv(own / "regions.csv")
    assert {"V1v", "FFA-1", "food"} <= set(regions["region"]) and set(regions["map"]) == {
        "whole",
        "level-0",
        "level-0-expert-1",
    }
    assert places.read(own / "nifti" / "selectivity-level-3.nii.gz").shape == (places.voxels, 16)
    assert set(pd.read_csv(out / "ablation.csv")["ablated"]) >= {
        "level-3",
        "level-3-expert-15",
        "FFA-1",
    }
    assert np.load(own / "saliency" / "whole.npy").shape == (IMAGES, 48, 48)
    assert len(pd.read_csv(out / "component_loadings.csv")) == IMAGES
    patterns = pd.read_csv(out / "patterns.csv")
    assert {"person", "food"} <= set(patterns["class"]) and patterns["decoded"].dropna().between(
        0, 1
    ).all()
    assert set(pd.read_csv(own / "patterns_regions.csv")["map"]) == {
        *patterns["class"],
        "all categories",
    }
    of_food = places.read(own / "nifti" / "patterns" / "food.nii.gz")
    assert of_food.shape == (places.voxels,) and np.isfinite(of_food).all() and (of_food != 0).any()
    assert places.read(own / "nifti" / "patterns-size.nii.gz").min() >= 0
    page = (out / "interpret.html").read_text()
    assert "Encoding patterns" in page
    assert "level-0-expert-1" in page and "http://" not in page and "https://" not in page
    assert "no images were generated. There is no trained text encoder" in " ".join(
        json.loads((out / "findings.json").read_text())["ablation"]
    )
    assert "does not record" in " ".join(json.loads((out / "findings.json").read_text())["routers"])
    written = (own / "maps" / "whole.npy").stat().st_mtime_ns
    assert explain(words, "--parts", "whole", "--steps", "attributions,saliency") == 0
    assert (own / "maps" / "whole.npy").stat().st_mtime_ns == written


def test_other_questions_have_folders_of_their_own(run):
    folder, _, words = run
    assert (
        explain(
            words,
            "--about",
            "label:food",
            "--method",
            "gradient_shap",
            "--parts",
            "whole",
            "--steps",
            "attributions",
        )
        == 0
    )
    assert (folder / "interpret" / "image-label-food-gradient_shap" / "completeness.csv").exists()


def test_a_surface_figure_says_what_space_it_needs(run, capsys):
    folder, _, words = run
    more = [
        "--about",
        "label:food",
        "--parts",
        "whole",
        "--surface",
        "fsaverage5",
        "--steps",
        "attributions,page",
    ]
    assert explain(words, *more) == 0
    out = folder / "interpret" / "image-label-food-integrated_gradients"
    assert (out / "subj01" / "figures" / "whole-surface.png").stat().st_size > 10_000
    said = " ".join(json.loads((out / "findings.json").read_text())["attributions"])
    assert (
        "voxels lie within 3 mm of fsaverage5" in said
        and "right for volumes in MNI space only" in said
    )
    page = (out / "interpret.html").read_text()
    assert "Mean map of the whole decoder on the cortical surface" in page
    assert (
        explain(
            words,
            "--about",
            "label:food",
            "--parts",
            "levels",
            "--surface",
            "fsaverage5",
            "--steps",
            "attributions",
        )
        == 0
    )
    assert "Surface: the figure shows the map of the whole decoder" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("named", "told"),
    [
        ("fsaverage6", "did you mean fsaverage5?"),
        ("fsaverage5,lh.pial", "mixes fsaverage5 with other surfaces"),
        ("~/lh.nowhere.gii", "There is no surface ~/lh.nowhere.gii"),
        (str(ROOT / "README.md"), "cannot be read as a mesh"),
    ],
)
def test_a_wrong_surface_is_refused_before_any_work(run, named, told, capsys, monkeypatch):
    folder, _, words = run
    monkeypatch.setattr(
        "braingen.interpret.inputs.load_embedding_decoder",
        lambda *_: pytest.fail("the encoder was read"),
    )
    assert explain(words, "--about", "cosine", "--surface", named) == 2
    refused = capsys.readouterr().err
    assert told in refused and refused.count("\n") == 1 and "Traceback" not in refused
    assert not (folder / "interpret" / "image-cosine-integrated_gradients").exists()


def test_an_atlas_that_misses_the_brain_is_refused_and_one_that_meets_it_is_a_region(
    run, tmp_path, capsys, monkeypatch
):
    folder, data, words = run
    places = load_places(Layout.of(data), 1)
    away = places.affine.copy()
    away[:3, 3] += 1000
    for name, affine in (("away", away), ("here", places.affine)):
        nibabel.save(
            nibabel.Nifti1Image(places.mask.astype(np.int16), affine), tmp_path / f"{name}.nii.gz"
        )
    question = [
        "--about",
        "cosine",
        "--steps",
        "attributions",
        "--parts",
        "whole",
        "--method",
        "gradient_shap",
    ]
    assert explain(words, *question, "--atlases", str(tmp_path / "here.nii.gz")) == 0
    assert "here 1" in set(
        pd.read_csv(folder / "interpret" / "image-cosine-gradient_shap" / "subj01" / "regions.csv")[
            "region"
        ]
    )
    monkeypatch.setattr(
        "braingen.interpret.inputs.averaged", lambda *_: pytest.fail("responses were read")
    )
    assert explain(words, *question, "--atlases", str(tmp_path / "away.nii.gz")) == 2
    assert "away.nii.gz has no label above 0 at any voxel of subject 1" in capsys.readouterr().err


def test_patterns_and_their_page_need_no_attributions(run):
    folder, _, words = run
    assert (
        explain(
            words, "--about", "embedding", "--grouping", "background", "--steps", "patterns,page"
        )
        == 0
    )
    out = folder / "interpret" / "image-embedding-integrated_gradients"
    assert not (out / "subj01" / "maps").exists() and "meadow" in set(
        pd.read_csv(out / "patterns.csv")["class"]
    )
    page = (out / "interpret.html").read_text()
    assert "Encoding patterns" in page and "Select an expert" not in page


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (["--about", "label:unicorn"], "There is no supercategory 'unicorn'"),
        (["--about", "everything"], "take target, cosine"),
        (["--about", "label:"], "take target, cosine"),
        (["--atlases", "nowhere.nii.gz"], "There is no atlas nowhere.nii.gz"),
        (["--about", "caption:a dog"], "--modality text"),
        (["--parts", "level-7"], "has no level-7"),
        (["--grouping", "mood"], "not known of simulated images"),
        (["--labels", "nowhere.csv"], "no table of labels"),
        (["--modality", "text"], "no trained text encoder"),
    ],
)
def test_what_cannot_be_explained_is_refused_in_a_sentence(run, more, told, capsys):
    assert explain(run[2], *more, "--steps", "attributions") == 2
    assert told in capsys.readouterr().err
