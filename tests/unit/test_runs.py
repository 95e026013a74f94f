"""Run folders: continued, never mixed up, never half written; tested by killing processes and
filling disks.
"""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from braingen.config import load_config
from braingen.runtime import files, state
from braingen.runtime import lock as locks
from braingen.runtime import run_folder as runs
from braingen.runtime.distributed import Workers, complete, shared_run
from braingen.runtime.errors import UserError
from braingen.runtime.files import (
    identity,
    recover_folder,
    refuse_stand_in,
    replaced_file,
    replaced_folder,
    write_json,
    write_text,
)
from braingen.runtime.run_folder import Run, config_hash, flat
from braingen.runtime.state import load_tree, save_tree

CONFIG = {
    "data": {"root": "x", "subjects": [1, 2]},
    "training": {"max_lr": 3e-4, "epochs": 5},
    "name": None,
}


# -- state -----------------------------------------------------------------------------------------


def assert_same(a, b):
    assert type(a) is type(b)
    if isinstance(a, torch.Tensor):
        assert a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b)
    elif isinstance(a, np.ndarray):
        assert a.dtype == b.dtype and np.array_equal(a, b, equal_nan=a.dtype.kind == "f")
    elif isinstance(a, dict):
        assert list(a) == list(b)
        for key in a:
            assert_same(a[key], b[key])
    elif isinstance(a, list | tuple):
        assert len(a) == len(b)
        for x, y in zip(a, b):
            assert_same(x, y)
    else:
        assert a == b or (a != a and b != b)


def test_every_kind_of_value_returns_with_its_type(tmp_path):
    tree = {
        "tensors": [
            torch.randn(3, 2),
            torch.zeros(0, 4),
            torch.tensor(1.5),
            torch.arange(5),
            torch.tensor([True, False]),
        ],
        "half": (torch.randn(4).half(), torch.randn(4).bfloat16()),
        "arrays": {
            "a": np.arange(3),
            "b": np.array(2.0),
            "f": np.asfortranarray(np.random.default_rng(0).random((3, 2))),
        },
        "numbers": [0.1, 1e-300, float("inf"), float("nan"), 2**70, -0.0, True, None, "ä\n\"'"],
        5: {(1, "x"): 1, None: 2, 2.5: [()]},
        "tensor": {"tensor": "not a tensor"},
        "empty": [{}, [], ()],
    }
    save_tree(tmp_path / "s.safetensors", tree)
    assert_same(load_tree(tmp_path / "s.safetensors"), tree)
    assert [p.name for p in tmp_path.iterdir()] == ["s.safetensors"]


def test_tied_weights_views_and_transposes_are_kept(tmp_path):
    x = torch.arange(12.0).reshape(3, 4)
    tree = {
        "a": x,
        "tied": x,
        "view": x[1:],
        "transposed": x.T,
        "stride": x[:, ::2],
        "parameter": torch.nn.Parameter(x),
    }
    save_tree(tmp_path / "s", tree)
    back = load_tree(tmp_path / "s")
    assert all(torch.equal(back[key], value) for key, value in tree.items())


def test_what_cannot_be_kept_is_refused_by_name(tmp_path):
    with pytest.raises(TypeError, match=r"state\.a\.0 is a set"):
        save_tree(tmp_path / "s", {"a": [{1, 2}]})
    assert not list(tmp_path.iterdir())


def test_training_continues_bit_for_bit(tmp_path):
    def parts():
        torch.manual_seed(0)
        model = torch.nn.Sequential(
            torch.nn.Linear(4, 8), torch.nn.Dropout(0.5), torch.nn.Linear(8, 1)
        )
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        return (
            model,
            optimizer,
            torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=20),
        )

    def train(model, optimizer, schedule, steps):
        for _ in range(steps):
            optimizer.zero_grad()
            model(torch.randn(16, 4)).square().mean().backward()
            optimizer.step()
            schedule.step()

    whole = parts()
    train(*whole, 6)
    saved = {"parts": [part.state_dict() for part in whole], "rng": torch.get_rng_state()}
    save_tree(tmp_path / "s", saved)
    train(*whole, 6)
    again = parts()
    torch.randn(3)
    kept = load_tree(tmp_path / "s")
    for part, content in zip(again, kept["parts"]):
        part.load_state_dict(content)
    torch.set_rng_state(kept["rng"])
    train(*again, 6)
    for a, b in zip(whole[0].parameters(), again[0].parameters()):
        assert torch.equal(a, b)


