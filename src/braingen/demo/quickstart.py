"""`braingen quickstart`: decode 12 simulated test images with the small shipped decoder."""

from __future__ import annotations

import os
from pathlib import Path
import sys
import time
from typing import Any, NamedTuple
import webbrowser

import numpy as np
from PIL import Image
from safetensors.torch import load_file
import torch
from torch import Tensor

from braingen.config import Config
from braingen.config.shipped import TINY
from braingen.data.volumes import VoxelPlaces
from braingen.encoders.embedding_decoder import EmbeddingDecoder
from braingen.generation.pipeline import BrainDecoder, to_pil
from braingen.pretrained.sdxl import load_backbone, scheduler_named
from braingen.report.quickstart import ImagePair, render
from braingen.runtime.arrays import read_npz
from braingen.runtime.console import console as new_console
from braingen.runtime.device import device_of
from braingen.runtime.errors import UserError
from braingen.runtime.files import write_text
from braingen.runtime.precision import unet_type
from braingen.runtime.text_files import read_json
from braingen.targets.clip_text import CLIPTextEncoderDual

SHIPPED = Path(__file__).parent.parent / "simulation" / "assets" / "quickstart"
"""Decoder, responses, seen images and scores; its README.md describes how they were made."""
BRAINS, CARD, SEEN = "brains.safetensors", "card.json", "seen"
BRAIN = "brain.npz"
"""Where the voxels lie, and what they are tuned to."""
SUBJECT = 1
"""Number of the subject of the decoder."""
PAGE = "index.html"


class ShippedBrain(NamedTuple):
    """Where the voxels of the shipped subject lie, and what they are tuned to. V voxels."""

    places: VoxelPlaces
    regions: dict[str, np.ndarray]
    """Planted area -> bool V."""
    tuning: dict[str, np.ndarray]
    """Category -> predicted response to its images less that to all others, float32 V, in standard
    deviations of the voxel's responses.
    """


class Shipped(NamedTuple):
    """Responses to test images, with seen images, captions and scores."""

    ids: list[int]
    """Image ids in the simulated data set."""
    voxels_BRV: Tensor
    """Z-scored responses: images x presentations x voxels, float32."""
    seen: list[Image.Image]
    captions: list[str]
    scores: dict[str, dict[str, Any]]
    """Scores of the decoder over all test images of its subject: value, low, high, chance, n."""


def load_shipped(folder: Path = SHIPPED) -> Shipped:
    """Read the responses, the seen images and the scores.

    Raises
    ------
    UserError
        When a file of the package is missing.
    """
    for name in (BRAINS, CARD):
        if not (folder / name).is_file():
            raise UserError(
                f"{folder / name} is missing, so the installation of braingen is incomplete:"
                " install it again."
            )
    brains, card = load_file(folder / BRAINS), read_json(folder / CARD)
    ids = [int(image) for image in brains["ids"]]
    seen = []
    for image in ids:
        with Image.open(folder / SEEN / f"{image:06d}.png") as picture:
            seen.append(picture.convert("RGB"))
    return Shipped(
        ids,
        brains["voxels"].float(),
        seen,
        [card["captions"][str(image)] for image in ids],
        card["scores"],
    )


def load_shipped_brain(folder: Path = SHIPPED) -> ShippedBrain:
    """Read where the voxels lie and what they are tuned to.

    Raises
    ------
    UserError
        When the file is missing or damaged.
    """
    stored = read_npz(folder / BRAIN, "install braingen again")
    mask = np.zeros(stored["shape"], dtype=bool)
    mask[tuple(stored["index_V3"].T.astype(np.int64))] = True
    names, label_V = stored["areas"].tolist(), stored["area_V"]
    return ShippedBrain(
        VoxelPlaces(mask, "C", stored["affine"], "braingen simulate"),
        {name: label_V == label for label, name in enumerate(names)},
        dict(zip(stored["categories"].tolist(), stored["tuning_CV"].astype(np.float32))),
    )


def load_shipped_decoder(folder: Path = SHIPPED, scheduler: str = "default") -> BrainDecoder:
    """Assemble the shipped encoders and the tiny backbone as one decoder, in float32."""
    image, text = (
        EmbeddingDecoder.from_pretrained(folder / name, torch_dtype=torch.float32).eval()
        for name in ("image", "text")
    )
    backbone = load_backbone(str(TINY))
    backbone = backbone._replace(scheduler=scheduler_named(scheduler, backbone.scheduler))
    decoder = BrainDecoder.assemble(
        image, text, *backbone, CLIPTextEncoderDual.from_pretrained(str(TINY), dtype=torch.float32)
    )
    decoder.set_progress_bar_config(disable=True)
    return decoder


def quickstart(config: Config) -> Path:
    """Decode the shipped responses, write a page of seen and decoded images, and open it.

    A browser opens only in an interactive session with a desktop.

    Returns
    -------
    Path
        Path of the page.
    """
    console, started = new_console(), time.monotonic()
    settings, page = config.quickstart, config.quickstart.output / PAGE
    shipped = load_shipped()
    console.print(
        f"Decoding {len(shipped.ids)} test images with the shipped decoder of a simulated subject"
        " (seconds)."
    )
    decoder = load_shipped_decoder(scheduler=settings.scheduler).to(
        device_of(config), unet_type("auto", device_of(config))
    )
    with torch.no_grad():
        embedding = decoder.decode_embeddings(
            shipped.voxels_BRV.to(decoder.device), SUBJECT, shipped.ids, config.run.seed
        )
        generated = decoder.generate(
            embedding.image,
            embedding.text,
            shipped.ids,
            seed=config.run.seed,
            steps=settings.steps,
            guidance_scale=settings.guidance_scale,
        )
    pairs = [
        ImagePair(*each)
        for each in zip(shipped.ids, shipped.seen, to_pil(generated), shipped.captions)
    ]
    write_text(page, render(pairs, shipped.scores))
    console.print(
        f"Decoded {len(pairs)} test images in {time.monotonic() - started:.0f} s. The page of seen"
        " and decoded images is"
    )
    if settings.open and interactive_desktop():
        webbrowser.open(page.absolute().as_uri())
    return page.absolute()


def interactive_desktop() -> bool:
    """Whether the session is interactive and has a desktop; a text browser would block it."""
    desktop = sys.platform in ("darwin", "win32") or any(
        os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY")
    )
    return desktop and sys.stdout.isatty() and "CI" not in os.environ
