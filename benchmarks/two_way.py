"""Two-way identification against the published way, ``numpy.corrcoef`` over both stacks: seconds,
processor seconds and peak memory.

    python benchmarks/two_way.py                          1000 x 139 968 features, as measured for
                                                          the published code
    python benchmarks/two_way.py --images 300 --threads 1

Each way runs in a process of its own on the same seeded features (the second set is a noisy copy of
the first; ``--noise`` says how noisy: 1 is a good reconstruction, 300 is chance). "memory" is the
process's peak above what it held with the libraries loaded and the inputs made. On a busy machine
wall time says little; processor seconds on one thread are then the fairer ratio.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
import resource
import subprocess
import sys
import time
from typing import Any

WAYS = ("published", "braingen", "braingen float32")


def one(way: str, images: int, features: int, noise: float, threads: int) -> dict[str, float]:
    """Run one way in this process."""
    import numpy as np
    import torch

    import braingen  # noqa: F401
    from braingen.evaluation import identification as identify

    torch.set_num_threads(threads)
    generator = np.random.default_rng(0)
    truth = generator.standard_normal((images, features), dtype=np.float32)
    recons = generator.standard_normal((images, features), dtype=np.float32)
    recons *= noise
    recons += truth
    identify.two_way(
        truth[:64, :4096], recons[:64, :4096], "int8"
    )  # libraries load their kernels at the first use
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    wall, processor = time.perf_counter(), time.process_time()
    if way == "published":
        r = np.corrcoef(truth, recons)[:images, images:]
        value = float((r < np.diag(r)).sum() / (images * (images - 1)))
    else:
        value = identify.two_way(
            truth, recons, "float32" if way.endswith("float32") else None
        ).value
    wall, processor = time.perf_counter() - wall, time.process_time() - processor
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "value": value,
        "seconds": wall,
        "processor_seconds": processor,
        "memory_mb": (peak - before) / 1024,
        "peak_mb": peak / 1024,
    }


def main() -> None:
    """Run every way, print the table and write the JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--features", type=int, default=192 * 27 * 27)
    parser.add_argument("--noise", type=float, default=1.0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/two_way.json"))
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.way:
        print(
            json.dumps(
                one(options.way, options.images, options.features, options.noise, options.threads)
            )
        )
        return
    import os

    environment = os.environ | {
        f"{library}_NUM_THREADS": str(options.threads) for library in ("OMP", "OPENBLAS", "MKL")
    }
    results: dict[str, Any] = {
        "images": options.images,
        "features": options.features,
        "noise": options.noise,
        "threads": options.threads,
    }
    for way in WAYS:
        done = subprocess.run(
            [sys.executable, __file__, *sys.argv[1:], "--way", way],
            env=environment,
            stdout=subprocess.PIPE,
            check=True,
        )
        results[way] = json.loads(done.stdout)
    print(f"{options.images} x {options.features} float32 features, {options.threads} threads")
    print(
        f"{'way':18} {'score':>8} {'seconds':>9} {'cpu s':>8} {'ratio':>7} {'cpu ratio':>9}"
        f" {'memory MB':>10}"
    )
    base = results["published"]
    for way in WAYS:
        row = results[way]
        ratios = (
            base["seconds"] / row["seconds"],
            base["processor_seconds"] / row["processor_seconds"],
        )
        print(
            f"{way:18} {row['value']:8.5f} {row['seconds']:9.2f} {row['processor_seconds']:8.2f}"
            f" {ratios[0]:7.1f} {ratios[1]:9.1f} {row['memory_mb']:10.0f}"
        )
    options.out.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
