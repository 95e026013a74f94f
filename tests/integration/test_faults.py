"""What stops a run in the middle, or before it, is told in one sentence: numbers that are none,
parts and settings that do not fit.
"""

from __future__ import annotations

import json
from pathlib import Path
import re
import shutil
from typing import NamedTuple

import numpy as np
import pytest
from safetensors.torch import load_file, save_file
import torch
from unit.fake_backbone import write_fake_backbone

from braingen.cli import main
from braingen.training import diffusion_step, diffusion_task
from braingen.training import encoder as training

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

SMALL = ["simulation.num_sessions=1", "simulation.trials_per_session=60", "run.device=cpu"]
SMALL += ["simulation.num_voxels=60", "simulation.num_test_images=4", "run.tracker=none"]
SMALL += ["encoder.hidden_dim=32", "encoder.n_blocks=1", "prior.depth=1", "prior.dim_head=16"]
SMALL += [
    "training.num_epochs=2",
    "training.batch_size=20",
    "router.time_hidden_dim=16",
    "lora.rank=2",
]
SMALL += ["finetune.train_batch_size=4", "finetune.gradient_accumulation_steps=1"]
SMALL += ["finetune.max_train_steps=3", "finetune.lr_warmup_steps=0", "finetune.validation_steps=2"]
SMALL += ["finetune.validation_images=4", "generation.steps=2", "generation.guidance_scale=2"]
SMALL += ["generation.batch_size=4", "refinement.steps=4", "refinement.strength=0.5"]


class Subject(NamedTuple):
    """A subject whose encoders are trained."""

    words: list[str]
    stage1: list[str]
    folder: Path


@pytest.fixture(scope="module")
def subject(tmp_path_factory) -> Subject:
    folder = tmp_path_factory.mktemp("faults")
    backbone = write_fake_backbone(folder / "backbone", with_clip=True)
    words = ["--root", str(folder / "data"), "--path", str(backbone), *SMALL]
    stage1 = [f"run.image={folder / 'stage1' / 'image'}", f"run.text={folder / 'stage1' / 'text'}"]
    for command in (["simulate"], ["train", "image"], ["train", "text"]):
        assert main([*command, *words, *stage1]) == 0
    return Subject(words, stage1, folder)


def told(capsys, *words: str) -> str:
    """Run a command that is to end in a sentence."""
    capsys.readouterr()
    assert main(list(words)) == 2
    sentence = capsys.readouterr().err.strip().splitlines()[-1]
    assert sentence.startswith("braingen: ")
    return sentence


# --- a training that diverges ---


