"""Processes that share a stage's work under ``accelerate launch``; otherwise a single process."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
import os
from pathlib import Path
from typing import Any, TypeVar

from accelerate import PartialState
from accelerate.utils import broadcast_object_list
import torch

from braingen.config import Config
from braingen.runtime.contents import contents_of
from braingen.runtime.device import device_of
from braingen.runtime.errors import UserError
from braingen.runtime.precision import use_tf32
from braingen.runtime.run_folder import CONTENTS, Follower, Run, has_work, remove_run

Item = TypeVar("Item")
TIMEOUT = timedelta(hours=12)
"""Timeout of collective operations: work of the main process, such as all targets of a data set,
may take hours.
"""


class Workers:
    """This process and the other ones of its group.

    Parameters
    ----------
    config : Config
        Determines the device.
    """

    def __init__(self, config: Config) -> None:
        use_tf32(config)
        several = int(os.environ.get("WORLD_SIZE", "1")) > 1
        self._state = PartialState(
            cpu=device_of(config).type == "cpu", **({"timeout": TIMEOUT} if several else {})
        )

    @property
    def main(self) -> bool:
        """Whether this is the main process, which writes shared files."""
        return self._state.is_main_process

    @property
    def count(self) -> int:
        """Number of processes."""
        return self._state.num_processes

    def broadcast(self, value: Item) -> Item:
        """Return the main process's value in every process."""
        if self.count == 1:
            return value
        box = [value]
        broadcast_object_list(box)
        return box[0]

    def all_reduce_max(self, value: int) -> int:
        """Return the maximum over all processes."""
        if self.count == 1:
            return value
        box = torch.tensor(value, device=self._state.device)
        torch.distributed.all_reduce(box, torch.distributed.ReduceOp.MAX)
        return int(box.item())

    def main_first(self, work: Callable[[], Item]) -> Item:
        """Run an action in the main process, then in the others, which find its files.

        Raises
        ------
        UserError
            In the main process, when its action was refused; the others then exit silently.
        """
        made: list[Item] = []
        main_first(self, lambda: made.append(work()))
        return made[0] if made else work()

    def split(self, items: Sequence[Item]) -> list[Item]:
        """Return this process's part of a list that is equal in all processes."""
        if self.count == 1:
            return list(items)
        if len(items) < self.count:  # Accelerate would give the last item to several processes
            return list(items[self._state.process_index : self._state.process_index + 1])
        with self._state.split_between_processes(list(items)) as mine:
            return list(mine)

    def wait(self) -> None:
        """Wait until all processes arrive here."""
        self._state.wait_for_everyone()


def main_first(workers: Workers, action: Callable[[], object]) -> None:
    """Run an action that may be refused in the main process, while the others wait.

    Raises
    ------
    UserError
        In the main process, as raised by the action; the others then exit silently.
    """
    refused = None
    if workers.main:
        try:
            action()
        except UserError as error:
            refused = error
    if workers.broadcast(refused is not None):
        raise refused or SystemExit(2)


def complete(workers: Workers, run: Run, products: Callable[[], Iterable[Path]]) -> bool:
    """Check in every process whether a run is finished and its files exist.

    Removed files are made again: the mark is removed, and the run continues.

    Parameters
    ----------
    products : Callable[[], Iterable[Path]]
        Returns the files of a finished run; called in the main process, only for a finished run.
    """
    if workers.main and run.finished:
        lost = [path for path in products() if not path.exists()]
        if lost:
            more = f" (and {len(lost) - 1} more)" if len(lost) > 1 else ""
            print(
                f"{lost[0]}{more} is missing, although the run was finished: it is made again.",
                flush=True,
            )
            run.unmark_finished()
        else:
            run.remove_state()  # of a run that was killed between its mark and its end
    return workers.broadcast(run.finished)


@contextmanager
def shared_run(
    workers: Workers,
    folder: Path,
    settings: Mapping[str, Any],
    seeds: Mapping[str, int],
    may_change: Collection[str] = (),
) -> Iterator[Run]:
    """Open a run folder for several processes: the main one locks and writes, others read.

    Raises
    ------
    UserError
        In the main process, when the folder cannot be opened (`Run.start`); the others then exit
        silently.
    """
    run, refused, fresh = None, None, workers.main and not (folder / "config.yaml").exists()
    if workers.main:
        try:
            run = Run.start(
                folder, {**settings, CONTENTS: contents_of(settings)}, seeds, may_change
            )
        except UserError as error:
            refused = error
    if workers.broadcast(refused is not None):
        raise refused or SystemExit(2)
    if run is None:
        yield Follower(folder)
        return
    try:
        with run:
            yield run
    except UserError:
        if fresh and not has_work(
            folder
        ):  # refused before any work: the next attempt may have other settings
            remove_run(folder)
        raise
