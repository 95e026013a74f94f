"""Fine-tuning saves its state by the clock of ``run.save_minutes``, the loss scale with it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from unit.tiny_finetuning import tiny_tuning

from braingen.runtime.device import accelerator_of
from braingen.runtime.run_folder import Run
from braingen.runtime.state import load_tree
from braingen.training import checkpoints, diffusion_step, diffusion_task
from braingen.training import diffusion as stage
from braingen.training.checkpoints import LEAST_PAUSE, SaveClock

pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation:DeprecationWarning"
)  # of diffusers' scheduler


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("pace") / "data"


class _Time:
    now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch) -> _Time:
    clock = _Time()
    monkeypatch.setattr(checkpoints, "time", clock)
    return clock


def test_a_save_is_due_after_the_pause_and_pauses_grow_with_what_saving_takes(clock):
    pace = SaveClock()
    clock.now += 599
    assert not pace.due(600)
    clock.now += 2
    assert pace.due(600)
    with pace.saving():
        clock.now += 30
    clock.now += LEAST_PAUSE * 30 - 1
    assert not pace.due(600)  # saving takes a hundredth of the time at most
    clock.now += 2
    assert pace.due(600)


@pytest.mark.parametrize(("minutes", "saves"), [("10", []), ("1e-9", [1, 2])])
@pytest.mark.slow
def test_states_are_written_by_save_minutes(monkeypatch, root, tmp_path, minutes, saves):
    monkeypatch.setattr(checkpoints, "LEAST_PAUSE", 0)
    written = []
    monkeypatch.setattr(Run, "save_state", lambda run, tree: written.append(tree["epoch"]))
    stage.finetune(tiny_tuning(monkeypatch, root, tmp_path / "run", run__save_minutes=minutes))
    assert written == saves  # of three steps; after the last nothing is to be continued


@pytest.mark.slow
def test_the_loss_scale_is_saved_and_taken_up_again(monkeypatch, root, tmp_path):
    """On a GPU in float16 gradients are scaled; begun again at 2^16, steps would overflow."""
    monkeypatch.setattr(checkpoints, "LEAST_PAUSE", 0)
    scalers = []

    def with_scaler(*given):
        accelerator = accelerator_of(*given)
        accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0 ** (3 + len(scalers)))
        scalers.append(accelerator.scaler)
        return accelerator

    monkeypatch.setattr(stage, "accelerator_of", with_scaler)
    config = tiny_tuning(monkeypatch, root, tmp_path / "run", run__save_minutes="1e-9")
    passes, calls = diffusion_step.step, []

    def dies(*arguments):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return passes(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(diffusion_task, "step", dies)
        with pytest.raises(KeyboardInterrupt):
            stage.finetune(config)
    state = load_tree(config.run.folder / "finetune" / "state.safetensors")
    assert state["epoch"] == 1 and state["scaler"]["scale"] == 8.0
    stage.finetune(config)
    assert len(scalers) == 2 and scalers[1].get_scale() == 8.0  # not the 16 it was made with
