"""The whole flow at reduced size, by the commands people type: from nothing to a page of pictures,
and a decoder that draws the same.

Sizes are so small that nothing is learnt; what is tested is that everything fits together.
"""

from __future__ import annotations

import json
from pathlib import Path
import shlex
import shutil
from typing import NamedTuple

import numpy as np
import pandas as pd
from PIL import Image
import pytest
from safetensors.torch import load_file, save_file
import torch
from unit.told_commands import ROOT, told_commands

from braingen.cli import main
from braingen.config import Config, load_config
from braingen.config.overrides import parse_overrides
from braingen.data.betas import Betas
from braingen.data.captions import load_captions
from braingen.data.trials import group_repeats, test_trials, train_trials
from braingen.generation.lora import has_lora
from braingen.generation.pipeline import BrainDecoder
from braingen.generation.reconstruct import embeddings_of, load_encoders, reconstruct, setup
from braingen.runtime.data_layout import Layout
from braingen.runtime.paths import ROUTING, generated_folder, random_folders
from braingen.types import Score

pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation:DeprecationWarning"
)  # of diffusers' scheduler
SCORES = {
    "pixcorr",
    "ssim",
    "mse",
    "psnr",
    "two_way_clip",
    "two_way_classifier_early",
    "two_way_classifier_late",
    "object_accuracy",
    "background_accuracy",
    "clip_cos",
    "two_way_embedding",
    "retrieval_brain_to_image",
    "retrieval_image_to_brain",
}
SOURCES = ("brain", "random", "oracle")
IMAGES = 6
SMALL_DATA = [
    "simulation.num_sessions=2",
    "simulation.trials_per_session=60",
    "simulation.num_voxels=200",
    f"--num_test_images={IMAGES}",
]
SMALL = [
    "encoder.hidden_dim=32",
    "encoder.n_blocks=1",
    "prior.depth=1",
    "training.num_epochs=2",
    "training.batch_size=20",
]
SMALL += [
    "quickstart.steps=1",
    "generation.steps=2",
    "refinement.steps=10",
    "evaluation.bootstrap=50",
    "evaluation.retrieval_draws=3",
]
SMALL += [
    "finetune.max_train_steps=2",
    "finetune.train_batch_size=4",
    "finetune.gradient_accumulation_steps=1",
    "--validation_images",
    "4",
]


class Flow(NamedTuple):
    """A finished demo."""

    words: list[str]
    """What was typed."""
    config: Config
    run: Path
    data: Path


@pytest.fixture(scope="module")
def flow(tmp_path_factory) -> Flow:
    folder = tmp_path_factory.mktemp("flow")
    words = [
        "--config",
        "simulated",
        "--folder",
        str(folder / "run"),
        "--root",
        str(folder / "data"),
    ]
    words += [*SMALL_DATA, *SMALL]
    assert main(["demo", *words, "run.processes=2"]) == 0
    return Flow(words, load_config(*parse_overrides(words)), folder / "run", folder / "data")


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB")).astype(int)


