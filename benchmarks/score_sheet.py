"""The whole sheet with random-weight networks of the published sizes: seconds and peak memory of
every part, for N images.

    python benchmarks/score_sheet.py                              1000 images
    python benchmarks/score_sheet.py --images 100 --threads 1     and the seconds of 1000 by
                                                                      proportion

Weights are random, so nothing here is a score and no value is printed. Pictures are seeded noise,
smooth enough to be pictures. Every part runs in a process of its own, so that its peak memory is
its own; "anonymous" is memory that cannot be dropped, without the mapped feature files. DreamSim is
left out: its package builds it from its weight files only.
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
from typing import Any

PIXELS, DECODER = "pixels", "decoder"


def _anonymous_mb() -> float:
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) / 1024
    return float("nan")


class _Peak:
    """Highest anonymous memory while something runs, looked at every 20 ms."""

    def __enter__(self) -> _Peak:
        self.base = self.highest = _anonymous_mb()
        self._over = threading.Event()
        self._watch = threading.Thread(target=self._look, daemon=True)
        self._watch.start()
        return self

    def _look(self) -> None:
        while not self._over.wait(0.02):
            self.highest = max(self.highest, _anonymous_mb())

    def __exit__(self, *exception: object) -> None:
        self._over.set()
        self._watch.join()


class _Noise:
    """Seeded smooth pictures, made when they are read."""

    def __init__(self, images: int, seed: int, side: int = 256) -> None:
        self._images, self._seed, self._side = images, seed, side

    def __len__(self) -> int:
        return self._images

    def __getitem__(self, row: int) -> Any:
        import torch
        from torch.nn.functional import interpolate

        small = torch.rand(
            1, 3, 16, 16, generator=torch.Generator().manual_seed(self._seed * 1_000_003 + row)
        )
        return interpolate(small, size=(self._side, self._side), mode="bilinear")[0].numpy()


def one(part: str, images: int, batch: int, threads: int) -> dict[str, float]:
    """Run one part of the sheet in this process."""
    import numpy as np
    import torch

    import braingen  # noqa: F401
    from braingen.evaluation import decoding, features, pixel, uncertainty
    from braingen.evaluation import identification as identify
    from braingen.evaluation.feature_store import FeatureStore, as_scored
    from braingen.evaluation.image_pairs import match

    torch.set_num_threads(threads)
    ids = np.arange(images)
    pairs = match(_Noise(images, 0), ids, _Noise(images, 1), ids)
    generator = np.random.default_rng(0)
    embeddings = (
        generator.standard_normal((2, images, 1280), dtype=np.float32)
        if part == DECODER
        else np.empty(0)
    )
    network = None if part in (PIXELS, DECODER) else features.build(part)
    with _Peak() as peak, FeatureStore(batch=batch) as store:
        wall, processor = time.perf_counter(), time.process_time()
        if part == PIXELS:
            for values in pixel.all_scores(pairs.truth, pairs.recons).values():
                uncertainty.mean_interval(values)
        elif part == DECODER:
            decoding.decoder_scores(*embeddings, ids)
        elif network is not None and network.use == "pair":
            for start in range(0, images, batch):
                network.distance(
                    *(
                        as_scored(side, slice(start, start + batch))
                        for side in (pairs.truth, pairs.recons)
                    )
                )
        elif network is not None:
            truth, recons = (
                store.features(network, pairs.truth),
                store.features(network, pairs.recons),
            )
            if network.use == "distance":
                identify.correlation_distance(truth, recons)
            else:
                uncertainty.two_way_interval(identify.two_way(truth, recons).beats_NN)
        wall, processor = time.perf_counter() - wall, time.process_time() - processor
    return {
        "seconds": wall,
        "processor_seconds": processor,
        "memory_mb": peak.highest - peak.base,
        "anonymous_mb": peak.highest,
    }


def main() -> None:
    """Run every part, print the table and write the JSON."""
    from braingen.evaluation import features

    parts = [PIXELS, *(name for name in features.recipes() if name != "dreamsim"), DECODER]
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/score_sheet.json"))
    parser.add_argument("--part", choices=parts, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part:
        print(json.dumps(one(options.part, options.images, options.batch, options.threads)))
        return
    environment = os.environ | {
        f"{library}_NUM_THREADS": str(options.threads) for library in ("OMP", "OPENBLAS", "MKL")
    }
    results: dict[str, Any] = {
        "images": options.images,
        "batch": options.batch,
        "threads": options.threads,
    }
    print(
        f"{options.images} images, batch {options.batch}, {options.threads} threads; random"
        " weights, so no values"
    )
    print(
        f"{'part':12} {'seconds':>9} {'cpu s':>9} {'cpu s/1000':>11} {'memory MB':>10}"
        f" {'anonymous MB':>13}"
    )
    for part in parts:
        done = subprocess.run(
            [sys.executable, __file__, *sys.argv[1:], "--part", part],
            env=environment,
            stdout=subprocess.PIPE,
            check=True,
        )
        row = results[part] = json.loads(done.stdout)
        scaled = row["processor_seconds"] * 1000 / options.images
        print(
            f"{part:12} {row['seconds']:9.1f} {row['processor_seconds']:9.1f} {scaled:11.0f}"
            f" {row['memory_mb']:10.0f} {row['anonymous_mb']:13.0f}",
            flush=True,
        )
    options.out.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