def test_a_damaged_state_ends_in_a_sentence(tmp_path):
    path = tmp_path / "s"
    with pytest.raises(UserError, match="is missing"):
        load_tree(path)
    save_tree(path, {"a": torch.randn(100)})
    content = path.read_bytes()
    for cut in (0, 4, 50, len(content) - 1):
        path.write_bytes(content[:cut])
        with pytest.raises(UserError, match="is damaged"):
            load_tree(path)
    from safetensors.torch import save_file

    save_file({"a": torch.ones(1)}, path)
    with pytest.raises(UserError, match="not the state of a run"):
        load_tree(path)


# -- disk ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOSPC, "disk is full"),
        (errno.EROFS, "read-only"),
        (errno.EACCES, "no permission"),
        (errno.EDQUOT, "quota"),
    ],
)
@pytest.mark.parametrize("what", ["text", "state", "log", "folder"])
def test_disk_trouble_is_a_sentence_and_spares_what_was_there(
    tmp_path, monkeypatch, number, words, what
):
    with Run.start(tmp_path / "run", CONFIG) as run:
        run.save_state({"a": torch.ones(2)})
        run.log(1, loss=0.5)
        with run.replace("model") as folder:
            (folder / "x").write_text("old")
        before = {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()}

        def fail(*_, **__):
            raise OSError(number, os.strerror(number))

        def fail_in_rust(*_, **__):
            raise state.SafetensorError(
                f"Error while serializing: I/O error: {os.strerror(number)} (os error {number})"
            )

        monkeypatch.setattr(files.os, "replace", fail)
        monkeypatch.setattr(state, "save_file", fail_in_rust)
        with pytest.raises(UserError, match=words) as caught:
            if what == "text":
                write_text(run.path("config.yaml"), "new")
            elif what == "state":
                run.save_state({"a": torch.zeros(2)})
            elif what == "log":
                monkeypatch.setattr(runs, "open", fail, raising=False)
                run.log(2, loss=0.4)
            else:
                with run.replace("model") as folder:
                    (folder / "x").write_text("new")
        assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)
        assert {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()} == before


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_truly_full_disk(tmp_path):
    with (
        pytest.raises(UserError, match="disk is full"),
        files.disk_errors_as_sentences("/dev/full"),
        open("/dev/full", "wb") as handle,
    ):
        handle.write(b"x" * 100_000)


def test_an_interrupted_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "f"
    write_text(path, "old")
    with pytest.raises(KeyboardInterrupt), replaced_file(path) as handle:
        handle.write(b"half of the n")
        raise KeyboardInterrupt
    assert path.read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["f"]
    before = identity(path)
    write_text(path, "newer")
    assert path.read_text() == "newer" and identity(path) != before


def test_a_folder_is_replaced_whole(tmp_path):
    for content in ("first", "second"):
        with replaced_folder(tmp_path / "model") as folder:
            (folder / content).write_text(content)
    assert [p.name for p in (tmp_path / "model").iterdir()] == ["second"]
    with pytest.raises(RuntimeError), replaced_folder(tmp_path / "model") as folder:
        (folder / "third").write_text("x")
        raise RuntimeError
    assert [p.name for p in (tmp_path / "model").iterdir()] == ["second"]
    os.replace(tmp_path / "model", tmp_path / ".model.before")  # killed between the two renames
    recover_folder(tmp_path / "model")
    assert [p.name for p in (tmp_path / "model").iterdir()] == ["second"]
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_stand_ins_are_refused(tmp_path):
    path = tmp_path / "data"
    path.symlink_to(tmp_path / "gone")
    with pytest.raises(UserError, match=r"is a link to .*gone, which does not exist; get it"):
        refuse_stand_in(path, "get it")


# -- run folders -----------------------------------------------------------------------------------


