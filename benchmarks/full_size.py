"""Every stage with models of the published structure and random weights, for one step.

    python benchmarks/full_size.py FOLDER                      # Stable Diffusion XL's sizes, bf16
    python benchmarks/full_size.py FOLDER --scale 0.2          # a fifth of the channels
    python benchmarks/full_size.py FOLDER --device cuda --dtype float16
    python benchmarks/full_size.py FOLDER --compare            # one step in each number format
    python benchmarks/full_size.py --operations                # counted; needs no weights

FOLDER is filled with the weights first (15 GB at full size; kept for the next time). Each stage
runs in a process of its own. Printed for each: seconds to load and of one step, the memory of its
own at the peak (on a CPU beyond what the libraries take, on a GPU what torch allocated), what it
maps from files, and what `braingen doctor` expects. Random weights draw noise: this measures sizes,
times and rounding, no quality.
"""

from __future__ import annotations

# isort: off
import braingen  # noqa: F401  - before diffusers: prepares torchvision on CPU-only machines

# isort: on
import argparse
import json
import math
from pathlib import Path
import subprocess
import sys
import threading
import time
from typing import Any

from full_size_stages import SIDE, SIZES, STAGES, Given, condition, noise, published
from full_size_weights import build
from safetensors.torch import load_file, save_file
import torch
from torch import Tensor

from braingen.diagnostics.hours import Load, hours, operations_of
from braingen.diagnostics.resources import encoder_parameters
from braingen.generation.sampling import predict, size_ids
from braingen.pretrained.sdxl import load_backbone

TRIALS, IMAGES, TEST_IMAGES = 30_000, 10_000, 1_000
"""Subject 1 of NSD: trials in 40 sessions, images, test images."""
GPUS = {"16 GB: T4": 65, "24 GB: RTX 4090": 165, "48 GB: RTX A6000": 155, "80 GB: A100": 312}
"""Peak of half-precision matrix products with float32 sums, in TFLOPS, by the vendor's data
sheets (dense).
"""
SHARE = 0.4
"""Of the peak, assumed."""


class Memory(threading.Thread):
    """Watches the memory of this process: its own, and what it maps from files.

    Parameters
    ----------
    device : torch.device
        On a GPU its own is what torch allocated there.
    """

    def __init__(self, device: torch.device) -> None:
        super().__init__(daemon=True)
        self.device, self.phase, self.mapped = device, "loading", 0
        self.before = self._read()[0]
        self.peaks = {"loading": 0, "a step": 0}
        self.start()

    @staticmethod
    def _read() -> tuple[int, int]:
        lines = dict(
            line.split(":", 1)
            for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
        )
        own, file = (int(lines[name].split()[0]) * 1024 for name in ("RssAnon", "RssFile"))
        return own, file

    def look(self) -> None:
        """Note the memory of this moment."""
        own, file = self._read()
        own -= self.before
        if self.device.type == "cuda":
            own = torch.cuda.max_memory_allocated(self.device)
        self.peaks[self.phase] = max(self.peaks[self.phase], own)
        self.mapped = max(self.mapped, file)

    def run(self) -> None:
        while True:
            self.look()
            time.sleep(0.01)


def run_stage(given: Given, name: str) -> dict[str, Any]:
    """Load a stage's models and run a step of it."""
    torch.manual_seed(0)
    memory, began = Memory(given.device), time.monotonic()
    stage = STAGES[name](given)
    memory.look()
    if given.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(given.device)
    loaded, worked, memory.phase = time.monotonic(), time.process_time(), "a step"
    stage.step()
    if given.device.type == "cuda":
        torch.cuda.synchronize()
    ended = time.monotonic()
    memory.look()
    return {
        "load_s": loaded - began,
        "step_s": ended - loaded,
        "step_processor_s": time.process_time() - worked,
        "own_gb": max(memory.peaks.values()) / 1e9,
        "highest": max(memory.peaks, key=lambda phase: memory.peaks[phase]),
        "mapped_gb": memory.mapped / 1e9,
        "expected_gb": stage.expected / 1e9,
    }


