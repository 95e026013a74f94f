"""The training loop: updates as by hand, and an interruption changes nothing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from braingen.config import load_config
from braingen.runtime.device import accelerator_of
from braingen.runtime.distributed import Workers
from braingen.runtime.errors import UserError
from braingen.runtime.preemption import Stopped
from braingen.runtime.run_folder import Run
from braingen.training import checkpoints
from braingen.training.steps import StepLosses
from braingen.training.trainer import TrainingTask, run_task

PASSES, EPOCHS = 5, 3


def row(number: int) -> torch.Tensor:
    return torch.randn(4, generator=torch.Generator().manual_seed(number))


def loss_of(model: nn.Module, number: int) -> torch.Tensor:
    return (model(row(number)) - number).square().mean()


class Line(TrainingTask):
    """A linear map; judged by how near its bias is to 1."""

    title, epochs, accumulation, advice = "line", EPOCHS, 2, "Stop."
    monitor, higher_is_better, validates_untrained = "validation/distance", False, True
    max_norm = 0.5

    def __init__(self, config: Any, folder: Path, dies_at: int = -1) -> None:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 1), nn.Dropout(0.5))
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
        schedule = torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.5)
        super().__init__(model, optimizer, schedule, accelerator_of(config, folder, 1))
        self.dies_at, self.kept, self.seen = dies_at, [], list[int]()

    def passes(self, epoch: int) -> int:
        return PASSES

    def batches(self, epoch: int, first: int) -> Iterator[int]:
        return iter(range(epoch * PASSES + first, (epoch + 1) * PASSES))

    def begin(self, epoch: int) -> None:
        torch.manual_seed(epoch)

    def losses(self, batch: int, epoch: int, number: int) -> StepLosses:
        if batch == self.dies_at:
            raise KeyboardInterrupt
        self.seen.append(batch)
        return StepLosses.of({"squares": loss_of(self.model, batch)})

    def clipped(self) -> Iterator[nn.Parameter]:
        return self.model.parameters()

    def parts(self) -> dict[str, Any]:
        return {"model": self.bare, "optimizer": self.optimizer, "schedule": self.schedule}

    def validate(self) -> dict[str, float]:
        return {"validation/distance": abs(self.bare[0].bias.item() - 1)}

    def save_best(self) -> None:
        self.kept.append(self.bare[0].bias.item())


def trained(folder: Path, **more: Any) -> Line:
    given = {
        "run.save_minutes": "1e-9",
        "run.folder": str(folder),
        "run.tracker": "none",
        "run.device": "cpu",
    }
    config = load_config(None, given)
    task = Line(config, folder, **more)
    with Run.start(folder, {"a": 1}, {"run": 0}) as run:
        run_task(task, config, run, Workers(config), 0.0)
    return task


def test_updates_are_those_of_a_loop_by_hand(tmp_path):
    task = trained(tmp_path / "run")
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 1), nn.Dropout(0.5))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.5)
    for epoch in range(EPOCHS):
        torch.manual_seed(epoch)
        for group in ((0, 1), (2, 3), (4,)):  # the last one of an epoch is short
            optimizer.zero_grad()
            for number in group:
                (loss_of(model, epoch * PASSES + number) / len(group)).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            optimizer.step()
            schedule.step()
    for mine, theirs in zip(task.bare.parameters(), model.parameters()):
        torch.testing.assert_close(mine, theirs)


def test_the_best_is_kept_and_the_curves_have_every_epoch(tmp_path):
    task = trained(tmp_path / "run")
    run = Run(tmp_path / "run")
    distances = [record["validation/distance"] for record in run.metrics]
    assert [record["step"] for record in run.metrics] == [0, 5, 10, 15]
    best = [d for i, d in enumerate(distances) if all(d < other for other in distances[:i])]
    assert [abs(bias - 1) for bias in task.kept] == pytest.approx(best, abs=1e-6)
    assert "train/squares" in run.metrics[1] and "train/squares" not in run.metrics[0]
    assert run.finished and not (tmp_path / "run" / "state.safetensors").exists()


@pytest.mark.parametrize("number", [1, 2, 5, 9, 13])
def test_an_interrupted_training_ends_with_the_same_bits(tmp_path, monkeypatch, number):
    monkeypatch.setattr(checkpoints, "LEAST_PAUSE", 0)
    whole = trained(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path / "run", dies_at=number)
    rest = trained(tmp_path / "run")
    assert rest.seen[0] == number // 5 * 5 + number % 5 // 2 * 2  # where its update began
    for mine, theirs in zip(rest.bare.parameters(), whole.bare.parameters()):
        assert torch.equal(mine, theirs)
    assert Run(tmp_path / "run").metrics == Run(tmp_path / "whole").metrics


def test_a_signal_saves_and_stops(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints, "LEAST_PAUSE", 10**9)
    folder, fresh = tmp_path / "run", Line.losses

    def signalled(self: Line, batch: int, epoch: int, number: int) -> StepLosses:
        if batch == 2:
            import os
            import signal

            os.kill(os.getpid(), signal.SIGTERM)
        return fresh(self, batch, epoch, number)

    from braingen.runtime.preemption import stoppable

    monkeypatch.setattr(Line, "losses", signalled)
    with stoppable(), pytest.raises(Stopped):
        trained(folder)
    monkeypatch.setattr(Line, "losses", fresh)
    assert trained(folder).seen[0] == 4  # the update in hand was made, then saved
    assert Run(folder).finished


def test_a_state_of_another_version_is_refused_in_words(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints, "LEAST_PAUSE", 0)
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path / "run", dies_at=4)
    with Run.start(tmp_path / "run", {"a": 1}, {"run": 0}) as run:
        state = run.load_state()
        run.save_state({name: value for name, value in state.items() if name != "counted"})
    with pytest.raises(UserError, match="another version of BrainGen, whose state has no counted"):
        trained(tmp_path / "run")
