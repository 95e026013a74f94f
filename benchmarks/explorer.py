"""Times of the explorer on the shipped decoder: to first paint, and per redraw.

``python benchmarks/explorer.py [--threads N]``; needs Chromium for the paint. A redraw is the time
from a request to its whole answer: an image along denoising time, a level alone, an ablation, a
spread, a map. Processor time is that of this process, server included; on a machine without other
work and with one thread the two are alike.
"""

from __future__ import annotations

import argparse
from pathlib import Path
import statistics
import sys
import time

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from integration.chromium import chromium_page, find_chromium
from unit.explorer_server import Served, served

from braingen.config import load_config
from braingen.explorer.session import Session
from braingen.explorer.shipped import shipped_run

PAINT = "performance.getEntriesByName('first-contentful-paint')[0].startTime"


def seconds(server: Served, path: str, body: dict | None = None) -> tuple[float, float]:
    """Time until a request is answered, and processor time."""
    started, used = time.perf_counter(), time.process_time()
    reply = server.ask(path, body)
    assert reply.status == 200, reply.body
    return time.perf_counter() - started, time.process_time() - used


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--threads", type=int, default=0, help="of torch; 0 for its own choice")
    parser.add_argument("--images", type=int, default=12, help="test images that are timed")
    given = parser.parse_args()
    if given.threads:
        torch.set_num_threads(given.threads)
    started = time.perf_counter()
    run = shipped_run(load_config(None, {"run.device": "cpu"}), 0)
    session = Session([run], 4)
    print(f"loading the decoder: {time.perf_counter() - started:.1f} s")
    region = max(run.regions, key=lambda name: run.regions[name].sum())
    with served(session) as server:
        kinds = {
            "image, with frames": lambda n: ("/api/image", {"image": n, "frames": True}),
            "level alone, with frames": lambda n: (
                "/api/image",
                {"image": n, "level": 1, "frames": True},
            ),
            "ablated expert": lambda n: (
                "/api/image",
                {"image": n, "ablate": {"image": ["level-1-expert-0"]}},
            ),
            "ablated region": lambda n: (
                "/api/image",
                {"image": n, "ablate": {"regions": [region]}},
            ),
            "contribution": lambda n: (f"/api/map?kind=contribution&image={n}", None),
            "spread, one more image": lambda n: ("/api/spread", {"image": n, "count": 2}),
        }
        seconds(server, "/api/image", {"image": run.images[0].image, "sample": 9})  # warm
        for name, request in kinds.items():
            pairs = [seconds(server, *request(image)) for image in run.image_ids()[: given.images]]
            words = [
                f"{what} median {statistics.median(times):.2f} s"
                f" ({min(times):.2f} to {max(times):.2f})"
                for what, times in zip(("time", "processor time"), zip(*pairs))
            ]
            print(f"{name}: {'; '.join(words)}", flush=True)
        if find_chromium():
            with chromium_page("--enable-unsafe-swiftshader") as page:
                paints = []
                for _ in range(5):
                    page.screen(1280, 800)
                    page.visit(server.address)
                    paints.append(page.evaluate(PAINT))
                print(f"first contentful paint: median {statistics.median(paints):.0f} ms")


if __name__ == "__main__":
    main()
