"""Training on data of NSD's full size: memory, trials per second and waiting for data, by number of
sessions.

    python benchmarks/full_size_data.py --folder /tmp/full_size --sessions 1,10,40 --steps 100

Writes a subject of NSD's size (30 000 trials x 15 724 voxels of noise, float32: 1.9 GB; 40 tars; 10
000 black pictures in a sparse file; random CLIP targets in the cache), then trains the image
encoder on it in a fresh process per number of sessions: checks, targets, batches and steps of
`braingen train image`, a few steps instead of epochs. RssAnon is the memory that a process has for
itself: pages of mapped files, which the system shares and drops as it likes, are not in it. Prints
a Markdown table and writes JSON beside this file.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
import subprocess
import sys
import threading
import time

import numpy as np
import torch

from braingen.config import Config, load_config
from braingen.data import nsd
from braingen.data.large_files import publish, reserve_hdf5
from braingen.data.tars import write_tar
from braingen.data.volumes import write_regions
from braingen.runtime.data_layout import Layout
from braingen.targets.tables import Targets
from braingen.training.encoder import optimizer_of, setup, step

SUBJECT, SESSIONS, IMAGES, TEST_IMAGES = 1, 40, 10000, 1000
TRIALS, VOXELS = SESSIONS * nsd.TRIALS_PER_SESSION, nsd.VOXELS[SUBJECT]
PUBLISHED_GB = {"images": 30000 * 3 * 224**2 * 4 / 1e9, "betas": TRIALS * VOXELS * 4 / 1e9}
"""What the published training scripts hold: every trial's picture and all betas as float32 in
memory (arithmetic, not measured).
"""


def configuration(root: Path, sessions: int) -> Config:
    settings = {
        "data.root": str(root),
        "data.num_sessions": str(sessions),
        "encoder.hidden_dim": "256",
        "run.device": "cpu",
    }
    return load_config(None, settings)


def write_data(root: Path) -> None:
    """The folder, unless it is there."""
    layout = Layout.of(root)
    if layout.captions().exists():
        return
    rng = np.random.default_rng(0)
    betas = reserve_hdf5(root / "betas.part", nsd.BETAS_DATASET, (TRIALS, VOXELS), "float32", {})
    out = betas.map(writable=True)
    for first in range(0, TRIALS, nsd.TRIALS_PER_SESSION):
        out[first : first + nsd.TRIALS_PER_SESSION] = rng.standard_normal(
            (nsd.TRIALS_PER_SESSION, VOXELS), dtype=np.float32
        )
    out.flush()
    publish(betas.path, layout.betas(SUBJECT))
    publish(
        reserve_hdf5(
            root / "images.part", nsd.IMAGES_DATASET, (IMAGES, 3, 224, 224), "float16", {}
        ).path,
        layout.images(),
    )
    column = {name: index for index, name in enumerate(nsd.BEHAV_COLUMNS)}
    behav = np.full((TRIALS, len(column)), -1.0)
    trial = np.arange(TRIALS)
    behav[:, column["image"]] = rng.permutation(np.repeat(np.arange(IMAGES), nsd.PRESENTATIONS))
    behav[:, column["subject"]] = SUBJECT
    behav[:, column["session"]] = trial // nsd.TRIALS_PER_SESSION + 1
    behav[:, column["global_trial"]] = trial
    testing = behav[:, column["image"]] < TEST_IMAGES
    for session in range(SESSIONS):
        write_tar(
            layout.wds_train(SUBJECT, session),
            behav,
            trial[(trial // nsd.TRIALS_PER_SESSION == session) & ~testing],
        )
    write_tar(layout.wds_test(SUBJECT), behav, trial[testing])
    write_regions(layout, {SUBJECT: {"nsd_general": np.ones(VOXELS, dtype=bool)}})
    layout.captions().write_text(
        json.dumps({str(image): ["a black picture"] for image in range(IMAGES)}), encoding="utf-8"
    )
    targets = Targets(configuration(root, 0))
    cache, ids = targets.image_cache(), np.arange(IMAGES)
    width = targets.image_encoder.clip_emb_dim
    cache.compute = lambda images: torch.randn(len(images), 1, width)
    cache.fill(ids, targets.stimuli.digests(ids), batch=1000)


def own_memory() -> int:
    """RssAnon of this process in bytes."""
    line = next(
        line
        for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
        if line.startswith("RssAnon")
    )
    return int(line.split()[1]) * 1024


def measure(root: Path, sessions: int, steps: int) -> dict[str, float]:
    """Set up a training run and take some steps of it."""
    torch.set_num_threads(1)
    peak, done = [own_memory()], threading.Event()

    def watch() -> None:
        while not done.wait(0.02):
            peak[0] = max(peak[0], own_memory())

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    config = configuration(root, sessions)
    imported = own_memory()
    started = time.perf_counter()
    parts = setup(config, "image")
    seconds_setup = time.perf_counter() - started
    optimizer = optimizer_of(parts.embedding_decoder, config)
    generator = torch.Generator().manual_seed(0)
    batches, waited, trials = parts.batches.epoch(0), 0.0, 0
    for number in range(min(steps, parts.batches.steps)):
        if number == 3:  # the first steps fill the optimizer's state
            began, processor, waited, trials = time.perf_counter(), time.process_time(), 0.0, 0
        asked = time.perf_counter()
        batch = next(batches)
        waited += time.perf_counter() - asked
        optimizer.zero_grad(set_to_none=True)
        step(parts.embedding_decoder, batch, parts, 0.5, generator).total.backward()
        optimizer.step()
        trials += sum(len(part.voxels_BV) for part in batch)
    seconds, processor = time.perf_counter() - began, time.process_time() - processor
    batches.close()  # type: ignore[attr-defined]
    done.set()
    watcher.join()
    return {
        "sessions": sessions,
        "trials": int(parts.batches.trials_per_epoch),
        "parameters_millions": round(
            sum(p.numel() for p in parts.embedding_decoder.parameters()) / 1e6, 1
        ),
        "setup_seconds": round(seconds_setup, 1),
        "anonymous_gb_before_setup": round(imported / 1e9, 3),
        "anonymous_gb_peak": round(peak[0] / 1e9, 3),
        "trials_per_second": round(trials / seconds, 1),
        "trials_per_processor_second": round(trials / processor, 1),
        "milliseconds_waiting_per_step": round(
            1000 * waited / (trials / config.training.batch_size), 3
        ),
        "share_of_time_waiting_for_data": round(waited / seconds, 4),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--folder",
        type=Path,
        required=True,
        help="for 2.5 GB of made-up data; kept, so that a second call is quick",
    )
    parser.add_argument("--sessions", default="1,10,40")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one is not None:
        print(json.dumps(measure(options.folder, options.one, options.steps)))
        return
    options.folder.mkdir(parents=True, exist_ok=True)
    write_data(options.folder)
    rows = []
    for sessions in options.sessions.split(","):
        call = [
            sys.executable,
            __file__,
            "--folder",
            str(options.folder),
            "--steps",
            str(options.steps),
            "--one",
            sessions,
        ]
        rows.append(
            json.loads(
                subprocess.run(
                    call, capture_output=True, encoding="utf-8", check=True
                ).stdout.splitlines()[-1]
            )
        )
    size = {
        "voxels": VOXELS,
        "trials": TRIALS,
        "hidden_dim": 256,
        "threads": 1,
        "load": [round(x, 1) for x in os.getloadavg()],
    }
    options.out.write_text(
        json.dumps({**size, "published_way_gb_by_arithmetic": PUBLISHED_GB, "rows": rows}, indent=2)
        + "\n",
        encoding="utf-8",
    )
    print("| " + " | ".join(rows[0]) + " |\n|" + " --- |" * len(rows[0]))
    for row in rows:
        print("| " + " | ".join(map(str, row.values())) + " |")


if __name__ == "__main__":
    main()
