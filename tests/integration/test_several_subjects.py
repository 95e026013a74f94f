"""A run of two subjects: both are reconstructed, refined, scored and shown; one is chosen with
--subj.
"""

from __future__ import annotations

from contextlib import redirect_stdout
from io import StringIO
import json
from pathlib import Path
import re
import shutil
from typing import NamedTuple

import numpy as np
import pandas as pd
from PIL import Image
import pytest
from unit.fake_backbone import write_fake_backbone

from braingen.cli import main
from braingen.evaluation.compare import evaluated_in, read_run
from braingen.report.inputs import read_inputs

pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation:DeprecationWarning"
)  # of diffusers' scheduler
IMAGES = 5
SMALL = [
    "simulation.num_subjects=2",
    "simulation.num_sessions=2",
    "simulation.trials_per_session=60",
    "simulation.num_voxels=100",
]
SMALL += [
    f"simulation.num_test_images={IMAGES}",
    "encoder.hidden_dim=32",
    "encoder.n_blocks=1",
    "encoder.exp_factor_list=2",
]
SMALL += [
    "prior.depth=1",
    "training.num_epochs=1",
    "training.batch_size=20",
    "run.device=cpu",
    "run.tracker=none",
]
SMALL += [
    "generation.steps=2",
    "generation.random_draws=1",
    "refinement.steps=2",
    "refinement.strength=0.5",
    "evaluation.bootstrap=50",
    "evaluation.retrieval_draws=3",
]
SMALL += [
    "finetune.max_train_steps=1",
    "finetune.train_batch_size=2",
    "finetune.gradient_accumulation_steps=1",
]
SMALL += ["finetune.validation_images=2"]
SUBJECTS = (1, 2)


class Place(NamedTuple):
    """A run of both subjects through all stages."""

    words: list[str]
    run: Path
    printed: str
    """By `braingen evaluate`."""


def typed(folder: Path, data: Path, *more: str) -> list[str]:
    return ["--root", str(data), "--folder", str(folder), *SMALL, *more]


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Place:
    folder = tmp_path_factory.mktemp("several")
    backbone = write_fake_backbone(folder / "backbone", with_clip=True)
    words = typed(folder / "run", folder / "data", "--path", str(backbone))
    assert main(["simulate", *words]) == 0
    both = [*words, "--multi_subject"]
    for command in (
        ["train", "image"],
        ["train", "text"],
        ["finetune"],
        ["reconstruct"],
        ["reconstruct", "--random_fmri"],
        ["refine"],
    ):
        assert main([*command, *both]) == 0
    out = StringIO()
    with redirect_stdout(out):
        assert main(["evaluate", *both]) == 0
    assert main(["report", *both]) == 0
    return Place(words, folder / "run", out.getvalue())


def pictures(folder: Path) -> dict[str, np.ndarray]:
    return {path.name: np.asarray(Image.open(path)) for path in sorted(folder.glob("*.png"))}


def scores(folder: Path) -> dict:
    return json.loads((folder / "scores.json").read_text())


@pytest.mark.parametrize("source", ["brain", "random", "brain_refined"])
def test_every_subject_has_pictures_of_its_own(place, source):
    first, second = (
        pictures(place.run / f"subj{subject:02d}" / "reconstructions" / source)
        for subject in SUBJECTS
    )
    assert len(first) == IMAGES and first.keys() == second.keys()  # the test images are shared
    assert not (place.run / "reconstructions").exists()
    if source != "random":
        assert any((first[name] != second[name]).any() for name in first)  # of different brains


def test_the_mean_of_subjects_is_the_mean_of_their_scores(place):
    mean, each = (
        scores(place.run),
        [scores(place.run / f"subj{subject:02d}") for subject in SUBJECTS],
    )
    assert set(mean) == set(each[0]) and {"pixcorr", "clip_cos", "retrieval_brain_to_image"} <= set(
        mean
    )
    for name, score in mean.items():
        for key in ("value", "random", "ridge", "chance"):
            values = [one[name][key] for one in each]
            expected = None if None in values else pytest.approx(np.mean(values), abs=1e-9)
            assert score[key] == expected, (name, key)
        if score["low"] is not None:
            assert score["low"] <= score["value"] + 1e-6 and score["value"] - 1e-6 <= score["high"]
    assert mean["pixcorr"]["low"] is not None and mean["pixcorr"]["n"] == IMAGES
    table = pd.read_csv(place.run / "scores.csv")
    ours = table[(table["method"] == "BrainGen") & (table["score"] == "pixcorr")]
    assert [
        re.search("mean of subjects 1, 2|subject 1|subject 2", text)[0] for text in ours["protocol"]
    ] == ["mean of subjects 1, 2", "subject 1", "subject 2"]
    assert (
        "mean of subjects" in place.printed
        and "subj 1" in place.printed
        and "subj 2" in place.printed
    )


