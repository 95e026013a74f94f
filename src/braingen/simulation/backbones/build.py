"""Train the tiny backbones: scenes, CLIP, VAE, scene classifier, U-Net, decoder, export.

``make backbones`` runs it, on the CPU, for hours; every part continues after an interruption. With
``--start-from FOLDER`` text encoders, VAE and scene classifier are those of finished backbones, and
the U-Net starts from their weights.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
import time
from typing import NamedTuple

from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import save_file
import torch
from torch import multiprocessing
from torch.distributed.elastic.utils.distributed import get_free_port

from braingen.config.shipped import TINY
from braingen.pretrained.sdxl import ip_adapter_weights, load_backbone, without_ip_adapter
from braingen.runtime.parallel import context_of
from braingen.runtime.run_folder import Run
from braingen.runtime.text_files import read_json
from braingen.simulation.backbones.clip import (
    TinyCLIP,
    load_text_encoders,
    train_clip,
    train_image_tower,
)
from braingen.simulation.backbones.corpus import Corpus, corpus
from braingen.simulation.backbones.scene_classifier import train_scene_classifier
from braingen.simulation.backbones.unet import encode_conditions, scheduler, train_unet
from braingen.simulation.backbones.vae import sharpen_decoder, train_vae
from braingen.simulation.scene_classifier import SceneClassifier


class BackboneRecipe(NamedTuple):
    """Sizes and durations of the recipe; the defaults made the shipped weights."""

    side: int = 128
    """Side of the images in pixels."""
    pictures: int = 30_000
    """Rendered scenes, a multiple of ``chunk``."""
    chunk: int = 250
    """Scenes that a process renders at once."""
    held_out: int = 1000
    """Number of last scenes that are held out to measure quality."""
    conditioned: int = 15_000
    """Scenes that train the U-Net."""
    clip_steps: int = 700
    image_tower_steps: int = 1000
    vae_steps: int = 1800
    vae_full_size_steps: int = 200
    decoder_steps: int = 3000
    classifier_steps: int = 1500
    unet_steps: int = 6000
    unet_processes: int = 1
    """Processes that train the U-Net together, each with 32 images a step."""
    init_from: Path | None = None
    """Finished backbones whose text encoders, VAE and scene classifier are kept."""


def part_of(data: Corpus, rows: slice) -> Corpus:
    """Select rows of the corpus."""
    return Corpus(
        data.images_N3HW[rows],
        data.captions[rows],
        {name: values[rows] for name, values in data.labels.items()},
    )


def _unet_worker(rank: int, port: int, folder: Path, recipe: BackboneRecipe) -> None:
    torch.set_num_threads(1)
    # what torchrun sets, from which Accelerate makes the process group
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(recipe.unet_processes),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    data, vae, clip = _frozen(folder, recipe)
    conditions = encode_conditions(
        part_of(data, slice(recipe.conditioned)), vae, clip, folder / "conditions"
    )
    train_unet(conditions, folder, recipe.side, recipe.unet_steps, _first_unet(recipe))


def _first_unet(recipe: BackboneRecipe) -> UNet2DConditionModel | None:
    """Load the U-Net to start from; None for random weights."""
    return (
        load_backbone(str(recipe.init_from)).unet.requires_grad_(True) if recipe.init_from else None
    )


def _frozen(folder: Path, recipe: BackboneRecipe) -> tuple[Corpus, AutoencoderKL, TinyCLIP]:
    """Return corpus, VAE and CLIP, trained if missing."""
    data = corpus(folder / "corpus", recipe.pictures, recipe.side, chunk=recipe.chunk)
    seen = part_of(data, slice(recipe.pictures - recipe.held_out))
    if recipe.init_from:
        text_1, text_2, tokenizer = load_text_encoders(recipe.init_from)
        image = train_image_tower(seen, text_2, tokenizer, folder, recipe.image_tower_steps)
        return (
            data,
            load_backbone(str(recipe.init_from)).vae.requires_grad_(True),
            TinyCLIP(image, text_1, text_2, tokenizer),
        )
    clip = train_clip(seen, folder, recipe.clip_steps, recipe.image_tower_steps)
    vae = train_vae(seen.images_N3HW, folder, recipe.vae_steps, recipe.vae_full_size_steps)
    return data, vae, clip


def build(folder: Path, assets: Path, recipe: BackboneRecipe) -> None:
    """Run the whole recipe and write the weights to the package's assets.

    Parameters
    ----------
    folder : Path
        For checkpoints and caches.
    assets : Path
        Folder of the finished backbones, in the layout of an SDXL pipeline.
    """
    torch.set_num_threads(1)
    data, vae, clip = _frozen(folder, recipe)
    seen = part_of(data, slice(recipe.pictures - recipe.held_out))
    start = recipe.init_from
    classifier = (
        SceneClassifier.from_pretrained(start / "scene_classifier").float()
        if start
        else train_scene_classifier(seen, folder, recipe.classifier_steps)
    )
    conditions = encode_conditions(
        part_of(data, slice(recipe.conditioned)), vae, clip, folder / "conditions"
    )
    if recipe.unet_processes > 1:
        multiprocessing.start_processes(
            _unet_worker,
            (get_free_port(), folder, recipe),
            recipe.unet_processes,
            start_method=context_of([__spec__.name]).get_start_method(),
        )
    unet = train_unet(conditions, folder, recipe.side, recipe.unet_steps, _first_unet(recipe))
    vae = sharpen_decoder(
        vae, seen.images_N3HW, conditions.latents_N4HW, folder, recipe.decoder_steps
    )
    export(assets, unet=unet, vae=vae, clip=clip, classifier=classifier)
    seconds = {
        path.parent.name: Run(path.parent).summary["seconds"]
        for path in sorted(folder.glob("*/finished"))
    }
    (assets / "training_seconds.json").write_text(json.dumps(seconds, indent=1), encoding="utf-8")


def export(assets: Path, *, unet, vae, clip: TinyCLIP, classifier) -> None:
    """Write half-precision weights in the layout of an SDXL pipeline."""
    plain = without_ip_adapter(unet)
    adapter = {key: value.half().contiguous() for key, value in ip_adapter_weights(unet).items()}
    for name, model in (("unet", plain), ("vae", vae), ("scene_classifier", classifier)):
        model.half().save_pretrained(assets / name)
    for name, model in (
        ("image_encoder", clip.image),
        ("text_encoder", clip.text_1),
        ("text_encoder_2", clip.text_2),
    ):
        model.half().save_pretrained(assets / name)
    for file in assets.glob("*/config.json"):  # remove paths of the building machine
        known = read_json(file)
        if known.pop("_name_or_path", None) is not None:
            file.write_text(json.dumps(known, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    clip.tokenizer.save_pretrained(assets / "tokenizer")
    clip.tokenizer.save_pretrained(assets / "tokenizer_2")
    scheduler().save_pretrained(assets / "scheduler")
    (assets / "ip_adapter").mkdir(exist_ok=True)
    save_file(adapter, assets / "ip_adapter" / "ip-adapter.safetensors")


def main() -> None:
    """Command line of the recipe."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--folder", type=Path, default=Path("build/backbones"), help="checkpoints and caches"
    )
    parser.add_argument("--assets", type=Path, default=TINY, help="where the finished backbones go")
    parser.add_argument("--unet-steps", type=int, default=BackboneRecipe().unet_steps)
    parser.add_argument("--decoder-steps", type=int, default=BackboneRecipe().decoder_steps)
    parser.add_argument("--unet-processes", type=int, default=1)
    parser.add_argument(
        "--start-from",
        type=Path,
        help="finished backbones whose text encoders, VAE and scene classifier are kept",
    )
    chosen = parser.parse_args()
    started = time.monotonic()
    recipe = BackboneRecipe(
        unet_steps=chosen.unet_steps,
        decoder_steps=chosen.decoder_steps,
        unet_processes=chosen.unet_processes,
        init_from=chosen.init_from,
    )
    build(chosen.folder, chosen.assets, recipe)
    print(
        f"backbones written to {chosen.assets} after {(time.monotonic() - started) / 60:.0f}"
        " minutes"
    )


if __name__ == "__main__":
    main()
