"""SIGKILL at 50 random moments over all stages: every start goes on, nothing is lost, and the
results are those of a run left in peace.

Half of the kills come at a moment of the work (tests/integration/killed_process.py counts them),
half at a moment of the clock, whatever is going on then. Rounds through all stages go on until
there were that many. Not part of continuous integration, for its time (a quarter of an hour and
more):

    python -m pytest tests/slow/test_fifty_kills.py
"""

from __future__ import annotations

import os
from pathlib import Path
import random
import shutil
import signal
import subprocess
import sys
import time

from integration.killed_process import run
from integration.test_restart import SMALL, SMALL_DATA, assert_same_results, start_anew
import pytest
from unit.fake_backbone import write_fake_backbone

from braingen.cli import main

KILLS = 50
WITHIN = ["run.save_minutes=1e-9", "run.tracker=none"]
ADAPT = [
    "--pretrain_on",
    "1",
    "adaptation_curve.sessions=1",
    "adaptation_curve.seeds=0",
    "--subj",
    "2",
]
STAGES = [["demo"], ["adaptation-curve", *ADAPT], ["bottleneck", "--bottleneck_dims", "16"]]


def at_a_moment_of_the_clock(words: list[str], seconds: float) -> int:
    """Start a command as people do, and kill it after some seconds."""
    process = subprocess.Popen(
        [sys.executable, "-m", "braingen.cli", *words],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    try:
        _, said = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
        return -signal.SIGKILL
    assert process.returncode == 0, said.decode()
    return 0


@pytest.fixture
def words(tmp_path) -> list[str]:
    backbone = write_fake_backbone(tmp_path / "fake", with_clip=True)
    small = [word for word in SMALL if word not in SMALL_DATA]
    data = [*SMALL_DATA, "simulation.num_subjects=2"]
    assert main(["simulate", "--root", str(tmp_path / "now" / "data"), *data]) == 0
    now = tmp_path / "now"
    return [
        "--folder",
        str(now / "run"),
        "--root",
        str(now / "data"),
        "--path",
        str(backbone),
        *small,
        *data,
        *WITHIN,
    ]


def test_fifty_kills(words, tmp_path):
    began = time.monotonic()
    for name, *more in STAGES:
        assert main([name, *words, *more]) == 0
    calm_seconds = (time.monotonic() - began) / len(STAGES)
    calm = start_anew(tmp_path)
    chance, killed, rounds = random.Random(5), dict.fromkeys((name for name, *_ in STAGES), 0), 0
    while sum(killed.values()) < KILLS or not all(
        killed.values()
    ):  # all stages from the beginning, until that many kills
        rounds += 1
        for name, *more in STAGES:
            code = -signal.SIGKILL
            while code != 0:
                if chance.random() < 0.5:
                    code = run([name, *words, *more], kill_at=chance.randint(1, 25))
                else:
                    code = at_a_moment_of_the_clock(
                        [name, *words, *more], chance.uniform(2, 2 + calm_seconds)
                    )
                assert code in (0, -signal.SIGKILL)
                killed[name] += code != 0
        assert_same_results(tmp_path / "now" / "run", calm / "run")
        assert not list((tmp_path / "now").rglob(".*.tmp-*"))
        shutil.rmtree(tmp_path / "now")
        shutil.copytree(
            calm / "data", tmp_path / "now" / "data", ignore=shutil.ignore_patterns(".braingen")
        )
    print(f"{killed} kills in {rounds} rounds")


def test_simulating_is_killed_too(tmp_path):
    """Data are written in pieces; a piece is whole or not there."""
    size = [
        "simulation.num_sessions=2",
        "simulation.trials_per_session=60",
        "simulation.num_voxels=200",
        "simulation.num_test_images=6",
    ]
    assert main(["simulate", "--root", str(tmp_path / "calm"), *size]) == 0
    chance, killed = random.Random(6), 0
    words = ["simulate", "--root", str(tmp_path / "killed"), *size]
    while killed < 5:
        while run(words, kill_at=chance.randint(1, 120)) != 0:
            killed += 1
        for file in sorted(
            path
            for path in (tmp_path / "calm").rglob("*")
            if path.is_file() and path.suffix in (".tar", ".hdf5", ".json")
        ):
            other = tmp_path / "killed" / file.relative_to(tmp_path / "calm")
            assert other.stat().st_size == file.stat().st_size
            if file.suffix != ".hdf5":  # HDF5 notes when it was written
                assert Path(other).read_bytes() == file.read_bytes()
        shutil.rmtree(tmp_path / "killed")
