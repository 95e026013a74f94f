"""Estimate memory, disk and GPU memory of a configuration, without allocating anything.

Estimates are within a factor of 1.5: weights, gradients, optimizer and tables are counted,
activations are estimated from the batch. B batch, T tokens, D embedding width.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import psutil
import torch

from braingen.config import Config
from braingen.config.shipped import backbone_folder
from braingen.diagnostics.summary import Sizes, sizes_of
from braingen.pretrained.sdxl import own_size
from braingen.runtime.data_layout import Layout
from braingen.runtime.device import device_of, precision_of
from braingen.runtime.errors import UserError
from braingen.runtime.files import free_bytes
from braingen.runtime.paths import run_folder
from braingen.training.encoder_setup import build_embedding_decoder

LIBRARIES = 700 * 10**6
"""Resident memory after importing torch, diffusers and transformers (measured: 0.5-0.7 GB)."""
SDXL_GB = {
    "unet": 10.3,
    "vae": 0.33,
    "text_encoder": 0.49,
    "text_encoder_2": 2.78,
    "image_encoder": 7.4,
    "ip_adapter": 0.7,
}
"""Float32 weights of Stable Diffusion XL, ViT-bigG/14 and the plain IP-Adapter by their parameter
counts, for when their files are not available.
"""
FULL_SIDE, LATENT_CHANNELS = 1024, 4
MANY_VOXELS = 200_000
"""An upper bound for masks of visual cortex."""
ACTIVATIONS_PER_UNIT = 12
"""Activations kept for the backward pass, per unit of width and block of an expert: norm, two
linear maps, activation, dropout masks.
"""


class Need(NamedTuple):
    """A resource that a configuration needs."""

    what: str
    """memory, GPU memory or disk, and its use."""
    needed: int
    """Bytes."""
    there: int
    """Available bytes."""
    hint: str
    """What to do when that is not enough."""

    @property
    def enough(self) -> bool:
        return self.needed <= self.there


def encoder_parameters(config: Config, sizes: Sizes, modality: str = "image") -> int:
    """Count the parameters of an encoder with its prior, on the meta device."""
    with torch.device("meta"):
        target = sizes.image if modality == "image" else sizes.text
        widths = tuple(sizes.text_widths.values()) if modality == "text" else ()
        voxels = {int(subject): count for subject, count in sizes.subjects.items()}
        embedding_decoder = build_embedding_decoder(
            config, voxels, target, widths if config.encoder.reads_caption_widths else ()
        )
    return sum(p.numel() for p in embedding_decoder.parameters())


def training_bytes(config: Config, modality: str, sizes: Sizes) -> tuple[int, int]:
    """Bytes of a training run: device memory, and the state on disk."""
    target = sizes.image if modality == "image" else sizes.text
    count = encoder_parameters(config, sizes, modality)
    units = config.encoder.kept_per_trial + 3 * target[0] * target[1] * (2 + config.prior.depth)
    activations = config.training.batch_size * units * ACTIVATIONS_PER_UNIT * 4
    return (
        16 * count + activations,
        16 * count,
    )  # weights, gradients and the two moments of AdamW, float32


def table_bytes(tokens: int, width: int, images: int) -> int:
    """Bytes of a table of float32 embeddings."""
    return images * tokens * width * 4


def cache_bytes(config: Config, images: int) -> int:
    """Bytes that the caches still have to write."""
    sizes = sizes_of(config)
    per_image = {
        "image": 4 * sizes.image[0] * sizes.image[1],
        "text": 4 * sizes.text[0] * sizes.text[1],
        "latents": 2 * LATENT_CHANNELS * (picture_side(config) // 8) ** 2,
    }
    folder = Layout.of(config.data.root).cache()
    there = sum(
        file.stat().st_blocks * 512
        for name in ("targets", "latents")
        for file in (folder / name).glob("*.npy")
    )
    return max(0, images * sum(per_image[name] for name in config.precompute.what) - there)


def picture_side(config: Config) -> int:
    """Side of the images that are fine-tuned on, in pixels."""
    try:
        return config.finetune.resolution or own_size(config.backbone.path, local_files_only=True)
    except UserError:
        return FULL_SIDE


def weights_bytes(config: Config) -> int:
    """Bytes of the generating models' float32 weights: from their files, else SDXL's."""
    folder = Path(backbone_folder(config.backbone.path))
    if not folder.exists():
        return int(sum(SDXL_GB.values()) * 1e9)
    found = {
        name: sum(f.stat().st_size for f in (folder / name).glob("*.safetensors"))
        for name in SDXL_GB
    }
    if config.backbone.image_encoder:
        found["image_encoder"] = int(SDXL_GB["image_encoder"] * 1e9)
    return sum(found.values())


def needs_of(config: Config, images: int) -> list[Need]:
    """Compare the needs of training, caching and generation with the machine.

    Parameters
    ----------
    images : int
        Number of images.
    """
    sizes, device = sizes_of(config), device_of(config)
    trained = {modality: training_bytes(config, modality, sizes) for modality in ("image", "text")}
    targets = max(table_bytes(*size, images) for size in (sizes.image, sizes.text))
    training = max(size for size, _ in trained.values())
    generation = (
        weights_bytes(config)
        + 3
        * config.generation.batch_size
        * (config.generation.size or picture_side(config)) ** 2
        * 256
    )
    memory = psutil.virtual_memory().available
    needs = []
    smaller = "choose a smaller encoder.hidden_dim or training.batch_size, or a machine with more"
    if max(sizes.subjects.values(), default=0) > MANY_VOXELS:
        smaller = (
            "keep fewer voxels: prepare again with a mask of visual cortex (--mask; NSD's has 13"
            " 000 to 18 000 voxels)"
        )
    fewer = "choose a smaller generation.batch_size or generation.size, or a machine with more"
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        half = 1 if precision_of(config) == "no" else 2
        needs.append(Need("GPU memory to train", training + targets, free, smaller))
        needs.append(Need("GPU memory to generate", generation // half, free, fewer))
        needs.append(Need("memory to train", LIBRARIES + 2 * targets, memory, smaller))
    else:
        needs.append(Need("memory to train", LIBRARIES + training + 2 * targets, memory, smaller))
        needs.append(Need("memory to generate", LIBRARIES + generation, memory, fewer))
    root = Layout.of(config.data.root).cache()
    needs.append(
        Need(
            f"disk for caches in {root}",
            cache_bytes(config, images),
            free_bytes(root),
            "free some space there",
        )
    )
    for modality, (_, state) in trained.items():
        folder = run_folder(config, modality)
        # the new state is written before the old one is removed, and the best checkpoint is kept
        needs.append(
            Need(
                f"disk for training in {folder}",
                2 * state + state // 2,
                free_bytes(folder),
                "free some space, or choose another --model_name",
            )
        )
    return needs


def gigabytes(count: float) -> str:
    """Format bytes as MB or GB."""
    return f"{count / 1e9:.1f} GB" if count >= 5e7 else f"{np.ceil(count / 1e6):.0f} MB"