def prediction(given: Given, out: Path) -> None:
    """Save what one call of the U-Net predicts, and the seconds it took."""
    unet = load_backbone(str(given.folder), dtype=given.dtype, with_vae=False).unet.to(given.device)
    noisy = noise(given.device)
    began = time.monotonic()
    with torch.no_grad():
        found = predict(
            unet, noisy, torch.tensor(500), condition(unet), size_ids(SIDE, 1, noisy)
        ).cpu()
    seconds = torch.tensor(time.monotonic() - began)
    save_file({"prediction": found.float(), "seconds": seconds}, out)


def compare(given: Given, formats: list[str]) -> None:
    """One step of the full-size U-Net in each number format, against float32."""
    print("| format | a pass, s | PSNR of the prediction, dB | cosine |")
    print("| --- | ---: | ---: | ---: |")
    exact: Tensor | None = None
    for name in formats:
        out = given.folder / f"prediction_{name}.safetensors"
        if not out.exists():
            started([str(given.folder), "--only", "prediction", "--dtype", name], given.device)
        saved = load_file(out)
        found = saved["prediction"].double()
        exact = found if exact is None else exact
        error = (found - exact).square().mean().item()
        peak = (exact.max() - exact.min()).item()
        psnr = 10 * math.log10(peak**2 / error) if error else math.inf
        cosine = torch.cosine_similarity(found.flatten(), exact.flatten(), dim=0).item()
        print(f"| {name} | {saved['seconds'].item():.1f} | {psnr:.1f} | {cosine:.6f} |", flush=True)


def started(words: list[str], device: torch.device) -> str | None:
    """The last line of this script started with other words; None where it failed."""
    done = subprocess.run(
        [sys.executable, __file__, *words, "--device", device.type],
        stdout=subprocess.PIPE,
        encoding="utf-8",
        check=False,
    )
    return None if done.returncode else (done.stdout.strip().splitlines() or [""])[-1]


def print_operations() -> None:
    """Operations of every stage of nsd_subj01, and hours: estimates."""
    config = published()
    parameters = sum(encoder_parameters(config, SIZES, name) for name in ("image", "text"))
    found = operations_of(config, Load(IMAGES, TRIALS, TEST_IMAGES, parameters))
    print(f"| stage | operations |{''.join(f' {name}, h |' for name in GPUS)}")
    print(f"| --- | ---: |{' ---: |' * len(GPUS)}")
    for stage, count in found.items():
        row = "".join(f" {hours(count, peak, SHARE):.2g} |" for peak in GPUS.values())
        print(f"| {stage} | {count:.1e} |{row}")


def main() -> None:
    """Build, run every stage in a process of its own, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--scale", type=float, default=1.0, help="of the U-Nets' channels")
    parser.add_argument("--dtype", choices=["bfloat16", "float16", "float32"], default="bfloat16")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--stages", nargs="+", choices=list(STAGES), default=list(STAGES))
    parser.add_argument("--compare", action="store_true")
    parser.add_argument("--formats", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--operations", action="store_true")
    parser.add_argument("--only", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.operations:
        print_operations()
        return
    if asked.folder is None:
        parser.error("name a folder for the weights, or --operations")
    if asked.device == "cuda" and not torch.cuda.is_available():
        parser.error("torch sees no GPU here")
    given = Given(asked.folder, getattr(torch, asked.dtype), torch.device(asked.device))
    if asked.only == "prediction":
        prediction(given, given.folder / f"prediction_{asked.dtype}.safetensors")
        return
    if asked.only:
        print(json.dumps(run_stage(given, asked.only)))
        return
    build(asked.folder, asked.scale)
    if asked.compare:
        compare(given, asked.formats)
        return
    columns = ["loading, s", "a step, s", "own memory, GB", "highest in", "mapped, GB"]
    print("| stage |", " | ".join([*columns, "expected, GB", "own / expected"]), "|")
    print("| --- |" + " ---: |" * 7)
    for name in asked.stages:
        line = started([str(asked.folder), "--only", name, "--dtype", asked.dtype], given.device)
        if line is None:
            print(f"| {name} | failed | | | | | | |", flush=True)
            continue
        found = json.loads(line)
        print(
            f"| {name} | {found['load_s']:.0f} | {found['step_s']:.1f} | {found['own_gb']:.2f}"
            f" | {found['highest']} | {found['mapped_gb']:.2f} | {found['expected_gb']:.2f}"
            f" | {found['own_gb'] / found['expected_gb']:.2f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
