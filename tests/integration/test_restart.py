"""Killed with SIGKILL in the middle of anything and started again, a run ends with the bytes of one
that was left in peace.
"""

from __future__ import annotations

import errno
import json
from pathlib import Path
import random
import shutil
import signal

from integration.killed_process import run
import numpy as np
import pytest
from unit.fake_backbone import write_fake_backbone

from braingen.cli import main
from braingen.runtime import state
from braingen.runtime.preemption import REQUEUE
from braingen.runtime.state import load_tree
from braingen.training import checkpoints

EPOCHS = 5
SMALL_DATA = [
    "simulation.num_sessions=2",
    "simulation.trials_per_session=60",
    "simulation.num_voxels=200",
    "simulation.num_test_images=6",
]
SMALL = [
    "encoder.hidden_dim=32",
    "encoder.n_blocks=1",
    "prior.depth=1",
    f"training.num_epochs={EPOCHS}",
    "training.batch_size=20",
]
SMALL += [
    "generation.steps=2",
    "generation.guidance_scale=2",
    "generation.batch_size=2",
    "evaluation.bootstrap=50",
    "evaluation.retrieval_draws=3",
]
SMALL += ["run.processes=1", "quickstart.steps=1"]
SMALL += [
    "generation.random_draws=2",
    "refinement.steps=4",
    "refinement.strength=0.5",
    "refinement.batch_size=2",
]
SMALL += [
    "finetune.max_train_steps=3",
    "finetune.train_batch_size=4",
    "finetune.gradient_accumulation_steps=2",
    "--validation_images",
    "4",
]
SMALL += [
    "finetune.lr_warmup_steps=0",
    "finetune.validation_steps=2",
    "run.device=cpu",
    *SMALL_DATA,
]
OF_THE_START = {"provenance.json", "timings.json", "finished", ".lock", "report.html"}
"""Hold times, and so differ between any two runs."""
MOST_STARTS = 60


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("restart") / "data"
    assert main(["simulate", "--root", str(folder), *SMALL_DATA]) == 0
    return folder


@pytest.fixture(scope="module")
def backbone(tmp_path_factory) -> Path:
    return write_fake_backbone(tmp_path_factory.mktemp("backbone") / "fake", with_clip=True)


@pytest.fixture
def words(data, backbone, tmp_path) -> list[str]:
    """Settings of a run in a folder of its own, with its own copy of the data, beside which frozen
    work is kept: none is done yet.
    """
    shutil.copytree(data, tmp_path / "now" / "data", ignore=shutil.ignore_patterns(".braingen"))
    return [
        "--folder",
        str(tmp_path / "now" / "run"),
        "--root",
        str(tmp_path / "now" / "data"),
        "--path",
        str(backbone),
        *SMALL,
    ]


def start_anew(folder: Path) -> Path:
    """Put what a run left in ``now`` aside, so that another run can be made in the very
    same place.
    """
    aside = (folder / "now").rename(folder / "before")
    shutil.copytree(
        aside / "data", folder / "now" / "data", ignore=shutil.ignore_patterns(".braingen")
    )
    return aside


def results(folder: Path) -> dict[str, bytes]:
    """Content of every result in a run folder, under its name."""
    files = [
        path
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in OF_THE_START
    ]
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in files
        if "tfevents" not in path.name
    }


def assert_same_results(one: Path, other: Path) -> None:
    ours, theirs = results(one), results(other)
    assert ours.keys() == theirs.keys()  # nothing is missing, nothing half written is left over
    assert [name for name in ours if ours[name] != theirs[name]] == []


@pytest.mark.long
def test_a_demo_killed_again_and_again_ends_like_an_uninterrupted_one(words, tmp_path):
    assert run(["demo", *words]) == 0
    calm, chance, killed = start_anew(tmp_path), random.Random(0), 0
    for _ in range(MOST_STARTS):
        code = run(["demo", *words], kill_at=chance.randint(1, 200))
        if code == 0:
            break
        assert (
            code == -signal.SIGKILL
        )  # every start before went on from where it was, none ended in an error
        killed += 1
    assert code == 0 and killed >= 3
    assert_same_results(tmp_path / "now" / "run", calm / "run")
    scores = json.loads((tmp_path / "now" / "run" / "scores.json").read_text())
    assert scores["retrieval_brain_to_image"]["n"] == 6
    tables = sorted((calm / "data" / ".braingen" / "targets").glob("*.rows.npy"))
    assert len(tables) == 2
    for table in tables:  # of the frozen embeddings, computed once in both
        again = np.load(tmp_path / "now" / "data" / ".braingen" / "targets" / table.name)
        np.testing.assert_array_equal(np.load(table), again)


