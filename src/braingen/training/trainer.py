"""One training loop for encoders, the diffusion model and the tiny backbones.

A training is a number of *epochs*, each a record of the curves: one pass over the trials for an
encoder, a number of updates for a diffusion model. An epoch consists of passes (one batch forward
and backward), an update of several accumulated passes. After an epoch the task may be validated and
its weights kept; then the state is saved, when it is time to, also within an epoch. An interrupted
training continues with the same numbers.

What differs between stages is a :class:`TrainingTask`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
import contextlib
from typing import Any

from accelerate import Accelerator
from diffusers.training_utils import EMAModel
import torch
from torch import nn

from braingen.config import Config
from braingen.runtime.console import Progress
from braingen.runtime.device import end_tracking, start_tracking
from braingen.runtime.distributed import Workers
from braingen.runtime.preemption import Request, defer_signals
from braingen.runtime.run_folder import Run
from braingen.training.checkpoints import SHARDED, Checkpoints, Stateful, TrainingPosition
from braingen.training.steps import Divergence, StepLosses


class TrainingTask(ABC):
    """What is trained and how it is judged.

    Parameters
    ----------
    model : nn.Module
        What Accelerate wraps: one call of it is one pass.
    optimizer : torch.optim.Optimizer
        Of its trained parameters.
    schedule : torch.optim.lr_scheduler.LRScheduler
        Advanced after every update.
    accelerator : Accelerator
        How the training is distributed.
    ema_decay : float | None, optional
        Decay of an exponential moving average of the weights, which is then validated and kept
        instead of them; None for no average.
    """

    title: str
    """In the progress bar."""
    epochs: int
    accumulation: int = 1
    """Passes of an update."""
    max_norm: float = 1.0
    """To which gradients are clipped."""
    monitor: str = ""
    """Name of the held-out value that chooses the checkpoint; empty where nothing is held out."""
    higher_is_better: bool = True
    validates_untrained: bool = False
    """Whether the untrained model is validated, and kept if nothing is better."""
    advice: str
    """What to change when the losses become NaN or infinite; ends the message."""

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        schedule: torch.optim.lr_scheduler.LRScheduler,
        accelerator: Accelerator,
        ema_decay: float | None = None,
    ) -> None:
        self.accelerator, self.schedule = accelerator, schedule
        self.bare = model
        self.model, self.optimizer = accelerator.prepare(model, optimizer)
        self.generator = torch.Generator()
        self.average = None if ema_decay is None else EMAModel(self.clipped(), decay=ema_decay)

    @property
    def sharded(self) -> bool:
        """Whether no process holds the whole model."""
        return self.accelerator.distributed_type in SHARDED

    @abstractmethod
    def passes(self, epoch: int) -> int:
        """Number of passes of an epoch, counted from 0."""

    @abstractmethod
    def batches(self, epoch: int, first: int) -> Iterator[Any]:
        """Batches of the passes of an epoch, from the pass with number `first` on."""

    @abstractmethod
    def losses(self, batch: Any, epoch: int, number: int) -> StepLosses:
        """Losses of a pass, by a call of ``self.model``."""

    @abstractmethod
    def clipped(self) -> Iterator[nn.Parameter]:
        """Parameters whose gradients are clipped."""

    @abstractmethod
    def parts(self) -> Mapping[str, Stateful]:
        """What a saved state holds, by name; of a sharded training without model and optimizer."""

    def begin(self, epoch: int) -> None:  # noqa: B027, optional
        """Prepare an epoch that starts at its first pass."""

    def updated(self) -> None:
        """Advance the averaged weights, after every update."""
        if self.average is not None:
            self.average.step(self.clipped())

    def is_validated(self, epochs: int) -> bool:
        """Whether to validate after so many epochs; after the last one always."""
        return True

    def validate(self) -> dict[str, float]:
        """Values on held-out images, by their names in the curves."""
        return {}

    def is_saved(self, epochs: int, better: bool) -> bool:
        """Whether the weights after so many epochs become the checkpoint."""
        return better

    def save_best(self) -> None:  # noqa: B027, optional
        """Write the weights as the best checkpoint."""

    @contextlib.contextmanager
    def averaged(self) -> Iterator[None]:
        """Set the averaged weights for the time being, where there are any."""
        if self.average is None:
            yield
            return
        self.average.store(self.clipped())
        self.average.copy_to(self.clipped())
        yield
        self.average.restore(self.clipped())

    def steps(self, epochs: int) -> int:
        """Number of steps after so many epochs, as the curves count them."""
        return epochs * self.passes(0)

    def labels(self, epochs: int) -> dict[str, Any]:
        """Further values in the curves."""
        return {}

    def where(self, epoch: int, number: int) -> str:
        """A pass in words."""
        return f"in epoch {epoch + 1}, step {number + 1} of {self.passes(epoch)}"

    def standing(self, best: float) -> str:
        """Best held-out value, in words, for the progress bar."""
        return ""

    def finish(self, best: float) -> dict[str, Any]:
        """Write what remains to be written; returns the summary of the run."""
        return {}


class UpdatesTask(TrainingTask):
    """A training whose epochs are a number of updates.

    Its batches are the numbers of the passes since the beginning. Samples and random numbers of a
    pass depend on its number alone, so an interrupted training ends with the same weights.

    Parameters
    ----------
    updates, updates_per_epoch : int
        Of the whole training, and of an epoch.
    model, optimizer, schedule, accelerator, ema_decay
        See :class:`TrainingTask`.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        schedule: torch.optim.lr_scheduler.LRScheduler,
        accelerator: Accelerator,
        *,
        updates: int,
        updates_per_epoch: int,
        ema_decay: float | None = None,
    ) -> None:
        self.updates, self.updates_per_epoch = updates, updates_per_epoch
        self.epochs = -(-updates // updates_per_epoch)
        super().__init__(model, optimizer, schedule, accelerator, ema_decay)

    def steps(self, epochs: int) -> int:
        """Updates."""
        return min(epochs * self.updates_per_epoch, self.updates)

    def passes(self, epoch: int) -> int:
        """Fewer in the last epoch, where the updates end."""
        return (self.steps(epoch + 1) - self.steps(epoch)) * self.accumulation

    def batches(self, epoch: int, first: int) -> Iterator[int]:
        """Numbers of the passes since the beginning."""
        begin = self.steps(epoch) * self.accumulation
        return iter(range(begin + first, begin + self.passes(epoch)))

    def where(self, epoch: int, number: int) -> str:
        """The update."""
        return f"in step {self.steps(epoch) + number // self.accumulation + 1} of {self.updates}"


def run_task(task: TrainingTask, config: Config, run: Run, workers: Workers, pause: float) -> None:
    """Train, and mark the run as finished.

    Parameters
    ----------
    run : Run
        Where curves, states and checkpoints go.
    workers : Workers
        The processes.
    pause : float
        Seconds between two saves after epochs, at least; within an epoch ``run.save_minutes``
        apply.

    Raises
    ------
    UserError
        When losses become NaN or infinite.
    Stopped
        After a signal to stop; the state is saved first.
    """
    accelerator, sign = task.accelerator, 1 if task.higher_is_better else -1
    within = 60 * config.run.save_minutes
    checkpoints = Checkpoints(
        run, accelerator, workers, task.parts(), task.generator, min(pause, within), within
    )
    restored = checkpoints.restore()
    place = restored or TrainingPosition()
    run.rewind_metrics(-1 if restored is None else task.steps(place.epoch))
    start_tracking(accelerator, config, run)
    divergence = Divergence(
        run, workers, getattr(accelerator, "scaler", None) is not None, task.advice
    )

    def validate_and_save(epochs: int, values: dict[str, float]) -> None:
        """Validate, keep, log."""
        found: dict[str, float] = {}
        if epochs in (0, task.epochs) or task.is_validated(epochs):
            with task.averaged():
                found = task.validate()
                divergence.validated(found, f"on the held-out images at step {task.steps(epochs)}")
                better = bool(found) and sign * found[task.monitor] > place.best
                if better:
                    place.best = sign * found[task.monitor]
                if task.is_saved(epochs, better):
                    task.save_best()
        elif task.is_saved(epochs, False):
            with task.averaged():
                task.save_best()
        values = {**values, **{name: round(value, 6) for name, value in found.items()}}
        run.log(task.steps(epochs), **task.labels(epochs), **values)
        accelerator.log(values, step=task.steps(epochs))

    if restored is None and task.validates_untrained:
        validate_and_save(0, {})
    with defer_signals() as request, Progress(disable=not workers.main) as progress:
        bar = progress.add_task(
            task.title,
            total=sum(task.passes(epoch) for epoch in range(task.epochs)),
            completed=sum(task.passes(epoch) for epoch in range(place.epoch)) + place.step,
        )
        while place.epoch < task.epochs:
            train_epoch(
                task, place, checkpoints, divergence, request, lambda: progress.advance(bar)
            )
            done = place.epoch + 1
            validate_and_save(
                done,
                {
                    f"train/{name}": round(total / max(1, place.counted), 6)
                    for name, total in place.sums.items()
                },
            )
            place.epoch, place.step, place.counted, place.sums = done, 0, 0, {}
            if done < task.epochs:
                checkpoints.maybe_save(place, request, epoch_over=True)
            progress.update(bar, description=f"{task.title}{task.standing(sign * place.best)}")
    summary = task.finish(sign * place.best)
    end_tracking(accelerator)
    run.mark_finished(summary)
    checkpoints.remove()
    workers.wait()


def train_epoch(
    task: TrainingTask,
    place: TrainingPosition,
    checkpoints: Checkpoints,
    divergence: Divergence,
    request: Request,
    passed: Callable[[], object],
) -> None:
    """The passes of an epoch that are not done yet.

    Parameters
    ----------
    passed : Callable[[], object]
        Called after every pass.
    """
    accelerator, epoch, passes = task.accelerator, place.epoch, task.passes(place.epoch)
    if not place.step:
        task.begin(epoch)
    task.model.train()
    for number, batch in enumerate(task.batches(epoch, place.step), place.step):
        group = min(task.accumulation, passes - number // task.accumulation * task.accumulation)
        group_over = number % task.accumulation == group - 1
        if number % task.accumulation == 0:
            task.optimizer.zero_grad(set_to_none=True)
        # processes exchange gradients once per update
        with contextlib.nullcontext() if group_over else accelerator.no_sync(task.model):
            result = task.losses(batch, epoch, number)
            # before the weights are changed by it
            sound = divergence.passed(result, task.where(epoch, number))
            accelerator.backward(result.total / group)
        if sound:
            result.add_to(place.sums)
            place.counted += 1
        place.step = number + 1
        passed()
        if group_over:
            accelerator.clip_grad_norm_(task.clipped(), task.max_norm)
            task.optimizer.step()
            task.schedule.step()
            task.updated()
            if place.step < passes:
                checkpoints.maybe_save(place, request)
