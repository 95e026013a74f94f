"""Through a launcher as people use it: several processes make what one makes. Minutes on a busy
machine, so not part of the ordinary run:

    python -m pytest tests/slow/test_launched.py

``accelerate launch`` starts several processes on GPUs; on a CPU it wants MPI and else quietly
starts one, so the launcher here is torch's, which tells processes of each other in the same way.
"""

from __future__ import annotations

import os
from pathlib import Path
import shutil
import socket
import subprocess
import sys

from integration.test_drawing import SMALL, differ, pictures
import numpy as np
import pytest
import torch
from unit.fake_backbone import write_fake_backbone
from unit.fake_nsd import write_fake_nsd

from braingen.cli import main


@pytest.fixture
def words(tmp_path) -> list[str]:
    backbone = write_fake_backbone(tmp_path / "backbone", with_clip=True)
    words = [
        "--folder",
        str(tmp_path / "run"),
        "--root",
        str(tmp_path / "data"),
        "--path",
        str(backbone),
        *SMALL,
    ]
    for command in (["simulate"], ["train", "image"], ["train", "text"]):
        assert main([*command, *words]) == 0
    return words


def launched(words: list[str], processes: int) -> None:
    """Run a command as people do it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launcher = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc-per-node",
        str(processes),
        "--master-port",
        str(port),
    ]
    told = {
        "OMP_NUM_THREADS": str(torch.get_num_threads()),
        "PYTHONPATH": os.pathsep.join(sys.path),
        "ACCELERATE_USE_CPU": "true",
    }
    environment = os.environ | told
    done = subprocess.run(
        [*launcher, "-m", "braingen.cli", *words],
        env=environment,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_launched_processes_draw_and_refine_what_one_does(words):
    reconstructions = Path(words[1]) / "reconstructions"
    more = ["refinement.steps=4", "refinement.strength=0.5", "refinement.batch_size=2"]
    assert main(["reconstruct", *words]) == 0 and main(["refine", *words, *more]) == 0
    alone = {name: pictures(reconstructions / name) for name in ("brain", "brain_refined")}
    shutil.rmtree(reconstructions)
    launched(["reconstruct", *words], 2)
    launched(["refine", *words, *more], 2)
    for name, expected in alone.items():
        assert differ(expected, pictures(reconstructions / name)) == 0


def test_launched_processes_fill_the_tables_one_does(tmp_path):
    backbone = write_fake_backbone(tmp_path / "backbone", with_clip=True)
    tables = {}
    for processes in (1, 2):
        layout, _ = write_fake_nsd(tmp_path / f"NSD{processes}", subjects=[1], images=40)
        words = [
            "precompute",
            f"backbone.path={backbone}",
            f"data.root={layout.root}",
            "run.device=cpu",
            "finetune.resolution=16",
        ]
        launched([*words, "precompute.batch_size=8"], processes)
        tables[processes] = {
            path.name: np.load(path) for path in sorted(layout.cache().rglob("*.npy"))
        }
        before = {path: path.stat().st_mtime_ns for path in layout.cache().rglob("*.npy")}
        assert main(words) == 0
        assert {
            path: path.stat().st_mtime_ns for path in layout.cache().rglob("*.npy")
        } == before  # nothing was missing
    assert len(tables[1]) == 6 and tables[1].keys() == tables[2].keys()
    for name, table in tables[1].items():
        np.testing.assert_allclose(
            tables[2][name], table, rtol=1e-4, atol=1e-4 if table.dtype == np.float32 else 4e-3
        )
