"""Work of the demo in several processes: done once each, refused and stopped in good order, and
never left running alone.
"""

from __future__ import annotations

import multiprocessing
import os
from pathlib import Path
import signal
import threading

import pytest
import torch

from braingen.config import Config
from braingen.runtime.errors import UserError
from braingen.runtime.parallel import Task, group_of, process_count
from braingen.runtime.preemption import Stopped, defer_signals, stoppable

WAIT_SECONDS = 120
"""After which something that should have happened will not."""


def write_facts(path: Path) -> tuple[str, torch.Tensor]:
    """What a task leaves: its process and its threads."""
    path.write_text(f"{os.getpid()} {torch.get_num_threads()}")
    return path.name, torch.full((2,), len(path.name))


def refuse(path: Path) -> None:
    """A task that a person can put right."""
    raise UserError(f"{path} is not there")


def wait_to_be_stopped(path: Path) -> None:
    """As training does: tell that it runs, take a request to stop, save, leave."""
    with defer_signals() as request:
        path.write_text(str(os.getpid()))
        while not request.made:
            signal.pause()
        path.with_suffix(".saved").touch()
        request.raise_if_set()


def task(work, path: Path) -> Task:
    return Task(path.name, work, (path,), lambda: int(path.exists()), 1)


def config(processes: int) -> Config:
    return Config.model_validate({"run": {"processes": processes, "device": "cpu"}})


def test_tasks_are_done_in_other_processes_of_one_thread_or_all_here(tmp_path):
    tasks = [task(write_facts, tmp_path / str(number)) for number in range(3)]
    with group_of(config(2)) as group:
        made = group.run(tasks)
        ((later, number),) = group.run([task(write_facts, tmp_path / "later")])
    assert [name for name, _ in made] == ["0", "1", "2"] and (later, number.tolist()) == (
        "later",
        [5, 5],
    )
    facts = [(tmp_path / name).read_text().split() for name in ("0", "1", "2", "later")]
    assert all(int(process) != os.getpid() and threads == "1" for process, threads in facts)
    assert 1 <= len({process for process, _ in facts}) <= 2
    with group_of(config(1)) as group:
        assert [name for name, _ in group.run(tasks)] == ["0", "1", "2"]
    assert {(tmp_path / str(number)).read_text().split()[0] for number in range(3)} == {
        str(os.getpid())
    }


def test_a_refusal_reaches_the_caller_and_the_others_save_and_end(tmp_path):
    running = tmp_path / "running"
    with pytest.raises(UserError, match="is not there"), group_of(config(2)) as group:
        group.run([task(wait_to_be_stopped, running), task(refuse_when_the_other_runs, running)])
    assert (tmp_path / "running.saved").exists()


def refuse_when_the_other_runs(path: Path) -> None:
    """Refuse once the other task is under way."""
    moments = threading.Event()
    while not path.exists():
        moments.wait(0.01)
    refuse(path)


def _tell_to_stop_when(path: Path, process: int) -> None:
    refuse_when = threading.Event()
    while not path.exists():
        refuse_when.wait(0.01)
    os.kill(process, signal.SIGTERM)


def test_told_to_stop_the_tasks_save_and_all_processes_end(tmp_path):
    running = tmp_path / "running"
    teller = threading.Thread(target=_tell_to_stop_when, args=(running, os.getpid()))
    with stoppable():
        teller.start()
        with pytest.raises(Stopped), group_of(config(2)) as group:
            group.run([task(wait_to_be_stopped, running)])
    teller.join()
    assert (tmp_path / "running.saved").exists()


def _start_and_be_killed(path: Path) -> None:
    with group_of(config(2)) as group:
        group.run([task(wait_to_be_stopped, path)])


@pytest.mark.long
def test_the_processes_of_a_killed_demo_end_with_it(tmp_path):
    """SIGKILL leaves no time to stop them: they look after their parent themselves, and hold no
    lock on.
    """
    running = tmp_path / "running"
    process = multiprocessing.get_context("spawn").Process(
        target=_start_and_be_killed, args=(running,)
    )
    process.start()
    moments = threading.Event()
    while not (running.exists() and running.read_text()):
        moments.wait(0.01)
    worker = int(running.read_text())
    process.kill()
    process.join()
    for _ in range(100 * WAIT_SECONDS):
        if not Path(f"/proc/{worker}").exists():
            break
        moments.wait(0.01)
    assert not Path(f"/proc/{worker}").exists() and not (tmp_path / "running.saved").exists()


@pytest.mark.parametrize(
    ("asked", "cores", "count"), [(0, 1, 1), (0, 2, 2), (0, 64, 2), (1, 64, 1), (3, 1, 3)]
)
def test_as_many_processes_as_cores_two_at_most_unless_told_otherwise(
    monkeypatch, asked, cores, count
):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)), raising=False)
    assert process_count(config(asked)) == count
