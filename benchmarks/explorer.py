"""Times of the explorer on the shipped decoder or a run: to first paint, and per redraw.

``python benchmarks/explorer.py [RUN [RUN]] [--threads N] [--screenshots FOLDER]``, in the folder
where the run's data are found; needs Chromium for the paint and the screenshots. A redraw is the
time from a request to its whole answer: an image along denoising time, a level alone, an ablation,
a spread, a map. Processor time is that of this process, server included; on a machine without
other work and with one thread the two are alike.
"""

from __future__ import annotations

import argparse
from contextlib import ExitStack
import os
from pathlib import Path
import statistics
import sys
import time

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from integration.chromium import chromium_page, find_chromium
from unit.explorer_server import Served, served

from braingen.config import load_config
from braingen.explorer.serve import load_runs
from braingen.explorer.session import Session
from braingen.generation.lora import merged_lora

READY = "!document.body.classList.contains('busy') && !!document.querySelector('#levels img')"
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
    parser.add_argument("runs", nargs="*", help="run folders; none: the shipped decoder")
    parser.add_argument("--screenshots", type=Path, help="folder of the page at 1280 and 390 px")
    parser.add_argument("--threads", type=int, default=0, help="of torch; 0 for its own choice")
    parser.add_argument("--images", type=int, default=12, help="test images that are timed")
    given = parser.parse_args()
    if given.threads:
        torch.set_num_threads(given.threads)
    settings = {"run.device": "cpu", "explore.runs": ",".join(given.runs)}
    with ExitStack() as stack:
        started = time.perf_counter()
        session = Session(load_runs(load_config(None, settings)), 4)
        for run in session.runs:  # as `braingen explore` does
            stack.enter_context(merged_lora(run.decoder.unet))
        print(f"loading the decoder: {time.perf_counter() - started:.1f} s")
        run = session.runs[0]
        region = max(run.regions, key=lambda name: run.regions[name].sum())
        server = stack.enter_context(served(session))
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
            load = os.getloadavg()[0]
            print(f"{name}: {'; '.join(words)}; load {load:.1f}", flush=True)
        if find_chromium():
            with chromium_page("--enable-unsafe-swiftshader") as page:
                paints = []
                for _ in range(5):
                    page.screen(1280, 800)
                    page.visit(server.address)
                    paints.append(page.evaluate(PAINT))
                low, high = min(paints), max(paints)
                print(
                    f"first contentful paint: median {statistics.median(paints):.0f} ms"
                    f" ({low:.0f} to {high:.0f})"
                )
                for width, height in ((1280, 800), (390, 844)) if given.screenshots else ():
                    page.screen(width, height)
                    page.visit(server.address)
                    while not page.evaluate(READY):
                        time.sleep(0.1)
                    given.screenshots.mkdir(parents=True, exist_ok=True)
                    file = given.screenshots / f"explorer-{width}.png"
                    page.screenshot(file, whole=True)


if __name__ == "__main__":
    main()
