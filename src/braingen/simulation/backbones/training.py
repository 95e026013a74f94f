"""Training of the tiny backbones by the package's one loop, resumable, with averaged weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
import time
from typing import Any

from accelerate import Accelerator
import torch
from torch import Tensor, nn

from braingen.config import load_config
from braingen.runtime.device import accelerator_of
from braingen.runtime.distributed import Workers, complete, shared_run
from braingen.runtime.run_folder import Run
from braingen.runtime.state import load_tree, save_tree
from braingen.training.checkpoints import Stateful
from braingen.training.schedules import warm_cosine
from braingen.training.steps import StepLosses
from braingen.training.trainer import UpdatesTask, run_task

Losses = dict[str, Tensor]
WEIGHTS = "weights.safetensors"
"""The averaged weights of a finished training, in its run folder."""
LOG_EVERY = 50
"""Updates of an epoch, whose mean losses are a line of metrics.jsonl."""
WARM_UP, FLOOR = 100, 0.01
"""Updates of the warm-up, and the share of the learning rate that is left at the end."""
SAVE_MINUTES = 4


class _Step(nn.Module):
    """The trained modules with one call per update, as DDP needs it."""

    def __init__(self, trained: nn.Module, losses_of: Callable[..., Losses]) -> None:
        super().__init__()
        self.trained, self.losses_of = trained, losses_of

    def forward(self, step: int, generator: torch.Generator) -> Losses:
        return self.losses_of(step, generator)


class _Clock:
    """Seconds of training, those before an interruption included; a part of the saved state."""

    def __init__(self) -> None:
        self._before, self._started = 0.0, time.monotonic()

    @property
    def seconds(self) -> float:
        return round(self._before + time.monotonic() - self._started, 1)

    def state_dict(self) -> dict[str, float]:
        return {"seconds": self.seconds}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        self._before, self._started = state["seconds"], time.monotonic()


class BackboneTask(UpdatesTask):
    """Training of a tiny backbone.

    Parameters
    ----------
    model : nn.Module
        All trained parameters.
    losses_of : Callable[[int, torch.Generator], Losses]
        Step, generator -> weighted loss terms.
    run : Run
        Its run folder.
    accelerator : Accelerator
        How the training is distributed.
    workers : Workers
        The processes.
    steps, learning_rate, weight_decay, ema
        See :func:`train`.
    """

    def __init__(
        self,
        model: nn.Module,
        losses_of: Callable[[int, torch.Generator], Losses],
        run: Run,
        accelerator: Accelerator,
        workers: Workers,
        *,
        steps: int,
        learning_rate: float,
        weight_decay: float,
        ema: float,
    ) -> None:
        self.title, self.run, self.workers = f"training {run.folder.name}", run, workers
        self.advice = f"Lower its learning rate (now {learning_rate:g})."
        self.trained, self.clock = model, _Clock()
        learned = [p for p in model.parameters() if p.requires_grad]
        matrices = [p for p in learned if p.ndim > 1]
        others = [p for p in learned if p.ndim <= 1]
        self.parameters = [*matrices, *others]
        optimizer = torch.optim.AdamW(
            [
                {"params": matrices, "weight_decay": weight_decay},
                {"params": others, "weight_decay": 0.0},
            ],
            lr=learning_rate,
            betas=(0.9, 0.99),
            fused=True,
        )
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: warm_cosine(step, WARM_UP, steps, FLOOR)
        )
        super().__init__(
            _Step(model, losses_of),
            optimizer,
            schedule,
            accelerator,
            updates=steps,
            updates_per_epoch=LOG_EVERY,
            ema_decay=ema,
        )

    def losses(self, batch: int, epoch: int, number: int) -> StepLosses:
        """Of ``losses_of``, with a generator seeded by the step and the process."""
        rank = self.accelerator.process_index
        generator = torch.Generator().manual_seed(1_000_003 * (batch + 1) + rank)
        return StepLosses.of(self.model(batch, generator))

    def clipped(self) -> Iterator[nn.Parameter]:
        """All trained parameters."""
        return iter(self.parameters)

    def parts(self) -> Mapping[str, Stateful]:
        """Model, optimizer, schedule, averaged weights, and the time it took."""
        assert self.average is not None
        return {
            "model": self.trained,
            "optimizer": self.optimizer,
            "schedule": self.schedule,
            "average": self.average,
            "clock": self.clock,
        }

    def labels(self, epochs: int) -> dict[str, float]:
        """Seconds so far."""
        return {"seconds": self.clock.seconds}

    def finish(self, best: float) -> dict[str, Any]:
        """Write the averaged weights."""
        with self.averaged():
            if self.workers.main:
                save_tree(self.run.path(WEIGHTS), self.trained.state_dict())
        return {"seconds": self.clock.seconds}


def train(
    model: nn.Module,
    losses_of: Callable[[int, torch.Generator], Losses],
    folder: Path,
    *,
    name: str,
    steps: int,
    learning_rate: float,
    ema: float,
    weight_decay: float = 0.0,
) -> None:
    """Train in a run folder, continuing where an interrupted run stopped; sets averaged weights.

    Parameters
    ----------
    model : nn.Module
        Holds all trained parameters; afterwards in eval mode.
    losses_of : Callable[[int, torch.Generator], Losses]
        Step, generator -> weighted loss terms, which are summed; the generator is seeded by the
        step, so that an interrupted run continues with the same random numbers.
    folder : Path
        Where the run folder `name` is.
    steps : int
        Updates.
    learning_rate : float
        Peak, after a warm-up of 100 updates; then a half cosine down to a hundredth.
    ema : float
        Decay of the averaged weights.
    weight_decay : float, optional
        Of matrices.

    Raises
    ------
    UserError
        When losses become NaN or infinite, or the run folder was begun with other settings.
    """
    config = load_config(
        None,
        {
            "run.device": "cpu",
            "run.tracker": "none",
            "run.mixed_precision": "no",
            "run.save_minutes": str(SAVE_MINUTES),
        },
    )
    settings = {
        "steps": steps,
        "learning_rate": learning_rate,
        "weight_decay": weight_decay,
        "ema": ema,
    }
    workers = Workers(config)
    with shared_run(workers, folder / name, settings, {}) as run:
        if not complete(workers, run, lambda: [run.path(WEIGHTS)]):
            accelerator = accelerator_of(config, run.folder, 1)
            task = BackboneTask(
                model,
                losses_of,
                run,
                accelerator,
                workers,
                steps=steps,
                learning_rate=learning_rate,
                weight_decay=weight_decay,
                ema=ema,
            )
            run_task(task, config, run, workers, 60 * SAVE_MINUTES)
        model.load_state_dict(load_tree(run.path(WEIGHTS)))
    model.eval()
