"""Time and memory of an encoding model at NSD's full size, on random numbers.

    python benchmarks/encoding_full_size.py

27 000 trials of 9 000 images, 15 724 voxels, bands of 1 280 and 2 000 features; decoding of 1 000
responses among a library of 4 000 pictures. The candidates of the bands' scales take most of the
time, in equal parts, so that a few are enough to say how long many take.
"""

from __future__ import annotations

import argparse
from pathlib import Path
import resource
import time

import numpy as np
import torch

from braingen.encoding_model.banded_ridge import candidate_scales
from braingen.encoding_model.library import Library
from braingen.encoding_model.model import EncodingModel
from braingen.encoding_model.responses import average_rows
from braingen.runtime.files import write_json

BANDS = {"embedding": 1280, "others": 2000}


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=9000)
    parser.add_argument("--voxels", type=int, default=15_724)
    parser.add_argument("--candidates", type=int, default=4)
    parser.add_argument("--library", type=int, default=4000)
    parser.add_argument(
        "--json", type=Path, default=Path("runs/benchmarks/encoding_full_size.json")
    )
    chosen = parser.parse_args()
    random = np.random.default_rng(0)
    found: dict[str, float] = {"threads": torch.get_num_threads()}
    started = time.monotonic()

    def lap(name: str) -> None:
        nonlocal started
        now = time.monotonic()
        found[f"{name}_seconds"] = round(now - started, 1)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        found[f"{name}_peak_gib"] = round(peak, 2)
        print(f"{name}: {now - started:.1f} s, peak so far {peak:.2f} GiB", flush=True)
        started = time.monotonic()

    def pictures(count: int) -> dict[str, np.ndarray]:
        return {
            name: random.standard_normal((count, width), dtype=np.float32)
            for name, width in BANDS.items()
        }

    features = pictures(chosen.images)
    inverse = np.tile(np.arange(chosen.images), 3)
    lap("features_made")
    responses = average_rows(
        lambda part: random.standard_normal((len(inverse[part]), chosen.voxels), dtype=np.float32),
        np.arange(chosen.images),
        inverse,
        np.full(chosen.images, 3),
    )
    lap("average")
    scales = candidate_scales(len(BANDS), 16, 0)[: chosen.candidates]
    ends: list[float] = []
    model = EncodingModel.fit(
        features, responses, scales, on_candidate=lambda: ends.append(time.monotonic())
    )
    found["seconds_per_candidate"] = round(float(np.mean(np.diff(ends))), 1)
    found["seconds_before_and_first_candidate"] = round(ends[0] - started, 1)
    lap("fit")
    shown = pictures(chosen.library)
    embedding = shown["embedding"]
    library = Library(embedding, model.predict(shown))
    lap("predict")
    model.decode(random.standard_normal((1000, chosen.voxels), dtype=np.float32), library)
    lap("decode")
    print(found)
    write_json(chosen.json, found)


if __name__ == "__main__":
    main()
