"""Batches of responses: which trials make a step is a pure function of (seed, epoch, step, rank,
world).

No batch is made in advance and none is kept, so a run stopped at any step continues with the same
batches.

B trials of one subject in a batch, V voxels, R presentations.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
import queue
import threading
from typing import NamedTuple, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from braingen.data.betas import Betas
from braingen.data.trials import Repeats
from braingen.runtime.errors import UserError
from braingen.types import Trials, VoxelBatch

Item = TypeVar("Item")


class TrainBatches:
    """Training batches of one or several subjects, reshuffled every epoch.

    A step is a tuple with one `VoxelBatch` per subject, all of the same size. An epoch shows every
    trial of the subject with the most trials exactly once; the others, to be shown equally often,
    start a freshly shuffled pass over their trials whenever one is used up. Batches of an epoch
    differ in size by one trial at most, so there is no small last one.

    With several processes, every rank gets a share of each global batch of the same size: rank 0
    the first trials, and so on. Where the trials are not a multiple of `world`, fewer than `world`
    of them, others in every epoch, are left out.

    Parameters
    ----------
    subjects : Sequence[tuple[Trials, Betas]]
        Trials and betas of each subject; the order of the batches in a step.
    batch_size : int
        Trials per step and process, over all subjects; each subject gets `batch_size //
        len(subjects)`.
    seed : int
        Seed of the order.
    rank, world : int, optional
        This process and the number of processes.

    Raises
    ------
    UserError
        When the batch is smaller than the number of subjects, a subject has no trials, or a trial
        is not in the betas file.
    """

    def __init__(
        self,
        subjects: Sequence[tuple[Trials, Betas]],
        batch_size: int,
        seed: int,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        if not subjects:
            raise UserError(
                "No subject to train on: name at least one with --subj or --multi_subject."
            )
        self.share = batch_size // len(subjects)
        if self.share < 1:
            raise UserError(
                f"--batch_size is {batch_size} for {len(subjects)} subjects: give at least"
                f" {len(subjects)}, one trial of each."
            )
        if not 0 <= rank < world:
            raise ValueError(f"rank {rank} of {world} processes: 0 to {world - 1} is allowed")
        self.subjects = tuple(trials.subject for trials, _ in subjects)
        self.seed, self.rank, self.world = seed, rank, world
        self._betas = tuple(betas for _, betas in subjects)
        self._rows = tuple(trials.table["trial"].to_numpy() for trials, _ in subjects)
        self._images = tuple(trials.table["image"].to_numpy() for trials, _ in subjects)
        for subject, betas, rows in zip(self.subjects, self._betas, self._rows):
            if len(rows) < world:
                raise UserError(
                    f"Subject {subject} has {len(rows)} training trials, too few for {world}"
                    " processes."
                )
            betas.check(rows[[rows.argmin(), rows.argmax()]])
        self.trials_per_epoch = max(len(rows) for rows in self._rows)
        """Trials of each subject shown in an epoch."""
        self.steps = -(-(self.trials_per_epoch // world) // self.share)
        """Steps of an epoch."""
        self._order = lru_cache(maxsize=2 * len(subjects))(self._shuffle)

    def _shuffle(self, epoch: int, position: int) -> np.ndarray:
        """Indices into the trials of the subject at `position`, in the order in which an epoch
        shows them.
        """
        count = len(self._rows[position])
        passes = -(-self.trials_per_epoch // count)
        seeds = [
            np.random.SeedSequence([self.seed, epoch, self.subjects[position], number])
            for number in range(passes)
        ]
        return np.concatenate([np.random.default_rng(seed).permutation(count) for seed in seeds])[
            : self.trials_per_epoch
        ]

    def _span(self, step: int) -> tuple[int, int]:
        """Part of the epoch's order that is this step's global batch."""
        units = self.trials_per_epoch // self.world * self.world
        first, last = (
            (k * units // self.steps) // self.world * self.world for k in (step, step + 1)
        )
        return first, last

    def chosen(self, epoch: int, step: int) -> tuple[np.ndarray, ...]:
        """Per subject, indices into its trials that this rank gets at a step; every rank the same
        number.
        """
        if not 0 <= step < self.steps:
            raise IndexError(f"step {step} of an epoch of {self.steps} steps")
        first, last = self._span(step)
        size = (last - first) // self.world
        mine = slice(first + self.rank * size, first + (self.rank + 1) * size)
        return tuple(self._order(epoch, position)[mine] for position in range(len(self.subjects)))

    def batch(self, epoch: int, step: int) -> tuple[VoxelBatch, ...]:
        """The batch of a step: one record per subject, equally long."""
        return tuple(
            VoxelBatch(
                torch.from_numpy(betas.rows(rows[index])), torch.from_numpy(images[index]), subject
            )
            for subject, betas, rows, images, index in zip(
                self.subjects, self._betas, self._rows, self._images, self.chosen(epoch, step)
            )
        )

    def epoch(
        self, epoch: int, first_step: int = 0, ahead: int = 2
    ) -> Iterator[tuple[VoxelBatch, ...]]:
        """Batches of an epoch from `first_step` on, read `ahead` batches in advance by a thread (0:
        when asked for).
        """
        steps = (self.batch(epoch, step) for step in range(first_step, self.steps))
        return prefetched(steps, ahead) if ahead else steps


class RepeatedBatch(NamedTuple):
    """A batch of test images with all their presentations."""

    voxels_BRV: Tensor
    """z-scored responses, float32; zeros where an image was shown less often."""
    present_BR: Tensor
    """Whether there was such a presentation, bool."""
    image_B: Tensor
    """Image ids, int64."""
    subject: int
    """Whose voxels these are."""


def average_repeats(x_BR: Tensor, present_BR: Tensor) -> Tensor:
    """Mean over presentations (axis 1) of anything computed per presentation (B, R, ...), missing
    ones left out.
    """
    weight = present_BR.to(x_BR.dtype).reshape(*present_BR.shape, *[1] * (x_BR.ndim - 2))
    return (x_BR * weight).sum(dim=1) / weight.sum(dim=1)


class ByRow(Protocol):
    """Responses that are read by row: a betas file, or what somebody brings along."""

    @property
    def voxels(self) -> int:
        """Number of voxels."""

    def rows(self, rows: np.ndarray) -> np.ndarray:
        """The given rows, float32."""


class RepeatBatches:
    """Test images in the order of their ids, each with its presentations.

    Parameters
    ----------
    repeats : Repeats
        Presentations grouped by image.
    betas : ByRow
        The subject's betas, or other responses of the subject.
    subject : int
        Whose they are.
    batch_size : int
        Images per batch.
    """

    def __init__(self, repeats: Repeats, betas: ByRow, subject: int, batch_size: int) -> None:
        if batch_size < 1:
            raise UserError(f"--batch_size is {batch_size}: at least 1 is needed.")
        self.repeats, self.betas, self.subject, self.batch_size = (
            repeats,
            betas,
            subject,
            batch_size,
        )

    def __len__(self) -> int:
        return -(-len(self.repeats.image_N) // self.batch_size)

    def __iter__(self) -> Iterator[RepeatedBatch]:
        for first in range(0, len(self.repeats.image_N), self.batch_size):
            part = slice(first, first + self.batch_size)
            rows_BR = self.repeats.rows_NR[part]
            present_BR = rows_BR >= 0
            voxels_BRV = np.zeros((*rows_BR.shape, self.betas.voxels), dtype=np.float32)
            voxels_BRV[present_BR] = self.betas.rows(rows_BR[present_BR])
            yield RepeatedBatch(
                torch.from_numpy(voxels_BRV),
                torch.from_numpy(present_BR),
                torch.from_numpy(self.repeats.image_N[part]),
                self.subject,
            )


def prefetched(items: Iterable[Item], ahead: int = 2) -> Iterator[Item]:
    """Run an iterator in a thread, `ahead` items in advance, so that reading and computing overlap.

    Order and content are unchanged; an exception of the iterator is raised where its item would
    have come; leaving the loop early ends the thread.
    """
    waiting: queue.Queue = queue.Queue(maxsize=max(1, ahead))
    stopped = threading.Event()

    def hand_over(entry: tuple) -> bool:
        while not stopped.is_set():
            try:
                waiting.put(entry, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def work() -> None:
        try:
            for item in items:
                if not hand_over((item, None)):
                    return
            hand_over((None, StopIteration()))
        except BaseException as error:
            hand_over((None, error))

    thread = threading.Thread(target=work, name="braingen-prefetch", daemon=True)
    thread.start()
    try:
        while True:
            item, error = waiting.get()
            if isinstance(error, StopIteration):
                return
            if error is not None:
                raise error
            yield item
    finally:
        stopped.set()
        thread.join()