def broken_at(call: int, function, value: float = np.nan):
    """A step whose losses are no numbers from a call on."""
    calls = 0

    def step(*arguments):
        nonlocal calls
        calls += 1
        result = function(*arguments)
        return result._replace(total=result.total * value) if calls >= call else result

    return step


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("modality", ["image", "text"])
def test_a_training_that_diverges_is_told_and_can_be_begun_anew(
    subject, tmp_path, capsys, monkeypatch, modality, value
):
    words = ["train", modality, *subject.words, "--folder", str(tmp_path)]
    run = tmp_path / modality
    with monkeypatch.context() as patch:
        patch.setattr(training, "step", broken_at(3, training.step, value))
        patch.setattr(training, "SAVE_SECONDS", 0.0)
        sentence = told(capsys, *words)
    assert re.search(r"NaN or infinite losses in epoch \d, step \d of \d", sentence)
    assert "training.max_lr (now 0.0003)" in sentence and "begins anew" in sentence
    assert not (run / "finished").exists() and not (run / "state.safetensors").exists()
    assert json.loads((run / "diverged.json").read_text())["reason"]
    later = told(capsys, "reconstruct", *subject.words, "--folder", str(tmp_path))
    assert "diverged" in later or "no trained" in later
    assert main([*words, "training.max_lr=1e-4"]) == 0  # other settings are allowed now
    assert (run / "finished").exists() and (run / "embedding_decoder").is_dir()
    assert not (run / "diverged.json").exists()
    steps = [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert steps == sorted(set(steps))


def test_a_learning_rate_that_is_far_too_large(subject, tmp_path, capsys):
    words = ["train", "image", *subject.words, "--folder", str(tmp_path), "training.max_lr=1e15"]
    first, second = told(capsys, *words), told(capsys, *words)
    assert first == second and "training.max_lr (now 1e+15)" in first
    assert not (tmp_path / "image" / "finished").exists()


@pytest.mark.parametrize("call", [1, 3])
def test_a_fine_tuning_that_diverges(subject, tmp_path, capsys, monkeypatch, call):
    words = ["finetune", *subject.words, *subject.stage1, "--folder", str(tmp_path)]
    with monkeypatch.context() as patch:
        patch.setattr(diffusion_task, "step", broken_at(call, diffusion_step.step))
        sentence = told(capsys, *words)
    assert f"in step {call} of 3" in sentence and "finetune.learning_rate (now 0.0001)" in sentence
    assert not (tmp_path / "finetune" / "finished").exists()
    assert main([*words, "finetune.learning_rate=1e-5"]) == 0
    assert (tmp_path / "finetune" / "finished").exists()
    assert (
        json.loads((tmp_path / "finetune" / "finished").read_text())["best_validation_denoising"]
        < 99
    )


def test_held_out_losses_that_are_no_numbers(subject, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(diffusion_task, "validate", lambda *_: {"loss": np.nan, "denoising": 1.0})
    words = ["finetune", *subject.words, *subject.stage1, "--folder", str(tmp_path)]
    assert "on the held-out images at step 0: validation/loss nan" in told(capsys, *words)
    monkeypatch.setattr(training, "validate", lambda *_: {"validation/cosine": np.nan})
    words = ["train", "image", *subject.words, "--folder", str(tmp_path)]
    assert re.search(r"at step \d+: .*validation/cosine nan", told(capsys, *words))
    assert not list(tmp_path.rglob("finished"))


# --- frozen weights and data that are no numbers ---


def test_nan_in_what_is_drawn_with_ends_before_a_picture(subject, tmp_path, capsys):
    for name in ("image", "text"):
        shutil.copytree(subject.folder / "stage1" / name, tmp_path / "run" / name)
    path = next((tmp_path / "run" / "image" / "embedding_decoder").glob("*.safetensors"))
    weights = {name: value.clone() for name, value in load_file(path).items()}
    next(x for x in weights.values() if x.is_floating_point()).view(-1)[0] = torch.nan
    save_file(weights, path)
    for command in ("reconstruct", "finetune"):
        sentence = told(capsys, command, *subject.words, "--folder", str(tmp_path / "run"))
        assert "1 of" in sentence and "NaN or infinite" in sentence and "train it again" in sentence
    assert not list(tmp_path.rglob("*.png")) and not list(tmp_path.rglob("finetune/finished"))


def test_voxels_too_large_for_numbers(subject, tmp_path, capsys):
    np.save(tmp_path / "huge.npy", np.full((1, 60), 1e38, np.float32))
    words = ["decode", *subject.words, *subject.stage1, "--folder", str(tmp_path)]
    sentence = told(capsys, *words, "--voxels", str(tmp_path / "huge.npy"))
    assert (not list(tmp_path.rglob("*.png")) and "huge" in sentence) or "image 0" in sentence


# --- settings that cannot work ---


REFUSED = {
    "nothing to train": (
        [
            "finetune",
            "lora.rank=0",
            "router.time=fixed",
            "router.space=off",
            "router.time_hidden_dim=default",
        ],
        r"rank = 0 and routers without weights .*router\.time=fixed, router\.space=off",
    ),
    "neither": (
        [
            "finetune",
            "lora.rank=0",
            "router.time=off",
            "router.space=off",
            "router.time_hidden_dim=default",
        ],
        "leave nothing",
    ),
    "training pictures": (
        ["finetune", "finetune.resolution=30"],
        r"finetune\.resolution = 30 .*28|32",
    ),
    "cached latents": (
        ["precompute", "finetune.resolution=30"],
        r"finetune\.resolution = 30 .*28|32",
    ),
    "shares": (
        ["finetune", "finetune.drop_image=0.6", "finetune.drop_text=0.6"],
        r"drop_image 0\.6, drop_text 0\.6 and drop_both 0\.05 are 1\.25 together",
    ),
    "tiny pictures": (
        ["reconstruct", "generation.size=3"],
        r"generation\.size = 3 pixels.*give 4 or more",
    ),
    "too many steps": (
        ["reconstruct", "generation.steps=1001"],
        r"generation\.steps = 1001, .* give 1 to 1000",
    ),
    "too many, another rule": (
        ["reconstruct", "generation.steps=1001", "generation.scheduler=ddim"],
        r"generation\.steps = 1001",
    ),
    "no step left": (
        ["refine", "refinement.steps=3", "refinement.strength=0.3"],
        "leaves no step to refine",
    ),
    "no weight": (
        [
            "train",
            "image",
            *(f"loss_image.{x}_scale=0" for x in ("clip", "prior", "cos", "prior_clip")),
        ],
        "nothing would be learned",
    ),
    "no number": (["train", "image", "training.max_lr=nan"], r"training\.max_lr = nan .*finite"),
    "infinite": (["finetune", "finetune.clip_norm=inf"], r"finetune\.clip_norm = inf .*finite"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_settings_that_cannot_work_are_refused_before_work(
    subject, tmp_path, capsys, monkeypatch, name
):
    (*command,), words = REFUSED[name]

    def work(*_, **__):
        raise AssertionError("something was computed")

    for place in (
        "braingen.training.diffusion.diffusion_data",
        "braingen.training.diffusion.load_backbone",
        "braingen.generation.reconstruct.load_backbone",
        "braingen.generation.refine.load_refiner",
        "braingen.training.encoder.fit",
        "braingen.targets.cache._write_rows",
    ):
        monkeypatch.setattr(place, work)
    given = [word for word in command if "=" not in word]
    settings = [word for word in command if "=" in word]
    sentence = told(
        capsys, *given, *subject.words, *subject.stage1, "--folder", str(tmp_path), *settings
    )
    assert re.search(words, sentence), sentence


# --- frozen models that do not go together ---


def other_clip(folder: Path, width: int) -> Path:
    """A CLIP image encoder whose embedding has another width."""
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
    shape |= {"num_attention_heads": 2, "image_size": 32, "patch_size": 16}
    model = CLIPVisionModelWithProjection(CLIPVisionConfig(**shape, projection_dim=width))
    model.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("how", ["another width", "several tokens"])
def test_an_image_embedding_that_cannot_be_drawn_from_is_told_before_work(
    subject, tmp_path, capsys, monkeypatch, how
):
    settings, found = {
        "another width": (
            [f"backbone.image_encoder={other_clip(tmp_path / 'clip', 64)}"],
            "1 x 64",
        ),
        "several tokens": (["backbone.image_output=tokens"], r"\d+ x 128"),
    }[how]

    def work(*_, **__):
        raise AssertionError("something was computed")

    monkeypatch.setattr("braingen.targets.cache._write_rows", work)
    monkeypatch.setattr("braingen.diagnostics.resources.needs_of", lambda *_: [])
    words = [*subject.words, *subject.stage1, *settings]
    for command in (["doctor"], ["train", "image"], ["finetune"], ["reconstruct"]):
        folder = [f"run.image={tmp_path / 'new'}"] if command[0] == "train" else []
        sentence = told(capsys, *command, *words, *folder, "--folder", str(tmp_path / "run"))
        assert re.search(rf"{found} \(tokens x width.*takes 1 x 128", sentence), sentence


def test_encoders_of_another_backbone_are_told(subject, tmp_path, capsys):
    """Trained on an embedding that is not drawn from, and then given to a backbone that draws."""
    other = [f"backbone.image_encoder={other_clip(tmp_path / 'clip', 64)}", "ip_adapter=none"]
    image = [f"run.image={tmp_path / 'image'}"]
    assert main(["train", "image", *subject.words, *other, *image]) == 0
    words = [*subject.words, *subject.stage1, *image, "--folder", str(tmp_path)]
    for command in ("reconstruct", "finetune"):
        sentence = told(capsys, command, *words)
        assert "image encoder predicts 1 x 64" in sentence and "conditioned on 1 x 128" in sentence
    assert "ip_adapter=none trains encoders without generating images" in told(
        capsys, "reconstruct", *words, *other
    )


def test_every_pair_of_parts_is_looked_at(tmp_path):
    from diffusers import UNet2DConditionModel
    from unit.fake_backbone import plain_unet, random_adapter, write_fake_refiner

    from braingen.config import load_config
    from braingen.generation.compatibility import incompatibilities

    sound = write_fake_backbone(tmp_path / "sound", with_clip=True)

    def found(folder: Path, *more: str) -> list[str]:
        settings = dict(word.split("=") for word in more)
        config = load_config(None, {"backbone.path": str(folder), **settings})
        return [misfit.sentence for misfit in incompatibilities(config)]

    assert found(sound) == [] and found(sound, "backbone.text_output=joint") == []
    refiner = write_fake_refiner(tmp_path / "refinement")
    assert found(sound, f"backbone.refiner={refiner}") == []
    narrow = shutil.copytree(sound, tmp_path / "narrow")
    plain_unet(text_width=96).save_pretrained(narrow / "unet")
    assert [re.search(r"\b(224|128)\b.*\b96\b", text) is not None for text in found(narrow)] == [
        True
    ] * 2
    assert "224 wide (text_output=joint)" in found(narrow, "backbone.text_output=joint")[1]
    plain_unet(text_width=96, told=5).save_pretrained(refiner / "unet")
    assert "takes 96 columns" in found(sound, f"backbone.refiner={refiner}")[0]
    channels = shutil.copytree(sound, tmp_path / "channels")
    config = UNet2DConditionModel.load_config(channels / "unet")
    UNet2DConditionModel.from_config({**config, "in_channels": 8}).save_pretrained(
        channels / "unet"
    )
    assert "latents of 4 channels, its U-Net takes 8" in found(channels)[0]
    wide = shutil.copytree(sound, tmp_path / "wide")
    weights = random_adapter(plain_unet(), image_width=1280)
    save_file(weights, wide / "ip_adapter" / "ip-adapter.safetensors")
    assert "takes 1 x 1280" in found(wide)[0] and found(wide, "backbone.ip_adapter=none") == []
    (wide / "ip_adapter" / "ip-adapter.safetensors").unlink()
    torch.save(weights, wide / "ip_adapter" / "a.bin")
    assert (
        "takes 1 x 1280" in found(wide, f"backbone.ip_adapter={wide / 'ip_adapter' / 'a.bin'}")[0]
    )
    assert "takes 1 x 1280" in found(sound, "backbone.ip_adapter=h94/IP-Adapter")[0]
    assert found(tmp_path / "nowhere") == []


# --- pictures of any side, and the steps of a refinement ---


def test_sides_and_steps_are_what_was_asked_for_and_told(subject, tmp_path, capsys):
    words = [*subject.words, *subject.stage1, "--folder", str(tmp_path), "--num_images", "2"]
    assert main(["reconstruct", *words, "generation.size=30"]) == 0
    drawn = sorted((tmp_path / "reconstructions" / "brain").glob("*.png"))
    from PIL import Image

    assert [Image.open(path).size for path in drawn] == [(30, 30)] * 2
    sentence = told(capsys, "refine", *words)
    assert "30" in sentence and "multiple of 4" in sentence
    assert main(["refine", *words, "refinement.size=32", "refinement.strength=0.5"]) == 0
    finished = json.loads((tmp_path / "reconstructions" / "brain_refined" / "finished").read_text())
    assert finished["steps"] == 2 and finished["of_steps"] == 4


@pytest.mark.parametrize(
    "name", ["default", "euler_ancestral", "heun", "ddim", "dpmpp_2m", "unipc"]
)
@pytest.mark.parametrize("how", [{"strength": 0.3}, {"strength": 1.0}, {"denoising_start": 0.6}])
def test_the_number_of_steps_told_is_the_number_run(name, how):
    """Counted by calls of the scheduler; one of second order takes two for every step but
    the last.
    """
    from unit.fake_backbone import sdxl_scheduler

    from braingen.generation.refiner import Refinement, last_times, steps_run
    from braingen.pretrained.sdxl import scheduler_named

    scheduler = scheduler_named(name, sdxl_scheduler())
    settings = Refinement(10, **{"strength": 0.0, **how}, guidance_scale=1.0)
    told = steps_run(scheduler, settings)
    scheduler.set_timesteps(10)
    times, first = last_times(scheduler, settings)
    scheduler.set_begin_index(first) if hasattr(scheduler, "set_begin_index") else None
    sigmas = set()
    latents = torch.zeros(1, 4, 8, 8)
    for t in times:
        latents = scheduler.step(torch.zeros_like(latents), t, latents).prev_sample
        sigmas.add(float(t))
    assert told == len(sigmas)