@pytest.mark.long
@pytest.mark.parametrize(
    ("save_seconds", "kill_at"),
    [(0.0, [3, 9, 12]), (1e9, [18, 14])],
    ids=["saved every epoch", "never saved"],
)
def test_training_killed_after_an_epoch_was_logged_learns_and_logs_the_same(
    words, tmp_path, save_seconds, kill_at
):
    assert run(["train", "text", *words]) == 0
    calm = start_anew(tmp_path)
    folder = tmp_path / "now" / "run" / "text"
    for moment in kill_at:
        assert (
            run(["train", "text", *words], kill_at=moment, save_seconds=save_seconds)
            == -signal.SIGKILL
        )
    logged = [
        json.loads(line)["epoch"] for line in (folder / "metrics.jsonl").read_text().splitlines()
    ]
    assert logged[-1] >= 1 and not (folder / "finished").exists()
    assert (folder / "state.safetensors").exists() == (save_seconds == 0)
    assert run(["train", "text", *words], save_seconds=save_seconds) == 0
    assert_same_results(tmp_path / "now" / "run", calm / "run")
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [record["epoch"] for record in records] == list(range(1, EPOCHS + 1))


WITHIN = "run.save_minutes=1e-9"
"""Save after every update of the weights."""


@pytest.mark.long
@pytest.mark.parametrize(
    ("by", "code"),
    [(signal.SIGKILL, -signal.SIGKILL), (signal.SIGTERM, REQUEUE), (signal.SIGUSR1, REQUEUE)],
    ids=lambda x: str(int(x)),
)
def test_training_stopped_within_an_epoch_goes_on_there_with_the_same_bits(
    words, tmp_path, by, code
):
    """SIGTERM and Slurm's warning save before they end, so a single save within an epoch is enough
    there.
    """
    words = [*words, "training.gradient_accumulation_steps=2", "encoder.dropout=0.3"]
    assert run(["train", "image", *words]) == 0
    calm = start_anew(tmp_path)
    folder = tmp_path / "now" / "run" / "image"
    often = [WITHIN] if by == signal.SIGKILL else []
    for moment in (3, 3):  # an epoch has five passes, two to an update
        assert (
            run(
                ["train", "image", *words, *often],
                kill_at=moment,
                save_seconds=1e9,
                by=by,
                only="step",
            )
            == code
        )
        reached = load_tree(folder / "state.safetensors")
        assert reached["step"] > 0 and reached["sums"]["clip"] > 0
    assert run(["train", "image", *words]) == 0
    assert_same_results(tmp_path / "now" / "run", calm / "run")


@pytest.mark.long
@pytest.mark.parametrize(
    ("number", "sentence"),
    [(errno.ENOSPC, "the disk is full"), (errno.EROFS, "the file system is read-only")],
)
def test_disk_trouble_while_training_costs_the_time_since_the_last_save(
    words, tmp_path, monkeypatch, capsys, number, sentence
):
    assert main(["train", "text", *words]) == 0
    calm = start_anew(tmp_path)
    written = []

    def fails(tensors, path, metadata=None):
        written.append(path)
        if len(written) == 4:
            raise state.SafetensorError(f"Error while serializing: I/O error (os error {number})")
        return save_file(tensors, path, metadata=metadata)

    save_file = state.save_file
    monkeypatch.setattr(state, "save_file", fails)
    monkeypatch.setattr(checkpoints, "LEAST_PAUSE", 0)
    assert main(["train", "text", *words, WITHIN]) == 2
    said = capsys.readouterr().err
    assert (
        sentence in said
        and str(tmp_path / "now" / "run" / "text") in said
        and said.count("\n") == 1
    )
    folder = tmp_path / "now" / "run" / "text"
    assert load_tree(folder / "state.safetensors")["step"] == 3  # the one before is whole
    monkeypatch.setattr(state, "save_file", save_file)
    assert main(["train", "text", *words]) == 0
    assert_same_results(tmp_path / "now" / "run", calm / "run")