def test_a_run_is_started_read_and_finished(tmp_path):
    folder = tmp_path / "deep" / "run"
    with Run.start(folder, CONFIG, seeds={"order": 3}) as run:
        assert not run.finished and run.load_state() is None and run.metrics == []
        run.log(1, loss=torch.tensor(0.5))
        run.mark_finished({"best": 0.25})
    read = Run(folder)
    assert read.config == CONFIG and read.finished and read.summary == {"best": 0.25}
    assert read.require_finished() is read
    assert read.metrics == [{"step": 1, "loss": 0.5}]
    known = read.provenance
    assert known["seeds"] == {"order": 3} and known["config_hash"] == config_hash(CONFIG)
    (start,) = known["starts"]
    assert (
        start["versions"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
        and start["command"]
    )
    with pytest.raises(RuntimeError, match="opened for reading"):
        read.log(2)


def test_what_is_no_run_is_said(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        Run(tmp_path / "none")
    with pytest.raises(UserError, match=r"no config\.yaml"):
        Run(tmp_path)
    Run.start(tmp_path / "run", CONFIG).close()
    with pytest.raises(UserError, match="is not finished"):
        Run(tmp_path / "run").require_finished()
    (tmp_path / "run" / "config.yaml").write_text("a: [1")
    with pytest.raises(UserError, match="not valid YAML"):
        Run.start(tmp_path / "run", CONFIG)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="in the way"):
        Run.start(tmp_path / "file", CONFIG)


def test_other_settings_are_refused_and_named(tmp_path):
    with Run.start(tmp_path, CONFIG) as run:
        run.log(1, loss=1)
    other = {**CONFIG, "training": {"max_lr": 1e-3, "epochs": 5, "extra": 1}}
    with pytest.raises(
        UserError,
        match=r"training\.max_lr was 0\.0003, is now 0\.001; training\.extra was None, is now 1",
    ):
        Run.start(tmp_path, other)
    Run.start(tmp_path, CONFIG).close()  # a refusal keeps no lock
    with Run.start(tmp_path, other, may_change=["training"]) as run:
        assert run.config == other
    assert len(Run(tmp_path).provenance["starts"]) == 3
    with Run.start(tmp_path, {**other, "data": {"root": "x", "subjects": (1, 2)}}):
        pass  # a tuple is the list that YAML makes of it


def test_a_run_that_made_nothing_yet_takes_corrected_settings(tmp_path):
    Run.start(tmp_path, {"data": {"root": "wrong"}}).close()
    with Run.start(tmp_path, {"data": {"root": "right"}}) as run:
        assert run.config == {"data": {"root": "right"}}
        (run.path("reader")).mkdir()
    with pytest.raises(UserError, match=r"data\.root was 'right', is now 'other'"):
        Run.start(tmp_path, {"data": {"root": "other"}})


def test_hash_and_flat_names():
    assert (
        config_hash({"a": 1, "b": {"c": 2, "d": 3}})
        == config_hash({"b": {"d": 3, "c": 2}, "a": 1})
        != config_hash({"a": 1})
    )
    assert flat({"a": {"b": {"c": 1}}, "d": [1]}) == {"a.b.c": 1, "d": [1]}


def test_metrics_are_rewound_to_the_restored_step(tmp_path):
    with Run.start(tmp_path, CONFIG) as run:
        for step in range(1, 8):
            run.log(step, loss=1 / step)
        with open(run.path("metrics.jsonl"), "a") as handle:
            handle.write('{"step": 8, "lo')  # killed while writing
        assert len(run.metrics) == 7
        run.rewind_metrics(5)
        for step in (6, 7):
            run.log(step, loss=1 / step)
        assert run.metrics == [{"step": step, "loss": 1 / step} for step in range(1, 8)]


def test_left_overs_of_a_killed_process_are_removed(tmp_path):
    Run.start(tmp_path, CONFIG).close()
    (tmp_path / ".state.safetensors.tmp-999").write_text("half")
    (tmp_path / ".model.tmp-999").mkdir()
    (tmp_path / ".model.before").mkdir()
    (tmp_path / ".model.before" / "weights").write_text("kept")
    with Run.start(tmp_path, CONFIG):
        assert not list(tmp_path.glob(".*tmp*"))
        assert (tmp_path / "model" / "weights").read_text() == "kept"


WORKER = """
import sys, time
from braingen.runtime.run_folder import Run
with Run.start(sys.argv[1], {"a": 1}) as run:
    print("started", flush=True)
    step = (run.load_state() or {"step": 0})["step"]
    run.rewind_metrics(step)
    while step < 100000:
        step += 1
        run.log(step, loss=1 / step)
        if step % 7 == 0:
            run.save_state({"step": step})
"""


def start_worker(folder: Path) -> subprocess.Popen:
    environment = {
        **os.environ,
        "PYTHONPATH": str(Path(runs.__file__).parents[2]),
        "OMP_NUM_THREADS": "1",
    }
    worker = subprocess.Popen(
        [sys.executable, "-c", WORKER, str(folder)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,
    )
    assert worker.stdout is not None and worker.stdout.readline() == b"started\n"
    return worker


@pytest.mark.slow
def test_two_runs_in_a_folder_are_refused_and_a_killed_one_is_taken_over(tmp_path):
    rng = random.Random(0)
    for _ in range(3):
        worker = start_worker(tmp_path)
        try:
            with pytest.raises(UserError, match=f"in use by process {worker.pid} on"):
                Run.start(tmp_path, {"a": 1})
            time.sleep(rng.uniform(0.05, 0.4))
        finally:
            os.kill(worker.pid, signal.SIGKILL)
            worker.communicate()
        assert json.loads((tmp_path / ".lock").read_text())["pid"] == worker.pid
        with Run.start(tmp_path, {"a": 1}) as run:
            restored = run.load_state()
            steps = [record["step"] for record in run.metrics]
            assert steps == list(range(1, len(steps) + 1))
            assert restored is None or restored["step"] <= steps[-1]


def test_a_file_system_without_locks_goes_by_the_process(tmp_path, monkeypatch):
    Run.start(tmp_path, CONFIG).close()

    def no_locks(*_):
        raise OSError(errno.ENOLCK, "no locks")

    monkeypatch.setattr(locks.fcntl, "lockf", no_locks)
    host = locks.socket.gethostname()
    write_json(tmp_path / ".lock", {"pid": os.getppid(), "host": host})
    with pytest.raises(UserError, match=f"in use by process {os.getppid()}"):
        Run.start(tmp_path, CONFIG)
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    write_json(tmp_path / ".lock", {"pid": dead.pid, "host": host})
    Run.start(tmp_path, CONFIG).close()


def test_the_same_process_is_held_off_too(tmp_path):
    with (
        Run.start(tmp_path, CONFIG),
        pytest.raises(UserError, match="already open in this process"),
    ):
        Run.start(tmp_path, CONFIG)
    Run.start(tmp_path, CONFIG).close()


def test_a_lock_of_another_machine_is_respected_while_it_lives(tmp_path, monkeypatch):
    Run.start(tmp_path, CONFIG).close()
    lock = tmp_path / ".lock"
    write_json(lock, {"pid": 1, "host": "elsewhere", "job": "77"})
    with pytest.raises(UserError, match=r"process 1 on elsewhere .* remove"):
        Run.start(tmp_path, CONFIG)
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    Run.start(tmp_path, CONFIG).close()  # the same job, requeued on another node
    monkeypatch.delenv("SLURM_JOB_ID")
    write_json(lock, {"pid": 1, "host": "elsewhere", "job": None})
    os.utime(lock, (time.time() - 3600,) * 2)
    Run.start(tmp_path, CONFIG).close()


def test_reading_settings_loads_no_torch():
    code = "import sys; import braingen.runtime.run_folder; print('torch' in sys.modules)"
    environment = {**os.environ, "PYTHONPATH": str(Path(runs.__file__).parents[2])}
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True
    ).stdout
    assert out.strip() == "False"


def test_a_state_left_by_a_kill_after_the_mark_is_removed(tmp_path):
    config = load_config(None, {"run.device": "cpu", "run.folder": str(tmp_path)})
    workers = Workers(config)
    with shared_run(workers, tmp_path / "image", {"a": 1}, {"run": 0}) as run:
        run.save_state({"weight": torch.ones(2)})
        run.mark_finished({})
    assert (tmp_path / "image" / "state.safetensors").exists()
    with shared_run(workers, tmp_path / "image", {"a": 1}, {"run": 0}) as run:
        assert complete(workers, run, lambda: [])
    assert not (tmp_path / "image" / "state.safetensors").exists()
