"""Schedulers, steps and guidance: seconds and scores, on the decoder of `braingen quickstart`.

    python benchmarks/samplers.py FOLDER --images 48

The decoder's subject is simulated again into FOLDER (kept for the next time). Images are held-out
training images, their presentations averaged. Differences are paired by image from the first line;
+- is their standard error over images. Seconds are processor time of drawing, in batches of 12.
"""

from __future__ import annotations

import argparse
from pathlib import Path
import time
from typing import NamedTuple

import numpy as np
import torch

from braingen.config import Config, load_config
from braingen.data.batches import RepeatBatches
from braingen.data.betas import Betas
from braingen.data.trials import group_repeats, hold_out_images, train_trials
from braingen.demo.quickstart import SUBJECT, load_shipped_decoder
from braingen.demo.quickstart_build import CHANGES, SEED
from braingen.evaluation.image_sets import SeenImages
from braingen.evaluation.metric_table import score_images
from braingen.evaluation.observers import observers
from braingen.generation.pipeline import BrainDecoder
from braingen.generation.speed import prepare_unet
from braingen.pretrained.sdxl import scheduler_named
from braingen.runtime.data_layout import Layout
from braingen.simulation.dataset import simulate
from braingen.targets.tables import Targets
from braingen.types import ExpertEmbeddings

BATCH = 12
SCORES = ("pixcorr", "ssim", "two_way_judge_early", "two_way_judge_late", "object_accuracy")


class Sampler(NamedTuple):
    """One way to draw."""

    scheduler: str
    steps: int
    guidance: float
    end: float = 1.0
    """Share of the steps, from the first, with guidance."""
    options: str = ""
    """``generation.*`` of `braingen.generation.speed`, NAME=VALUE."""

    def __str__(self) -> str:
        part = f" in the first {self.end:.0%} of the steps" if self.end < 1 else ""
        more = f", {self.options}" if self.options else ""
        return f"{self.scheduler}, {self.steps} steps, guidance {self.guidance:g}{part}{more}"


SAMPLERS = (
    Sampler("euler", 50, 15),
    Sampler("unipc", 20, 15),
    Sampler("unipc", 20, 15, 0.5),
    Sampler("euler", 20, 3),
    Sampler("unipc", 8, 2.5),
    Sampler("unipc", 5, 2.5, 0.5),
    Sampler("unipc", 5, 2.5, 0.5, "memory_format=channels_last"),
    Sampler("unipc", 5, 2.5, 0.5, "compile=true"),
)
"""The published setting first, the demo's last."""


class Drawn(NamedTuple):
    """Pictures of a sampler."""

    pictures_N3HW: np.ndarray
    seconds: float
    """Per image, without the first batch where the U-Net is compiled."""


@torch.no_grad()
def read_all(config: Config, count: int) -> tuple[list[ExpertEmbeddings], list[list[int]]]:
    """Decoded image embeddings of held-out training images, and their ids, by batch."""
    layout, decoder = Layout.of(config.data.root), load_shipped_decoder()
    trials = train_trials(layout, SUBJECT, config.data.num_sessions)
    _, held_out = hold_out_images(trials, config.data.holdout_share, config.run.seed)
    repeats = group_repeats(held_out)
    repeats = repeats._replace(image_N=repeats.image_N[:count], rows_NR=repeats.rows_NR[:count])
    found, ids = [], []
    for batch in RepeatBatches(repeats, Betas.of(layout, SUBJECT), SUBJECT, BATCH):
        images = batch.image_B.tolist()
        found.append(decoder.read(batch.voxels_BRV, SUBJECT, images, 0, batch.present_BR))
        ids.append(images)
    return found, ids


def draw_all(decoder: BrainDecoder, how: Sampler, read: list, ids: list[list[int]]) -> Drawn:
    """Draw everything in one way."""
    pictures, seconds = [], []
    for part, images in zip(read, ids):
        began = time.process_time()
        drawn = decoder.draw(
            part.image,
            part.text,
            images,
            steps=how.steps,
            guidance_scale=how.guidance,
            guidance_end=how.end,
        )
        seconds.append((time.process_time() - began) / len(images))
        pictures.append(np.round(drawn.numpy() * 255).astype(np.uint8))
    timed = seconds[1:] if "compile" in how.options and len(seconds) > 1 else seconds
    return Drawn(np.concatenate(pictures), float(np.median(timed)))


def main() -> None:
    """Draw, score, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--images", type=int, default=48)
    given = parser.parse_args()
    places = {"data.root": str(given.folder), "run.folder": str(given.folder / "run")}
    more = {"simulation.seed": str(SEED), "run.device": "cpu"}
    config = load_config("simulated", {**CHANGES, **places, **more})
    simulate(config)
    read, ids = read_all(config, given.images)
    flat = np.concatenate([np.array(each) for each in ids])
    truth = SeenImages(Targets(config).stimuli, flat)
    networks, readouts, _ = observers(config, True, flat)
    print(f"| sampler | ms an image | {' | '.join(SCORES)} |")
    print("| --- |" + " ---: |" * (1 + len(SCORES)))
    first: dict[str, np.ndarray] = {}
    for how in SAMPLERS:
        decoder = load_shipped_decoder()
        decoder.register_modules(scheduler=scheduler_named(how.scheduler, decoder.scheduler))
        options = dict(each.split("=") for each in how.options.split()) if how.options else {}
        changed = load_config(None, {f"generation.{k}": v for k, v in options.items()})
        prepare_unet(decoder.unet, changed)
        drawn = draw_all(decoder, how, read, ids)
        paired = score_images(
            truth, flat, drawn.pictures_N3HW, flat, networks, readouts=readouts, resamples=1
        ).paired
        values = {name: paired[name].to_numpy(dtype=float) for name in SCORES}
        cells = []
        for name, each in values.items():
            if first:
                gain = each - first[name]
                cells.append(f"{gain.mean():+.4f} +- {gain.std(ddof=1) / len(gain) ** 0.5:.4f}")
            else:
                cells.append(f"{each.mean():.3f}")
        first = first or values
        print(f"| {how} | {1000 * drawn.seconds:.0f} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
