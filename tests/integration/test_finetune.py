"""Fine-tuning on a small simulated subject with a backbone of random weights: what is trained learns, nothing else changes."""

from __future__ import annotations

from pathlib import Path
import shutil
from typing import NamedTuple

import pytest
import torch
from unit.fake_backbone import write_fake_backbone

from braingen.cli import main, parse_overrides
from braingen.config import Config, load_config
from braingen.stages import finetune as stage

SMALL = ["simulation.num_sessions=2", "simulation.trials_per_session=60", "simulation.num_voxels=200", "simulation.num_test_images=4"]
SMALL += ["encoder.hidden_dim=32", "encoder.n_blocks=1", "encoder.head=linear", "prior.depth=1", "prior.dim_head=32"]
SMALL += ["optim.num_epochs=2", "optim.batch_size=20", "run.device=cpu", "run.tracker=none"]
TUNE = ["--rank", "2", "finetune.train_batch_size=4", "finetune.gradient_accumulation_steps=1", "finetune.max_train_steps=3"]
TUNE += ["finetune.lr_warmup_steps=0", "finetune.validation_steps=2", "finetune.validation_images=4", "router.time_hidden_dim=16"]


class Subject(NamedTuple):
    """A subject whose encoders are trained."""

    words: list[str]
    folder: Path


@pytest.fixture(scope="module")
def subject(tmp_path_factory) -> Subject:
    folder = tmp_path_factory.mktemp("finetune")
    backbone = write_fake_backbone(folder / "backbone", with_clip=True)
    words = ["--root", str(folder / "data"), "--path", str(backbone), *SMALL]
    words += ["--model_name_image", str(folder / "stage1" / "image"), "--model_name_text", str(folder / "stage1" / "text")]
    for command in (["simulate"], ["train", "image"], ["train", "text"]):
        assert main([*command, *words]) == 0
    return Subject(words, folder)


def config_of(subject: Subject, folder: Path, *more: str) -> Config:
    return load_config(*parse_overrides([*subject.words, *TUNE, "--folder", str(folder), *more]))


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


ROUTERS = {
    "attention and cross": [],
    "hard, with context": ["router.time_choice=hard", "router.time_context=true"],
    "perceptron and gates": ["router.time=mlp", "router.space=gate_softmax"],
    "every step": ["router.prior_order=step"],
}


@pytest.mark.parametrize("more", ROUTERS.values(), ids=ROUTERS)
def test_everything_that_is_trained_gets_a_gradient_and_moves_within_two_steps(subject, tmp_path, more):
    config = config_of(subject, tmp_path, "finetune.adam_weight_decay=0", *more)
    parts = stage.setup(config)
    parameters = stage.trained_parameters(parts.model)
    kinds = {name.split(".")[-2] if ".lora_" in name else name.split(".")[2] for name in parameters}
    assert len(parameters) > 80 and kinds >= {"default", "time_router", "space_routers"}
    assert {name for name, p in parts.model.named_parameters() if p.requires_grad} == set(parameters)
    before = {name: p.detach().clone() for name, p in parameters.items()}
    frozen = {name: p.detach().clone() for name, p in parts.model.named_parameters() if name not in parameters}
    heard: set[str] = set()  # of 32 pictures: where levels are chosen hard, every level is chosen by some
    optimizer = stage.optimizer_of(parts.model, config)
    parts.model.train()
    for number in range(2):
        optimizer.zero_grad(set_to_none=True)
        stage.step(parts.model, stage.Rows(len(parts.data.train.rows), 32, 0).of(number), parts, config, generator(number)).total.backward()
        heard |= {name for name, p in parameters.items() if p.grad is not None and p.grad.abs().max() > 0}
        optimizer.step()
    assert set(parameters) - heard == set()
    assert [name for name, p in parameters.items() if torch.equal(p, before[name])] == []
    for name, p in parts.model.named_parameters():
        assert name in parameters or torch.equal(p, frozen[name])


def test_run(subject, tmp_path):
    assert main(["finetune", *subject.words, *TUNE, "--folder", str(tmp_path)]) == 0
