"""The training of the tiny backbones: updates as by hand, resumed with the same numbers."""

from __future__ import annotations

from pathlib import Path
import shutil

from diffusers.training_utils import EMAModel
import pytest
import torch
from torch import Tensor, nn

from braingen.config.shipped import TINY
from braingen.pretrained.sdxl import load_scheduler, scheduler_named
from braingen.runtime.errors import UserError
from braingen.runtime.run_folder import Run
from braingen.simulation.backbones import training, unet
from braingen.training import checkpoints

STEPS, RATE, DECAY, EMA = 7, 0.05, 0.1, 0.9


def fresh() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 3), nn.Dropout(0.3), nn.Linear(3, 1))


def losses(model: nn.Module, step: int, generator: torch.Generator) -> dict[str, Tensor]:
    x = torch.randn(5, 4, generator=generator)
    return {"squares": (model(x) - step).square().mean(), "size": 0.1 * model[0].weight.abs().sum()}


def trained(folder: Path, dies_at: int = -1, **more: float) -> nn.Module:
    model = fresh()

    def losses_of(step: int, generator: torch.Generator) -> dict[str, Tensor]:
        if step == dies_at:
            raise KeyboardInterrupt
        return losses(model, step, generator)

    given = {"steps": STEPS, "learning_rate": RATE, "weight_decay": DECAY, "ema": EMA} | more
    training.train(model, losses_of, folder, name="part", **given)  # type: ignore[arg-type]
    return model


@pytest.fixture(autouse=True)
def short_epochs(monkeypatch):
    monkeypatch.setattr(training, "LOG_EVERY", 3)
    monkeypatch.setattr(training, "WARM_UP", 2)


def test_updates_are_those_of_a_loop_by_hand(tmp_path):
    found = trained(tmp_path)
    model = fresh().train()
    matrices, others = (
        [p for p in model.parameters() if (p.ndim > 1) == kind] for kind in (True, False)
    )
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": DECAY}, {"params": others, "weight_decay": 0.0}],
        betas=(0.9, 0.99),
    )
    average = EMAModel([*matrices, *others], decay=EMA)
    for step in range(STEPS):
        for group in optimizer.param_groups:
            group["lr"] = RATE * training.warm_cosine(step, 2, STEPS, 0.01)
        generator = torch.Generator().manual_seed(1_000_003 * (step + 1))
        optimizer.zero_grad()
        sum(losses(model, step, generator).values()).backward()  # type: ignore[union-attr]
        nn.utils.clip_grad_norm_([*matrices, *others], 1.0)
        optimizer.step()
        average.step([*matrices, *others])
    average.copy_to([*matrices, *others])
    assert not found.training
    for mine, theirs in zip(found.parameters(), model.parameters()):
        torch.testing.assert_close(mine, theirs)
    run = Run(tmp_path / "part")
    assert [record["step"] for record in run.metrics] == [3, 6, 7]
    assert "train/squares" in run.metrics[0] and run.summary["seconds"] >= 0


@pytest.mark.parametrize("dies_at", [2, 4, 6])
def test_an_interrupted_training_continues_with_the_same_numbers(tmp_path, monkeypatch, dies_at):
    monkeypatch.setattr(training, "SAVE_MINUTES", 1e-9)
    monkeypatch.setattr(checkpoints, "LEAST_PAUSE", 0)
    whole = trained(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path / "parts", dies_at=dies_at)
    assert (tmp_path / "parts" / "part" / "state.safetensors").exists()
    parts = trained(tmp_path / "parts")
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), parts.parameters()))


def test_a_finished_training_is_not_repeated_and_other_settings_are_refused(tmp_path):
    first = trained(tmp_path)
    again = trained(tmp_path, dies_at=0)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters()))
    with pytest.raises(UserError, match=r"steps was 7, is now 9"):
        trained(tmp_path, steps=9)
    shutil.rmtree(tmp_path / "part")
    assert trained(tmp_path, steps=9) is not first


def test_losses_that_are_not_finite_name_the_learning_rate(tmp_path):
    with pytest.raises(UserError, match=r"NaN or infinite losses in step .* \(now 1e\+30\)"):
        trained(tmp_path, learning_rate=1e30)


def test_frozen_parameters_stay(tmp_path):
    model = fresh()
    model[0].requires_grad_(False)
    before = model[0].weight.clone()
    training.train(
        model,
        lambda step, generator: losses(model, step, generator),
        tmp_path,
        name="part",
        steps=3,
        learning_rate=RATE,
        ema=EMA,
    )
    assert torch.equal(model[0].weight, before)
    assert not torch.equal(model[2].weight, fresh()[2].weight)


@pytest.mark.parametrize("name", ["default", "unipc"])
def test_few_steps_of_the_tiny_sampler_begin_at_the_noisiest_time(name):
    """As its noise does: the weights' scheduler and the recipe's take the same times."""
    for own in (load_scheduler(str(TINY)), unet.scheduler()):
        chosen = scheduler_named(name, own)
        chosen.set_timesteps(5)
        assert chosen.timesteps.tolist() == [999, 799, 599, 399, 199]