def content(folder: Path, but: tuple[str, ...] = ()) -> dict[str, tuple[int, int]]:
    """Inode and time of change of every file: neither stays when a file is written again."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name not in but]
    return {
        str(path.relative_to(folder)): (path.stat().st_ino, path.stat().st_mtime_ns)
        for path in files
    }


# --- what the demo leaves -------------------------------------------------------------------------


def test_every_score_comes_with_all_that_a_reviewer_asks_for(flow):
    scores = json.loads((flow.run / "scores.json").read_text())
    assert set(scores) >= SCORES
    for name, score in scores.items():
        fields = ("value", "low", "high", "random", "oracle", "ridge", "chance", "n", "pool")
        assert tuple(score) == Score._fields == (*fields, "encoding_model", "low_level"), name
        assert score["encoding_model"] is None  # none is trained in a demo
        assert score["low"] <= score["value"] <= score["high"] and 0 < score["n"] <= IMAGES
        assert score["random"] is not None and score["oracle"] is not None
        of_decoder = name in ("clip_cos", "two_way_embedding") or name.startswith("retrieval")
        assert (score["ridge"] is not None) == of_decoder
        assert (score["pool"] is not None) == name.startswith("retrieval")
        assert (score["chance"] is not None) == (
            name.startswith(("two_way", "retrieval")) or name.endswith("_accuracy")
        )
        if of_decoder:
            assert score["oracle"] == pytest.approx(1)
    assert all(
        score["chance"] == 0.5 for name, score in scores.items() if name.startswith("two_way")
    )
    assert scores["retrieval_brain_to_image"]["pool"] == IMAGES
    assert scores["retrieval_brain_to_image"]["chance"] == pytest.approx(1 / IMAGES)


def test_refined_pictures_stand_beside_the_unrefined_with_their_scores(flow):
    folder = flow.run / "reconstructions" / "brain_refined"
    names = sorted(path.name for path in (flow.run / "reconstructions" / "brain").glob("*.png"))
    assert sorted(path.name for path in folder.glob("*.png")) == names
    told = json.loads((flow.run / "refinement.json").read_text())
    scores = json.loads((flow.run / "scores.json").read_text())
    of_the_decoder = {"clip_cos", "two_way_embedding", "rouge_l", "meteor", "clip_text"}
    of_the_decoder |= {"retrieval_brain_to_image", "retrieval_image_to_brain"}
    assert set(told["scores"]) == set(scores) - of_the_decoder
    for name, each in told["scores"].items():
        assert each["before"]["value"] == scores[name]["value"]
        if name != "colour_accuracy":  # of some images only
            assert each["difference"] == pytest.approx(
                each["after"]["value"] - each["before"]["value"], abs=1e-9
            )
            assert each["low"] <= each["difference"] <= each["high"]
    assert told["settings"]["strength"] == flow.config.refinement.strength
    assert "Before and after refinement" in (flow.run / "report.html").read_text()


def test_refined_pictures_of_other_reconstructions_are_not_scored(flow, tmp_path, capsys):
    shutil.copytree(flow.run / "reconstructions", tmp_path / "reconstructions")
    names = sorted((tmp_path / "reconstructions" / "brain").glob("*.png"))
    shutil.copyfile(names[1], names[0])
    assert main(["evaluate", *flow.words, "--folder", str(tmp_path)]) == 2
    assert "was refined from other images" in capsys.readouterr().err


def test_the_files_that_an_evaluation_leaves(flow):
    table = (flow.run / "scores.md").read_text()
    assert "BrainGen, random voxels" in table and "MindEye2" in table
    parts = pd.read_csv(flow.run / "scores_by_part.csv")
    assert {"level 0", "level 0, expert 1", "level 3, expert 15"} <= set(parts["part"])
    assert set(parts["score"]) == {
        "clip_cos",
        "retrieval_brain_to_image",
        "retrieval_image_to_brain",
    }
    scores = json.loads((flow.run / "scores.json").read_text())
    paired = pd.read_csv(flow.run / "scores_paired.csv")
    for name in ("two_way_clip", "two_way_classifier_late", "pixcorr", "clip_cos"):
        assert paired[name].mean() == pytest.approx(scores[name]["value"], abs=1e-5)
    assert scores["rouge_l"]["n"] == scores["clip_text"]["n"] == IMAGES
    assert (flow.run / "best_and_worst.png").stat().st_size > 1000
    assert list((flow.data / ".braingen" / "features").glob("classifier_late-*.npy"))


def test_the_same_pictures_given_as_a_folder_have_the_same_scores(flow, tmp_path):
    folder = flow.run / "reconstructions" / "brain"
    own = json.loads((flow.run / "scores.json").read_text())
    words = [
        "--all_recons_path",
        str(folder),
        "--folder",
        str(tmp_path / "given"),
        "--method",
        "given",
    ]
    assert main(["evaluate", *flow.words, *words]) == 0
    given = json.loads((tmp_path / "given" / "scores.json").read_text())
    assert (
        {"two_way_clip", "two_way_classifier_early", "object_accuracy", "pixcorr", "ssim"}
        <= set(given)
        < set(own)
    )
    for name, score in given.items():
        assert (
            score["value"] == own[name]["value"]
            and score["low"] == own[name]["low"]
            and score["random"] is None
        )
    assert (
        main(
            [
                "compare",
                str(flow.run),
                str(tmp_path / "given"),
                "--output",
                str(tmp_path / "compared"),
            ]
        )
        == 0
    )
    told = json.loads((tmp_path / "compared" / "comparisons.json").read_text())
    assert {each["conclusion"] for each in told} == {
        "not different"
    } and "two_way_classifier_late" in {each["score"] for each in told}


def test_times_are_kept_apart_from_scores(flow):
    timings = json.loads((flow.run / "timings.json").read_text())
    assert {"quickstart", "simulate", "train", "evaluate", "report"} <= set(timings)
    assert all(seconds >= 0 for seconds in timings.values())
    assert "seconds" not in (flow.run / "scores.json").read_text()


def test_a_page_is_left(flow):
    page = (flow.run / "report.html").read_text()
    assert page.lower().startswith("<!doctype html>") and len(page) > 10_000
    assert (flow.run / "pictures.png").is_file()


def test_results_are_keyed_by_image_id_and_can_be_opened(flow):
    ids = group_repeats(test_trials(Layout.of(flow.data), 1)).image_N.tolist()
    assert len(ids) == IMAGES
    for source in SOURCES:
        folder = flow.run / "reconstructions" / source
        assert sorted(path.name for path in folder.glob("*.png")) == [
            f"{image:06d}.png" for image in ids
        ]
        assert {pixels(path).shape for path in folder.glob("*.png")} == {(128, 128, 3)}
        assert json.loads((folder / "index.json").read_text())["images"] == ids


def test_captions_are_never_those_of_test_images(flow):
    layout = Layout.of(flow.data)
    captions = load_captions(layout)
    trained = {captions[image][0] for image in train_trials(layout, 1).table["image"].unique()}
    for source in SOURCES:
        told = json.loads((flow.run / "reconstructions" / source / "index.json").read_text())[
            "captions"
        ]
        assert len(told) == IMAGES and set(told.values()) <= trained


def test_learning_is_logged(flow):
    for modality in ("image", "text"):
        records = [
            json.loads(line)
            for line in (flow.run / modality / "metrics.jsonl").read_text().splitlines()
        ]
        assert [record["epoch"] for record in records] == [1, 2]
        assert all(
            np.isfinite(record[name])
            for record in records
            for name in ("train/clip", "validation/cosine")
        )
        assert list((flow.run / modality).rglob("events.out.tfevents.*"))
        assert (flow.run / modality / "finished").is_file() and not (
            flow.run / modality / "state.safetensors"
        ).exists()


def test_fine_tuning_is_used_and_routing_is_shown(flow):
    decoder = BrainDecoder.from_pretrained(flow.run / "decoder")
    assert (
        decoder.router_image is not None
        and decoder.router_text is not None
        and has_lora(decoder.unet)
    )
    routing = load_file(flow.run / "reconstructions" / "brain" / ROUTING)
    assert routing["image_levels"].shape == (IMAGES, flow.config.generation.steps, 4)
    page = (flow.run / "report.html").read_text()
    assert "Use of the experts: image" in page and "Single levels" in page


def test_the_random_baseline_is_the_mean_of_its_draws(flow, tmp_path):
    draws = flow.config.generation.random_draws
    folders = random_folders(flow.config)
    assert draws == len(folders) == 3 and all(
        (folder / "index.json").exists() for folder in folders
    )
    first = next(folders[0].glob("*.png")).name
    assert len({pixels(folder / first).tobytes() for folder in folders}) == draws
    controls = json.loads((flow.run / "controls.json").read_text())
    assert controls["random"]["draws"] == draws and controls["oracle"]["draws"] == 1
    scores = json.loads((flow.run / "scores.json").read_text())
    for source in ("random", "oracle"):
        for name, score in controls[source]["scores"].items():
            assert score["value"] == scores[name][source]
            assert score["low"] - 1e-6 <= score["value"] <= score["high"] + 1e-6, name
    alone = []
    for number, folder in enumerate(folders):
        own = [
            "--config",
            "simulated",
            "--root",
            str(flow.data),
            "--folder",
            str(tmp_path / f"run{number}"),
        ]
        assert (
            main(["evaluate", *own, "--all_recons_path", str(folder), "evaluation.bootstrap=50"])
            == 0
        )
        alone.append(json.loads((tmp_path / f"run{number}" / "scores.json").read_text()))
    for name in ("pixcorr", "two_way_classifier_late", "object_accuracy"):
        assert scores[name]["random"] == pytest.approx(
            np.mean([each[name]["value"] for each in alone])
        )


def test_draws_of_other_images_are_refused_in_a_sentence(flow, tmp_path, capsys):
    shutil.copytree(flow.run, tmp_path / "run")
    drawn = tmp_path / "run" / "reconstructions" / "random_2"
    found = load_file(drawn / "embeddings.safetensors")
    save_file(
        {name: rows[1:].contiguous() for name, rows in found.items()},
        drawn / "embeddings.safetensors",
    )
    next(drawn.glob("*.png")).unlink()
    assert main(["evaluate", *flow.words, "--folder", str(tmp_path / "run")]) == 2
    assert (
        f"{drawn} and {drawn.with_name('brain')} hold different images" in capsys.readouterr().err
    )


def test_random_voxels_and_the_ceiling_are_other_pictures(flow):
    first = sorted(path.name for path in (flow.run / "reconstructions" / "brain").glob("*.png"))[0]
    brain, random, oracle = (
        pixels(flow.run / "reconstructions" / source / first) for source in SOURCES
    )
    assert (brain != random).any() and (brain != oracle).any()


# --- the decoder ----------------------------------------------------------------------------------


def test_the_decoder_is_one_folder_that_draws_the_same_pictures(flow):
    layout = Layout.of(flow.data)
    ids, rows = group_repeats(test_trials(layout, 1))
    betas = Betas.of(layout, 1)
    voxels_BRV = np.stack([betas.rows(row) for row in rows[:3]])
    decoder = BrainDecoder.from_pretrained(flow.run / "decoder")
    sampler = flow.config.generation
    out = decoder(
        voxels_BRV,
        subject=1,
        image_ids=ids[:3].tolist(),
        num_inference_steps=sampler.steps,
        guidance_scale=sampler.guidance_scale,
        guidance_end=sampler.guidance_end,
    )
    for image, picture in zip(ids, out.images):
        drawn = pixels(flow.run / "reconstructions" / "brain" / f"{image:06d}.png")
        assert (
            np.abs(np.asarray(picture).astype(int) - drawn).max() <= 1
        )  # another batch may round otherwise
    single = decoder(
        betas.rows(rows[:2, 0]), subject=1, num_inference_steps=1
    ).images  # as the README writes it
    assert [image.size for image in single] == [(128, 128)] * 2


def test_a_single_trial_can_be_read_out(flow):
    config = flow.config.model_copy(
        update={
            "generation": flow.config.generation.model_copy(
                update={"repeats": "first", "num_images": 2}
            )
        }
    )
    parts = setup(config)
    encoders = load_encoders(config, parts.targets)
    found = embeddings_of(config, parts, encoders)
    voxels = torch.from_numpy(parts.betas.rows(parts.repeats.rows_NR[:, 0]))
    expected = encoders.unrouted(
        encoders.decode_embeddings(voxels[:, None], 1, parts.repeats.image_N.tolist())
    )
    assert found["ids"].tolist() == parts.repeats.image_N.tolist() and len(found["ids"]) == 2
    torch.testing.assert_close(found["image"], expected.image_BTD, rtol=0, atol=1e-4)


def test_pictures_do_not_depend_on_how_the_work_is_split(flow, tmp_path):
    for part in ("image", "text", "finetune"):
        shutil.copytree(flow.run / part, tmp_path / part)
    sampler = flow.config.generation.model_copy(update={"batch_size": 2, "num_images": 3})
    run = flow.config.run.model_copy(update={"folder": tmp_path})
    folder = reconstruct(flow.config.model_copy(update={"generation": sampler, "run": run}))
    drawn = sorted(folder.glob("*.png"))
    assert len(drawn) == 3
    for path in drawn:
        assert np.abs(pixels(path) - pixels(generated_folder(flow.config) / path.name)).max() <= 1


# --- again, and step by step ----------------------------------------------------------------------


def test_what_is_finished_is_not_done_again(flow, monkeypatch):
    def done_again(*args, **kwargs):
        raise AssertionError("done again")

    monkeypatch.setattr("braingen.training.encoder.fit", done_again)
    monkeypatch.setattr("braingen.training.diffusion.fit", done_again)
    monkeypatch.setattr(BrainDecoder, "generate", done_again)
    monkeypatch.setattr("braingen.targets.cache._write_rows", done_again)
    parts = [
        flow.data,
        *(flow.run / name for name in ("image", "text", "finetune", "decoder", "reconstructions")),
    ]
    before = [content(part, but=("provenance.json", ".lock")) for part in parts]
    scores = (flow.run / "scores.json").read_bytes()
    left = flow.run / ".pictures.png.tmp-1"  # of a process that was killed while writing
    left.touch()
    assert main(["demo", *flow.words, "run.processes=1"]) == 0
    assert not left.exists()
    assert [content(part, but=("provenance.json", ".lock")) for part in parts] == before
    assert (flow.run / "scores.json").read_bytes() == scores


def test_the_readmes_commands_run_one_after_the_other(flow, tmp_path, monkeypatch, capsys):
    """Those for NSD, with its configuration, on the small data and the tiny backbones: without
    baselines, on six pictures.
    """
    commands = [command for command in told_commands(ROOT / "README.md") if "nsd_subj01" in command]
    assert [shlex.split(command)[1] for command in commands] == [
        "train",
        "train",
        "finetune",
        "reconstruct",
        "evaluate",
        "report",
    ]
    smaller = [
        "--root",
        str(flow.data),
        "--folder",
        str(tmp_path),
        "--num_sessions",
        "2",
        "--num_images",
        "6",
        "generation.size=0",
    ]
    sizes = [word for word in SMALL if not word.startswith("training.num_epochs")]
    smaller += [
        *sizes,
        "--resolution",
        "0",
        "--num_epochs",
        "1",
        "--path",
        "tiny",
        "backbone.image_encoder=",
        "backbone.ip_adapter=",
    ]
    monkeypatch.chdir(ROOT)
    for command in commands:
        assert main([*shlex.split(command)[1:], *smaller]) == 0
    assert str(tmp_path / "report.html") in capsys.readouterr().out
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert set(scores) >= SCORES
    assert (
        {score["random"] for score in scores.values()}
        == {score["oracle"] for score in scores.values()}
        == {None}
    )
    assert scores["pixcorr"]["n"] == 6


def test_a_study_of_the_run_stands_in_tables_and_report(flow, tmp_path):
    """Answered by simulated raters that see with the judge's features; the figures are never called
    people's.
    """
    run = Path(shutil.copytree(flow.run, tmp_path / "run"))
    words = [*flow.words, "--folder", str(run), "--study_images", "4", "--checks", "2"]
    steps = (
        ["human-eval", "build", "--draft"],
        [
            "human-eval",
            "simulate",
            "--rater_features",
            "scene_classifier",
            "--lapse",
            "0",
            "--raters",
            "2",
        ],
        ["human-eval", "check"],
    )
    for step in (*steps, ["human-eval", "analyse"], ["evaluate"], ["report"]):
        assert main([*step, *words]) == 0
    scores = json.loads((run / "scores.json").read_text())
    assert set(scores) >= SCORES | {"simulated_rater_identification", "simulated_rater_similarity"}
    assert (
        scores["simulated_rater_identification"]["chance"] == 0.5
        and scores["simulated_rater_identification"]["n"] == 4
    )
    assert not any(name.startswith("human") for name in scores)
    assert "Simulated raters, two-way" in (run / "scores.md").read_text()
    assert "The raters are simulated" in (run / "report.html").read_text()
