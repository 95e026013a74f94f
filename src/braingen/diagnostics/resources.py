"""Estimate memory, disk and GPU memory of a configuration, without allocating anything.

Weights, gradients, optimizer and tables are counted. What a pass works with is counted for the
U-Net, the autoencoder and CLIP (`diagnostics.needs`), and estimated from the batch for encoders,
within a factor of 1.5. B batch, T tokens, D embedding width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import psutil
import torch

from braingen.config import Config
from braingen.diagnostics.lowering import advice
from braingen.diagnostics.needs import STAGES, picture_side, stage_needs
from braingen.diagnostics.needs_by_data import DATA_STAGES, Counted, amounts_of
from braingen.diagnostics.summary import Sizes, sizes_of
from braingen.runtime.data_layout import Layout
from braingen.runtime.device import device_of
from braingen.runtime.files import free_bytes
from braingen.runtime.paths import run_folder
from braingen.training.encoder_setup import build_embedding_decoder

LIBRARIES = 700 * 10**6
"""Resident memory after importing torch, diffusers and transformers (measured: 0.5-0.7 GB)."""
LATENT_CHANNELS = 4
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
    hint: Callable[[], str] | str
    """What to do when that is not enough; computed when it is."""
    estimate: bool = False
    """Whether a run may still go on where it says that there is too little."""

    @property
    def enough(self) -> bool:
        return self.needed <= self.there


def encoder_parameters(
    config: Config, sizes: Sizes, modality: str = "image", prior_only: bool = False
) -> int:
    """Count the parameters of an encoder with its prior, or of the prior, on the meta device."""
    with torch.device("meta"):
        target = sizes.image if modality == "image" else sizes.text
        widths = tuple(sizes.text_widths.values()) if modality == "text" else ()
        voxels = {int(subject): count for subject, count in sizes.subjects.items()}
        embedding_decoder = build_embedding_decoder(
            config, voxels, target, widths if config.encoder.reads_caption_widths else ()
        )
    counted = embedding_decoder.prior if prior_only else embedding_decoder
    return sum(p.numel() for p in counted.parameters()) if counted is not None else 0


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
    sizes, side = sizes_of(config), picture_side(config, config.finetune.resolution)
    per_image = {
        "image": 4 * sizes.image[0] * sizes.image[1],
        "text": 4 * sizes.text[0] * sizes.text[1],
        "latents": 2 * LATENT_CHANNELS * (side // 8) ** 2,
    }
    folder = Layout.of(config.data.root).cache()
    there = sum(
        file.stat().st_blocks * 512
        for name in ("targets", "latents")
        for file in (folder / name).glob("*.npy")
    )
    return max(0, images * sum(per_image[name] for name in config.precompute.what) - there)


def needs_of(config: Config, images: int) -> list[Need]:
    """Compare the needs of every stage with the machine.

    Parameters
    ----------
    images : int
        Number of images.
    """
    sizes, device = sizes_of(config), device_of(config)
    modalities = ("image", "text")
    trained = {modality: training_bytes(config, modality, sizes) for modality in modalities}
    targets = max(table_bytes(*size, images) for size in (sizes.image, sizes.text))
    training = max(size for size, _ in trained.values())
    image_encoder = encoder_parameters(config, sizes)
    encoders = image_encoder + encoder_parameters(config, sizes, "text")
    priors = sum(encoder_parameters(config, sizes, modality, True) for modality in modalities)
    memory, on_gpu = psutil.virtual_memory().available, device.type == "cuda"
    free = torch.cuda.mem_get_info(device)[0] if on_gpu else memory
    what, extra = ("GPU memory", 0) if on_gpu else ("memory", LIBRARIES)

    def to_train(changed: Config) -> int:
        sizes = sizes_of(changed)
        return max(training_bytes(changed, modality, sizes)[0] for modality in modalities)

    def smaller() -> str:
        if max(sizes.subjects.values(), default=0) > MANY_VOXELS:
            return (
                "keep fewer voxels: prepare again with a mask of visual cortex (--mask; NSD's has"
                " 13 000 to 18 000 voxels)"
            )
        return advice(config, "train", to_train)

    tables = targets if on_gpu else 2 * targets
    needs = [Need(f"{what} to train", extra + training + tables, free, smaller, True)]
    if on_gpu:
        needs.append(Need("memory to train", LIBRARIES + 2 * targets, memory, smaller, True))
    for stage, need in stage_needs(config, encoders, priors).items():

        def hint(stage: str = stage) -> str:
            return advice(config, stage, lambda other: STAGES[stage](other, encoders, priors).total)

        needs.append(Need(f"{what} to {stage}", extra + need.total, free, hint, True))
    amounts = amounts_of(config)
    for stage, count in DATA_STAGES.items():

        def lower(stage: str = stage, count: Counted = count) -> str:
            return advice(
                config,
                stage,
                lambda other: count(other, sizes_of(other), amounts, image_encoder).total,
            )

        total = count(config, sizes, amounts, image_encoder).total
        needs.append(Need(f"{what} to {stage}", extra + total, free, lower, True))
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
