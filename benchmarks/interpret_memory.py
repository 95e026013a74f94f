"""Memory of `braingen interpret` at NSD's number of voxels, by number of images.

    OMP_NUM_THREADS=1 python benchmarks/interpret_memory.py --folder /tmp/explain_memory

Simulates a subject with as many voxels as NSD's first (15 724) and as many test images (1000, seen
three times), trains a small image encoder on it for one epoch, and runs every step of `braingen
explain` on 100 and on 1000 images, each in a process of its own. Attributions are GradientSHAP's of
the whole decoder. A thread reads RssAnon, the memory that a process has for itself, every 5 ms:
pages of mapped files, which the system shares and drops as it likes, are not in it. What is told is
how far it rises, while the command reads its inputs and works, above where it was with everything
imported and the encoder loaded; and the size of the maps on disk. Glibc keeps freed pieces below 32
MB for later, and what it keeps differs from run to run; so everything is measured a second time
with pieces from 1 MB given back at once (MALLOC_MMAP_THRESHOLD_), which leaves what is in use.
Prints a Markdown table and writes JSON beside this file.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
from pathlib import Path
import shutil
import subprocess
import sys
import threading

import torch

from braingen.config import Config, load_config
from braingen.data import nsd
from braingen.encoders.trained import load_embedding_decoder
from braingen.interpret.run import STEPS, explain, folder_for
from braingen.runtime.data_layout import Layout
from braingen.simulation.dataset import simulate
from braingen.training.encoder import train

VOXELS, TEST_IMAGES = nsd.VOXELS[1], 1000
SIZES = {"hidden_dim": 128, "points": 64, "draws": 2}
GIVEN_BACK = {"MALLOC_MMAP_THRESHOLD_": str(1 << 20)}


def configuration(folder: Path, images: int = 0, step: str = "page") -> Config:
    """The demo's settings with a smaller encoder; results of every number of images lie apart."""
    settings = {
        "data.root": folder / "data",
        "run.folder": folder / str(images),
        "run.image": folder / "trained",
        "run.device": "cpu",
        "run.tracker": "none",
        "simulation.num_voxels": VOXELS,
        "simulation.num_test_images": TEST_IMAGES,
        "simulation.num_sessions": 11,
        "simulation.trials_per_session": 300,
        "encoder.hidden_dim": SIZES["hidden_dim"],
        "encoder.n_blocks": 1,
        "prior.depth": 1,
        "training.num_epochs": 1,
        "interpret.method": "gradient_shap",
        "interpret.points": SIZES["points"],
        "interpret.parts": "whole",
        "interpret.num_images": images,
        "interpret.steps": step,
        "interpret.draws": SIZES["draws"],
        "interpret.ablation_images": 0,
    }
    return load_config(Path("simulated"), {name: str(value) for name, value in settings.items()})


def own_memory() -> float:
    """RssAnon of this process in MB."""
    line = next(
        line
        for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
        if line.startswith("RssAnon")
    )
    return int(line.split()[1]) * 1024 / 1e6


def measure(config: Config) -> dict[str, float | str]:
    """One step, as the command runs it."""
    torch.set_num_threads(1)
    embedding_decoder = load_embedding_decoder(config, "image")
    with torch.no_grad():
        embedding_decoder(torch.zeros(1, VOXELS), 1)
    loaded = own_memory()
    del embedding_decoder
    gc.collect()
    peak, done = [0.0], threading.Event()

    def watch() -> None:
        while not done.wait(0.005):
            peak[0] = max(peak[0], own_memory())

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    explain(config)
    done.set()
    watcher.join()
    maps = sum(path.stat().st_size for path in folder_for(config).glob("subj01/maps/*.npy"))
    return {
        "step": config.interpret.steps[0],
        "images": config.interpret.num_images,
        "mb_encoder_loaded": round(loaded, 1),
        "mb_above_it": round(peak[0] - loaded, 1),
        "maps_mb_on_disk": round(maps / 1e6, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--folder",
        type=Path,
        required=True,
        help="for 0.8 GB of simulated data, encoder and maps; data are kept",
    )
    parser.add_argument("--images", type=int, nargs="*", default=[100, TEST_IMAGES])
    parser.add_argument(
        "--steps", nargs="*", choices=STEPS, default=[name for name in STEPS if name != "routers"]
    )
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(
            json.dumps(measure(configuration(options.folder, int(options.one[0]), options.one[1])))
        )
        return
    config = configuration(options.folder)
    if not Layout.of(config.data.root).captions().exists():
        simulate(config)
    train(config, "image")
    rows = []
    for step in options.steps:
        for images in options.images:
            call = [
                sys.executable,
                __file__,
                "--folder",
                str(options.folder),
                "--one",
                str(images),
                step,
            ]
            found = []
            for allocator in ({}, GIVEN_BACK):
                if step == "attributions":  # finished maps would not be made again
                    shutil.rmtree(
                        configuration(options.folder, images).run.folder, ignore_errors=True
                    )
                told = subprocess.run(
                    call,
                    stdout=subprocess.PIPE,
                    encoding="utf-8",
                    check=True,
                    env=os.environ | allocator,
                ).stdout
                found.append(json.loads(told.splitlines()[-1]))
            rows.append(found[0] | {"mb_above_it_freed_given_back": found[1]["mb_above_it"]})
            print(rows[-1], flush=True)
    about = {
        "voxels": VOXELS,
        **SIZES,
        "threads": 1,
        "load": [round(x, 1) for x in os.getloadavg()],
    }
    options.out.write_text(json.dumps({**about, "rows": rows}, indent=2) + "\n", encoding="utf-8")
    print("| " + " | ".join(rows[0]) + " |\n|" + " --- |" * len(rows[0]))
    for row in rows:
        print("| " + " | ".join(map(str, row.values())) + " |")


if __name__ == "__main__":
    main()
