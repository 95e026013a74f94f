"""Fine-tuning on a small simulated subject with a backbone of random weights: what is trained
learns, nothing else changes.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
import subprocess
from typing import NamedTuple

from integration.processes import shared
from integration.shared_batch import tune_in_one, tune_in_two
import numpy as np
from PIL import Image
import pytest
from safetensors.torch import load_file
import torch
from unit.fake_backbone import write_fake_backbone
from unit.forking import forked_python
import yaml

from braingen.cli import main
from braingen.config import Config, load_config
from braingen.config.overrides import parse_overrides
from braingen.data.betas import Betas
from braingen.data.trials import group_repeats, test_trials
from braingen.experiments import ablation_table as ablation
from braingen.generation.lora import LORA_FILE, has_lora
from braingen.generation.pipeline import BrainDecoder
from braingen.generation.reconstruct import assemble, reconstruct
from braingen.generation.trained_modules import load_finetuned
from braingen.runtime.data_layout import Layout
from braingen.runtime.errors import UserError
from braingen.runtime.paths import EMBEDDINGS, ROUTING
from braingen.targets.tables import Targets
from braingen.training import checkpoints, diffusion_data, diffusion_step, diffusion_task
from braingen.training import diffusion as stage
from braingen.training.conditioning_augmentation import augmented, mixing_weights

pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation:DeprecationWarning"
)  # of diffusers' scheduler

SMALL = [
    "simulation.num_sessions=2",
    "simulation.trials_per_session=60",
    "simulation.num_voxels=200",
    "simulation.num_test_images=4",
]
SMALL += [
    "encoder.hidden_dim=32",
    "training.with_ridge=false",  # which would be used alone: levels and experts all alike
    "encoder.n_blocks=1",
    "encoder.head=linear",
    "prior.depth=1",
    "prior.dim_head=32",
]
SMALL += ["training.num_epochs=2", "training.batch_size=20", "run.device=cpu", "run.tracker=none"]
TUNE = [
    "--rank",
    "2",
    "finetune.train_batch_size=4",
    "finetune.gradient_accumulation_steps=1",
    "finetune.max_train_steps=3",
]
TUNE += [
    "finetune.lr_warmup_steps=0",
    "finetune.validation_steps=2",
    "finetune.validation_images=4",
    "router.time_hidden_dim=16",
]
DRAW = ["generation.steps=2", "generation.guidance_scale=2", "generation.batch_size=4"]


class Subject(NamedTuple):
    """A subject whose encoders are trained."""

    words: list[str]
    folder: Path


@pytest.fixture(scope="module")
def subject(tmp_path_factory) -> Subject:
    folder = tmp_path_factory.mktemp("finetune")
    backbone = write_fake_backbone(folder / "backbone", with_clip=True)
    words = ["--root", str(folder / "data"), "--path", str(backbone), *SMALL]
    words += [
        "--model_name_image",
        str(folder / "stage1" / "image"),
        "--model_name_text",
        str(folder / "stage1" / "text"),
    ]
    for command in (["simulate"], ["train", "image"], ["train", "text"]):
        assert main([*command, *words]) == 0
    return Subject(words, folder)


def config_of(subject: Subject, folder: Path, *more: str) -> Config:
    return load_config(*parse_overrides([*subject.words, *TUNE, "--folder", str(folder), *more]))


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB")).astype(int)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


ROUTERS = {
    "attention and mix": [],
    "attention and cross": ["router.space=cross"],
    "hard, with context": ["router.time_choice=hard", "router.time_context=true"],
    "perceptron and gates": ["router.time=mlp", "router.space=gate_softmax"],
    "every step, recomputing activations": ["router.prior_order=step", "--gradient_checkpointing"],
}


@pytest.mark.long
def test_two_processes_have_the_gradients_of_one(subject, tmp_path):
    words = [*subject.words, *TUNE, "--folder", str(tmp_path)]
    expected = tune_in_one(words)  # first, so that latents and reads are there for both
    shared(tune_in_two, 2, words, str(tmp_path))
    assert sum(gradient.norm() > 0 for gradient in expected.values()) > 40
    for rank in range(2):
        found = load_file(tmp_path / f"{rank}.safetensors")
        assert found.keys() == expected.keys()
        scale = max(gradient.abs().max() for gradient in expected.values())
        for name, gradient in expected.items():
            torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-5 * scale)


@pytest.mark.long
def test_two_processes_fine_tune_and_one_of_them_writes(subject, tmp_path):
    words = [*subject.words, *TUNE, "--folder", str(tmp_path)]
    shared(main, 2, ["finetune", *words])
    losses = [
        json.loads(line)["validation/loss"]
        for line in (tmp_path / "finetune" / "metrics.jsonl").read_text().splitlines()
    ]
    assert (
        len(losses) == 3 and len(set(losses)) == 3
    )  # at the start, after two steps and at the end, written once
    tuned = load_finetuned(tmp_path / "finetune" / "last")
    assert tuned.lora is not None and tuned.router_image is not None
    assert any(
        value.abs().max() > 0 for name, value in load_file(tuned.lora).items() if "lora_B" in name
    )  # zero at the start
    assert all(router.gate.item() != 0 for router in tuned.router_image.space_routers)


@pytest.mark.parametrize("more", ROUTERS.values(), ids=ROUTERS)
def test_everything_that_is_trained_gets_a_gradient_and_moves_within_two_steps(
    subject, tmp_path, more
):
    config = config_of(subject, tmp_path, "finetune.adam_weight_decay=0", *more)
    parts = stage.setup(config)
    parameters = diffusion_task.trained_parameters(parts.model)
    kinds = {name.split(".")[-2] if ".lora_" in name else name.split(".")[2] for name in parameters}
    assert len(parameters) > 80 and kinds >= {"default", "time_router", "space_routers"}
    assert {name for name, p in parts.model.named_parameters() if p.requires_grad} == set(
        parameters
    )
    before = {name: p.detach().clone() for name, p in parameters.items()}
    frozen = {
        name: p.detach().clone()
        for name, p in parts.model.named_parameters()
        if name not in parameters
    }
    heard: set[str] = (
        set()
    )  # of 32 pictures: where levels are chosen hard, every level is chosen by some
    optimizer = diffusion_task.optimizer_of(parts.model, config)
    parts.model.train()
    for number in range(2):
        optimizer.zero_grad(set_to_none=True)
        diffusion_step.step(
            parts.model,
            diffusion_data.StepRows(len(parts.data.train.rows), 32, 0).of(number),
            parts,
            config,
            generator(number),
        ).total.backward()
        heard |= {
            name for name, p in parameters.items() if p.grad is not None and p.grad.abs().max() > 0
        }
        optimizer.step()
    assert set(parameters) - heard == set()
    assert [name for name, p in parameters.items() if torch.equal(p, before[name])] == []
    for name, p in parts.model.named_parameters():
        assert name in parameters or torch.equal(p, frozen[name])


@pytest.fixture(scope="module")
def tuned(subject, tmp_path_factory) -> Path:
    """A finished fine-tuning, and the test pictures drawn with it."""
    folder = tmp_path_factory.mktemp("tuned")
    words = [*subject.words, *TUNE, *DRAW, "--folder", str(folder)]
    assert main(["finetune", *words]) == 0
    assert main(["reconstruct", *words]) == 0
    return folder


def test_checkpoints_curves_and_routing_are_left(subject, tuned):
    for name in ("best", "last"):
        left = {
            path.relative_to(tuned / "finetune" / name).as_posix()
            for path in (tuned / "finetune" / name).rglob("*.safetensors")
        }
        assert left == {
            LORA_FILE,
            *(f"router_{kind}/diffusion_pytorch_model.safetensors" for kind in ("image", "text")),
        }
    records = [
        json.loads(line) for line in (tuned / "finetune" / "metrics.jsonl").read_text().splitlines()
    ]
    assert [record["step"] for record in records] == [0, 2, 3]
    assert all(record["validation/loss"] > 0 for record in records) and all(
        record["train/guidance"] >= 0 for record in records[1:]
    )
    routing = load_file(tuned / "reconstructions" / "brain" / ROUTING)
    assert routing["ids"].tolist() == sorted(
        int(path.stem) for path in (tuned / "reconstructions" / "brain").glob("*.png")
    )
    for name in ("image", "text"):
        assert routing[f"{name}_levels"].shape == (4, 2, 4) and routing[
            f"{name}_experts"
        ].shape == (4, 2, 30)
        torch.testing.assert_close(routing[f"{name}_levels"].sum(-1), torch.ones(4, 2))
        for level in routing[f"{name}_experts"].split([2, 4, 8, 16], dim=-1):
            torch.testing.assert_close(level.sum(-1), torch.ones(4, 2))


def test_lora_off_and_routers_uniform_is_the_unrouted_result(subject, tmp_path):
    """A fine-tuning of no step worth mentioning draws what is drawn without one."""
    words = [*subject.words, *TUNE, *DRAW, "--folder", str(tmp_path)]
    assert main(["reconstruct", *words]) == 0
    (tmp_path / "reconstructions").rename(tmp_path / "before")
    rates = ["finetune.learning_rate=1e-30", "finetune.router_learning_rate=1e-30"]
    assert main(["finetune", *words, *rates]) == 0
    assert main(["reconstruct", *words]) == 0
    drawn = sorted((tmp_path / "reconstructions" / "brain").glob("*.png"))
    assert len(drawn) == 4
    for path in drawn:
        difference = pixels(path) - pixels(tmp_path / "before" / "brain" / path.name)
        assert (
            np.abs(difference).max() <= 1
        )  # a rounding at most: levels are added up in another order
    one, other = (
        load_file(tmp_path / part / "brain" / EMBEDDINGS) for part in ("reconstructions", "before")
    )
    torch.testing.assert_close(one["image"], other["image"], rtol=0, atol=1e-4)


def test_a_trained_one_draws_otherwise_and_a_level_can_be_heard_alone(subject, tuned, tmp_path):
    words = [*subject.words, *TUNE, *DRAW, "--folder", str(tuned)]
    routed = tuned / "reconstructions" / "brain"
    for level in (0, 3):
        assert main(["reconstruct", *words, "--level", str(level)]) == 0
        alone = tuned / "reconstructions" / f"brain_level{level}"
        weights = load_file(alone / ROUTING)["image_levels"]
        assert (weights[..., level] == 1).all() and weights.sum() == 4 * 2
        assert any(
            np.abs(pixels(path) - pixels(alone / path.name)).max() > 1
            for path in routed.glob("*.png")
        )
    with pytest.raises(UserError, match="levels 0 to 3"):
        reconstruct(config_of(subject, tuned, *DRAW, "generation.level=4"))


def test_a_decoder_takes_what_was_tuned_along(subject, tuned, tmp_path):
    config = config_of(subject, tuned, *DRAW)
    decoder = assemble(config, Targets(config))
    decoder.save_pretrained(tmp_path)
    loaded = BrainDecoder.from_pretrained(tmp_path)
    assert (
        loaded.router_image is not None and loaded.router_text is not None and has_lora(loaded.unet)
    )
    layout = Layout.of(config.data.root)
    repeats = group_repeats(test_trials(layout, 1))
    voxels = np.stack([Betas.of(layout, 1).rows(rows) for rows in repeats.rows_NR])
    out = loaded(
        voxels,
        subject=1,
        image_ids=repeats.image_N.tolist(),
        num_inference_steps=2,
        guidance_scale=2.0,
    )
    for image, picture in zip(repeats.image_N, out.images):
        shown = pixels(tuned / "reconstructions" / "brain" / f"{image:06d}.png")
        assert np.abs(np.asarray(picture).astype(int) - shown).max() <= 1


def test_it_goes_on_where_it_was_killed_with_the_same_bits(subject, tuned, tmp_path, monkeypatch):
    more = [
        "finetune.use_ema=true",
        "finetune.gradient_accumulation_steps=2",
        "run.save_minutes=1e-9",
    ]
    config, calm = (config_of(subject, folder, *more) for folder in (tmp_path, tmp_path / "calm"))
    monkeypatch.setattr(checkpoints, "LEAST_PAUSE", 0)
    stage.finetune(calm)
    passes = diffusion_step.step
    calls = []

    def dies(*arguments):
        calls.append(1)
        if len(calls) == 4:  # in the middle of the second optimizer step
            raise KeyboardInterrupt
        return passes(*arguments)

    monkeypatch.setattr(diffusion_task, "step", dies)
    with pytest.raises(KeyboardInterrupt):
        stage.finetune(config)
    monkeypatch.setattr(diffusion_task, "step", passes)
    stage.finetune(config)
    for path in sorted((tmp_path / "finetune").rglob("*.safetensors")):
        assert (
            path.read_bytes()
            == (
                tmp_path / "calm" / "finetune" / path.relative_to(tmp_path / "finetune")
            ).read_bytes()
        ), path
    metrics = [folder / "finetune" / "metrics.jsonl" for folder in (tmp_path, tmp_path / "calm")]
    assert metrics[0].read_text() == metrics[1].read_text()


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (
            [
                "--rank",
                "0",
                "--no-route_image",
                "--no-route_text",
                "router.time_hidden_dim=default",
            ],
            "nothing to train",
        ),
        (["--use_8bit_adam"], "needs bitsandbytes"),
        (["finetune.attention=xformers"], "xformers is not installed"),
        (["--model_name_image", "nowhere"], "There is no trained image encoder in nowhere"),
    ],
)
def test_what_cannot_be_trained_is_refused(subject, tmp_path, more, sentence):
    with pytest.raises(UserError, match=sentence):
        stage.finetune(config_of(subject, tmp_path, *more))


def test_an_ablation_is_one_table_and_one_page(subject, tmp_path, monkeypatch):
    few = ("untouched", "no_router", "time_fixed", "time_hard", "both")
    monkeypatch.setattr(ablation, "VARIANTS", {key: ablation.VARIANTS[key] for key in few})
    words = [
        *subject.words,
        *TUNE,
        *DRAW,
        "finetune.max_train_steps=1",
        "evaluation.bootstrap=20",
        "--folder",
        str(tmp_path),
    ]
    assert main(["ablate", *words]) == 0
    folder = tmp_path / "ablation"
    trained = {path.parent.name for path in folder.glob("*/finetune")}
    assert trained == {
        "no_router",
        "time_fixed",
        "time_hard",
        "both",
    }  # the others draw with one of these
    results = json.loads((folder / "ablation.json").read_text())
    assert list(results) == list(few)
    assert all(
        0 <= line["scores"]["object_accuracy"]["value"] <= 1 and line["scores"]["pixcorr"]["n"] == 4
        for line in results.values()
    )
    settings = yaml.safe_load((folder / "time_hard" / "finetune" / "config.yaml").read_text())[
        "router"
    ]
    assert settings["time_choice"] == "hard" and settings["space"] == "off"
    assert not load_finetuned(folder / "no_router" / "finetune" / "best").router_image
    lines = (folder / "ablation.differences.csv").read_text().splitlines()
    assert lines[0].startswith("score,first,second,difference") and any(
        ",both,no_router," in line for line in lines
    )
    page = (folder / "ablation.html").read_text()
    assert page.count("<img") == 4 * (1 + len(few)) and "http" not in page.replace("http-equiv", "")
    times = {path: path.stat().st_mtime_ns for path in folder.glob("*/*/*/*.png")}
    assert main(["ablate", *words]) == 0
    assert times == {
        path: path.stat().st_mtime_ns for path in folder.glob("*/*/*/*.png")
    }  # nothing was done again


def test_the_launch_script_tunes_and_draws(subject, tmp_path):
    words = [
        *subject.words,
        *TUNE,
        *DRAW,
        "finetune.max_train_steps=1",
        "--num_images",
        "2",
        "--folder",
        str(tmp_path),
    ]
    script = Path(__file__).parents[2] / "scripts" / "launch_tune_diffusion.sh"
    typed = [script, "--config", "simulated", *words]
    with forked_python(tmp_path / "bin") as binaries:
        environment = {**os.environ, "PYTHON": str(binaries / "python")}
        subprocess.run(typed, env=environment, cwd=tmp_path, check=True)
    assert (tmp_path / "finetune" / "finished").is_file()
    assert len(list((tmp_path / "reconstructions" / "brain").glob("*.png"))) == 2


def test_reads_are_as_unsure_as_those_of_held_out_pictures(subject, tmp_path):
    """Mean error and its spread over experts, of many draws, are those of held-out reads; image and
    text err together.
    """
    data = stage.setup(config_of(subject, tmp_path)).data
    rows = data.train.rows
    repeated = np.tile(rows, 40)
    weights = mixing_weights(
        len(repeated), len(data.decoding_error["image"].error_JETD), generator(0)
    )
    for name in ("image", "text"):
        error = augmented(data.train.truth[name][repeated], data.decoding_error[name], weights)
        error = (
            error
            - data.decoding_error[name].slope_E[:, None, None]
            * data.train.truth[name][repeated][:, None]
        )
        wanted = data.decoding_error[name].error_JETD
        torch.testing.assert_close(
            error.square().mean((0, 2, 3)), wanted.square().mean((0, 2, 3)), rtol=0.1, atol=0
        )
        among = error[:, :, 0, 0].T @ error[:, :, 0, 0] / len(error)
        torch.testing.assert_close(
            among,
            wanted[:, :, 0, 0].T @ wanted[:, :, 0, 0] / len(wanted),
            rtol=0.2,
            atol=0.2 * among.diag().mean(),
        )