def test_the_page_shows_both_and_leads_to_each(place):
    page = (place.run / "report.html").read_text()
    assert page.count("<img") == 2 * 2 * IMAGES
    for subject in SUBJECTS:
        assert f'href="subj{subject:02d}/report.html"' in page
        own = place.run / f"subj{subject:02d}"
        inputs = read_inputs(own, place.run.parent / "data", trained=place.run)
        assert inputs.subject == subject and set(inputs.metrics) == {"image", "text"}
        assert (
            "Training curves" in (own / "report.html").read_text()
        )  # the curves of the encoders of the whole run


def test_a_subject_is_chosen_and_what_is_there_of_it_is_kept(place):
    folder = place.run / "subj02" / "reconstructions" / "brain"
    before = {path.name: path.stat().st_mtime_ns for path in folder.glob("*.png")}
    for command in ("reconstruct", "evaluate", "report"):
        assert main([command, *place.words, "--subj", "2"]) == 0
    assert before == {path.name: path.stat().st_mtime_ns for path in folder.glob("*.png")}
    assert not (place.run / "reconstructions").exists()


def test_runs_of_several_are_compared_subject_by_subject(place, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(place.run, other)
    for folder in other.glob(
        "subj*/reconstructions/brain/config.yaml"
    ):  # as if drawn with other settings
        folder.write_text(folder.read_text().replace("guidance_scale: 15.0", "guidance_scale: 7.0"))
    assert evaluated_in(place.run) == [place.run / "subj01", place.run / "subj02"]
    assert [read_run(folder).subject for folder in evaluated_in(other)] == [1, 2]
    assert (
        main(
            [
                "compare",
                str(place.run),
                str(other),
                "--output",
                str(tmp_path / "out"),
                "evaluation.bootstrap=50",
            ]
        )
        == 0
    )
    summary = pd.read_csv(tmp_path / "out" / "summary.csv")
    assert set(summary["subjects"]) == {2}
    found = summary[(summary["score"] == "pixcorr")]["value"].to_numpy()
    assert found == pytest.approx([scores(place.run)["pixcorr"]["value"]] * 2, abs=1e-4)
    records = json.loads((tmp_path / "out" / "comparisons.json").read_text())
    assert {record["level"] for record in records} == {"runs", "methods"}


@pytest.mark.parametrize(
    "command",
    [
        "ablate",
        "bottleneck",
        "adaptation-curve",
        "human-eval build",
        "decode --voxels mine.npz",
        "evaluate --all_recons_path here",
    ],
)
def test_what_works_on_one_subject_asks_which(place, tmp_path, monkeypatch, capsys, command):
    monkeypatch.chdir(tmp_path)
    np.savez("mine.npz", voxels=np.zeros((2, 100), dtype=np.float32))
    words = [
        word
        for word in place.words
        if not word.startswith("scores.") or "all_recons_path" not in command
    ]
    assert main([*command.split(), *words, "--multi_subject", "1,2"]) == 2
    assert (
        "works on one subject, and data.subjects names 1, 2: choose one with --subj"
        in capsys.readouterr().err
    )


def test_a_subject_without_pictures_is_named_before_anything_is_scored(place, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(place.run, run)
    shutil.rmtree(run / "subj02")
    words = [str(run) if word == str(place.run) else word for word in place.words]
    before = (run / "subj01" / "scores.json").stat().st_mtime_ns
    assert main(["evaluate", *words, "--multi_subject"]) == 2
    assert f"run `braingen reconstruct --folder {run} --subj 2` first" in capsys.readouterr().err
    assert (run / "subj01" / "scores.json").stat().st_mtime_ns == before
