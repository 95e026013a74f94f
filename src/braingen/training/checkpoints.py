"""Training state, saved after epochs, by the clock within them, and on a signal to stop."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from enum import IntEnum
import math
from pathlib import Path
import shutil
import time
from typing import Any, Protocol

from accelerate import Accelerator
from accelerate.utils import DistributedType, gather_object
import torch

from braingen.runtime.device import end_tracking
from braingen.runtime.distributed import Workers
from braingen.runtime.errors import UserError
from braingen.runtime.preemption import Request
from braingen.runtime.run_folder import Run
from braingen.runtime.state import load_tree, save_tree

SHARDED = (DistributedType.FSDP, DistributedType.DEEPSPEED)
"""Kinds of training in which no process holds the whole state; Accelerate then writes it, into a
folder.
"""
SHARDS = "shards"
LEAST_PAUSE = 100
"""Saving pauses for this many times as long as it took, so it takes at most a hundredth of the
time.
"""


class Stateful(Protocol):
    """What can be saved: a model, an optimizer, a schedule, a loss scale."""

    def state_dict(self) -> Any: ...
    def load_state_dict(self, state_dict: Any) -> Any: ...


class SaveClock:
    """Says when a state is due."""

    def __init__(self) -> None:
        self._took, self._saved = 0.0, time.monotonic()

    def due(self, pause: float) -> bool:
        """Whether so many seconds have passed since the last save; more where saving takes long."""
        return time.monotonic() - self._saved > max(pause, LEAST_PAUSE * self._took)

    @contextmanager
    def saving(self) -> Iterator[None]:
        """Measure a save, from which the next pause counts."""
        began = time.monotonic()
        yield
        self._saved = time.monotonic()
        self._took = self._saved - began


@dataclass
class TrainingPosition:
    """Where a training is."""

    epoch: int = 0
    """The epoch in hand, counted from 0."""
    step: int = 0
    """Passes of it that are done."""
    best: float = -math.inf
    """Best value on the held-out images so far; larger is better."""
    counted: int = 0
    """Passes of it whose losses are in the sums."""
    sums: dict[str, float] = field(default_factory=dict)
    """Sums of the losses over those passes."""


class _Action(IntEnum):
    NOTHING, SAVE, STOP = 0, 1, 2


class Checkpoints:
    """The saved state of a training, in its run folder.

    With several processes the main one writes; random states are gathered from all, since each has
    its own.

    Parameters
    ----------
    run : Run
        The run folder.
    accelerator, workers : Accelerator
        How the training is shared out.
    parts : Mapping[str, Stateful]
        What is saved whole, by name.
    generator : torch.Generator
        Of what chance decides in the model's input; the global one, of dropout, is saved too.
    pause : float
        Seconds between two saves after epochs, at least.
    pause_within : float
        Seconds after which a save comes within an epoch.
    """

    def __init__(
        self,
        run: Run,
        accelerator: Accelerator,
        workers: Workers,
        parts: Mapping[str, Stateful],
        generator: torch.Generator,
        pause: float,
        pause_within: float,
    ) -> None:
        self._run, self._accelerator, self._workers, self._generator = (
            run,
            accelerator,
            workers,
            generator,
        )
        self._sharded = accelerator.distributed_type in SHARDED
        scaler = getattr(accelerator, "scaler", None)  # the loss scale of float16
        self._parts = dict(parts) | ({"scaler": scaler} if scaler is not None else {})
        self._pause, self._pause_within, self._clock = pause, pause_within, SaveClock()

    def restore(self) -> TrainingPosition | None:
        """Go back to the last saved state; None where there is none.

        Raises
        ------
        UserError
            When it was saved by another number of processes.
        """
        shards = self._run.path(SHARDS)
        state = (
            self._workers.broadcast(shards.exists()) and load_tree(shards / "state.safetensors")
        ) or self._run.load_state()
        if state is None:
            return None
        if lacking := {"random", *TrainingPosition.__dataclass_fields__} - set(state):
            raise UserError(
                f"{self._run.folder} was interrupted under another version of BrainGen, whose state"
                f" has no {sorted(lacking)[0]}: train it to its end with that version, or remove"
                " the folder and begin anew."
            )
        if len(state["random"]) != self._workers.count:
            raise UserError(
                f"{self._run.folder} was trained by {len(state['random'])} processes so far and"
                f" would go on with {self._workers.count}: batches and learning rates would change."
                " Start as many, or another --model_name."
            )
        if self._sharded:
            self._accelerator.load_state(str(shards))
        for name, part in self._parts.items():
            if name in state:
                part.load_state_dict(state[name])
        mine = state["random"][self._accelerator.process_index]
        torch.set_rng_state(mine["global"])
        self._generator.set_state(mine["generator"])
        if mine["gpu"] is not None and torch.cuda.is_available():
            torch.cuda.set_rng_state(mine["gpu"])
        return TrainingPosition(
            **{name: state[name] for name in TrainingPosition.__dataclass_fields__}
        )

    def maybe_save(
        self, place: TrainingPosition, request: Request, epoch_over: bool = False
    ) -> None:
        """Save when it is time to, or stop after a signal; all processes do the same.

        Raises
        ------
        Stopped
            After a signal to stop; the state is saved first.
        """
        due = self._clock.due(self._pause if epoch_over else self._pause_within)
        mine = (
            _Action.STOP
            if request.made
            else _Action.SAVE
            if due and self._workers.main
            else _Action.NOTHING
        )
        action = self._workers.all_reduce_max(mine)
        if action != _Action.NOTHING:
            self.save(place)
        if action == _Action.STOP:
            end_tracking(self._accelerator)
            request.made = True
            request.raise_if_set()

    def save(self, place: TrainingPosition) -> None:
        """Write the state, whole or not at all."""
        mine = {
            "global": torch.get_rng_state(),
            "gpu": torch.cuda.get_rng_state() if self._accelerator.device.type == "cuda" else None,
            "generator": self._generator.get_state(),
        }
        tree = {
            "random": gather_object([mine]) if self._workers.count > 1 else [mine],
            **vars(place),
        }
        with self._clock.saving():
            if self._sharded:
                self._save_shards(tree)
            else:
                self._run.save_state(
                    {name: part.state_dict() for name, part in self._parts.items()} | tree
                )

    def _save_shards(self, tree: dict[str, Any]) -> None:
        with ExitStack() as stack:
            mine = stack.enter_context(self._run.replace(SHARDS)) if self._workers.main else Path()
            folder = self._workers.broadcast(mine)
            self._accelerator.save_state(str(folder))
            if self._workers.main:
                parts = {name: part.state_dict() for name, part in self._parts.items()}
                save_tree(folder / "state.safetensors", tree | parts)
            self._workers.wait()

    def remove(self) -> None:
        """Drop the state: the run is finished."""
        self._run.remove_state()
        if self._workers.main:
            shutil.rmtree(self._run.path(SHARDS), ignore_errors=True)
