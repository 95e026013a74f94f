"""The training images of the tiny backbones, rendered once beside the checkpoints.

Their seeds differ from those of simulated subjects, so simulated test images are not among them.
"""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
import json
import multiprocessing
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.lib.format import open_memmap
import torch
from torch.nn.functional import interpolate

from braingen.runtime.text_files import read_json
from braingen.simulation import scenes

CORPUS_SEED = 7_000_000_000
"""Scene i of the corpus has seed CORPUS_SEED + i; simulated subjects use seeds below 2**32."""


class Corpus(NamedTuple):
    """Rendered scenes with their descriptions."""

    images_N3HW: np.ndarray
    """uint8, memory-mapped."""
    captions: list[list[str]]
    """Five per image."""
    labels: dict[str, np.ndarray]
    """int64 vectors of N: object, background, colour (-1 none), position, objects (how many)."""


def resize(images_N3HW: torch.Tensor, side: int) -> torch.Tensor:
    """Resize images in [0, 1] to side x side pixels (bicubic, antialiased, clamped to [0, 1])."""
    if images_N3HW.shape[-1] == side:
        return images_N3HW
    return interpolate(
        images_N3HW.float(), size=(side, side), mode="bicubic", antialias=True
    ).clamp(0, 1)


def _draw_chunk(
    start: int, count: int, side: int
) -> tuple[int, np.ndarray, list[list[str]], list[list[int]]]:
    torch.set_num_threads(1)
    pictures, texts, labels = [], [], []
    for i in range(start, start + count):
        rng = np.random.default_rng(CORPUS_SEED + i)
        scene = scenes.random_scene(rng)
        pictures.append(scenes.stimulus(scenes.render(scene)))
        texts.append(scenes.captions(scene, rng))
        main = scene.objects[0]
        labels.append(
            [main.object, scene.background, main.colour, scene.position, len(scene.objects)]
        )
    small = resize(torch.from_numpy(np.stack(pictures)).float(), side)
    return start, (small * 255).round().to(torch.uint8).numpy(), texts, labels


def corpus(folder: Path, count: int, side: int, workers: int = 2, chunk: int = 250) -> Corpus:
    """Render the corpus, or load it where it is complete; rendering is resumable by chunks.

    Parameters
    ----------
    folder : Path
        Where ``images.npy`` and ``chunks/*.json`` are kept.
    count : int
        Number of images, a multiple of ``chunk``.
    side : int
        Side of the images in pixels.
    workers : int, optional
        Processes that render.
    chunk : int, optional
        Images that a process renders at once.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path, done_folder = folder / "images.npy", folder / "chunks"
    done_folder.mkdir(exist_ok=True)
    if path.exists():
        images = np.load(path, mmap_mode="r+")
        if images.shape != (count, 3, side, side):
            raise ValueError(
                f"{path} holds {images.shape}, this recipe needs {(count, 3, side, side)}; delete"
                f" {folder} to render it anew"
            )
    else:
        images = open_memmap(path, "w+", np.uint8, (count, 3, side, side))
    missing = [
        start
        for start in range(0, count, chunk)
        if not (done_folder / f"{start:07d}.json").exists()
    ]
    if missing:
        # forked after its parent used torch's threads, a process can wait for ever
        with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
            for future in [pool.submit(_draw_chunk, start, chunk, side) for start in missing]:
                start, pictures, texts, labels = future.result()
                images[start : start + len(pictures)] = pictures
                images.flush()
                record = done_folder / f"{start:07d}.json"
                record.with_suffix(".tmp").write_text(
                    json.dumps({"captions": texts, "labels": labels}), encoding="utf-8"
                )
                record.with_suffix(".tmp").rename(record)
    records = [read_json(done_folder / f"{start:07d}.json") for start in range(0, count, chunk)]
    table = np.array([row for record in records for row in record["labels"]], dtype=np.int64)
    names = ("object", "background", "colour", "position", "objects")
    return Corpus(
        images,
        [five for record in records for five in record["captions"]],
        dict(zip(names, table.T)),
    )
