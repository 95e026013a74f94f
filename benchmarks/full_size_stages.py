"""The stages of `full_size.py`: what each loads, one step of it, and what doctor expects."""

from __future__ import annotations

# isort: off
import braingen  # noqa: F401  - before diffusers: prepares torchvision on CPU-only machines

# isort: on
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from diffusers import UNet2DConditionModel
import numpy as np
import torch
from torch import Tensor

from braingen.config import Config, load_config
from braingen.data.nsd import VOXELS
from braingen.diagnostics.needs import generating, latent_side, picture_side
from braingen.diagnostics.needs_by_data import Amounts, low_level_training
from braingen.diagnostics.resources import training_bytes
from braingen.diagnostics.summary import Sizes
from braingen.encoders.embedding_decoder import EmbeddingDecoder
from braingen.encoders.latent_encoder import LatentEncoder
from braingen.generation.accounting import (
    clip_working_bytes,
    tuning_bytes,
    unet_working_bytes,
    vae_working_bytes,
)
from braingen.generation.brain_encoders import BrainEncoders
from braingen.generation.lora import add_lora, lora_parameters
from braingen.generation.refine import setup as refiner_of
from braingen.generation.refiner import Refinement, refine_images
from braingen.generation.sampling import decode_latents, denoise, predict, size_ids
from braingen.pretrained.sdxl import encode_modes, load_backbone, load_vae
from braingen.pretrained.weight_files import model_files, numbers_in
from braingen.runtime.memory import return_large_blocks
from braingen.targets.clip_image import CLIPImageEncoder
from braingen.targets.clip_text import CLIPTextEncoderDual
from braingen.training.encoder import optimizer_of
from braingen.training.encoder import step as training_step
from braingen.training.encoder_setup import EncoderParts, build_embedding_decoder
from braingen.types import Conditioning, VoxelBatch

SIDE, LATENT, RANK, SUBJECT = 512, 64, 16, 1
IMAGES = 9000
"""For training."""
SIZES = Sizes({str(SUBJECT): VOXELS[SUBJECT]}, (1, 1280), (1, 1280), {"L": 768, "bigG": 1280}, ())
"""Of NSD's subject 1 and the published models."""


class Stage(NamedTuple):
    """What is loaded, and one step of it."""

    step: Callable[[], Any]
    expected: int
    """Bytes, as `braingen doctor` counts them."""


class Given(NamedTuple):
    """What a stage is run with."""

    folder: Path
    dtype: torch.dtype
    """Of the U-Net."""
    device: torch.device


def held(*models: Any) -> int:
    """Bytes of the weights of some models."""
    tensors = [x for model in models for x in (*model.parameters(), *model.buffers())]
    return sum(x.numel() * x.element_size() for x in tensors)


def published() -> Config:
    """The configuration of NSD's subject 1."""
    return load_config("nsd_subj01", {"run.device": "cpu"})


def image_targets(given: Given) -> Stage:
    encoder = CLIPImageEncoder.from_pretrained(given.folder, dtype=torch.float32).to(given.device)
    image = torch.rand(1, 3, SIDE, SIDE, device=given.device)
    return Stage(
        lambda: encoder(image), held(encoder) + clip_working_bytes(encoder.model.config, 1)
    )


def text_targets(given: Given) -> Stage:
    texts = CLIPTextEncoderDual.from_pretrained(given.folder, dtype=torch.float32).to(given.device)
    return Stage(lambda: texts([["a house on a hill"]]), held(texts))


def latents(given: Given) -> Stage:
    vae = load_vae(str(given.folder)).to(given.device)
    image = torch.rand(1, 3, SIDE, SIDE, device=given.device)
    working = vae_working_bytes(dict(vae.config), 1, SIDE, decoding=False)
    return Stage(torch.no_grad()(lambda: encode_modes(vae, image)), held(vae) + working)


def embedding_decoder(given: Given, modality: str) -> EmbeddingDecoder:
    """An encoder with its prior, random weights, published sizes."""
    target = SIZES.image if modality == "image" else SIZES.text
    return build_embedding_decoder(published(), {SUBJECT: VOXELS[SUBJECT]}, target).to(given.device)


def training(given: Given) -> Stage:
    config = published()
    model = embedding_decoder(given, "image").train()
    batch, generator = config.training.batch_size, torch.Generator().manual_seed(0)
    rows = np.arange(batch)
    parts = EncoderParts(
        model,
        None,  # type: ignore[arg-type]
        [],
        torch.randn(batch, *SIZES.image, device=given.device),
        rows,
        config.loss_image,
    )
    optimizer = optimizer_of(model, config)
    voxels = VoxelBatch(torch.randn(batch, VOXELS[SUBJECT]), torch.arange(batch), SUBJECT)

    def step() -> None:
        training_step(model, (voxels,), parts, 0.0, generator).total.backward()
        optimizer.step()

    return Stage(step, training_bytes(config, "image", SIZES)[0])


def low_level(given: Given) -> Stage:
    """Mean and spread of the latents of all images, then a step."""
    config = load_config(
        "nsd_subj01", {"run.device": given.device.type, "backbone.path": str(given.folder)}
    )
    side = latent_side(config, picture_side(config, config.low_level.resolution))
    settings = config.low_level.model_dump(exclude={"resolution", "num_epochs"})
    model = LatentEncoder({SUBJECT: VOXELS[SUBJECT]}, 4, side, **settings).to(given.device)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    # as they are kept: in half precision, in a file (of zeros, which take no place on the disk)
    table = np.lib.format.open_memmap(
        given.folder / "latents.npy", "w+", np.float16, (IMAGES, 4, side, side)
    )

    def step() -> None:
        model.set_scale(table, np.arange(IMAGES))
        voxels = torch.randn(config.training.batch_size, VOXELS[SUBJECT], device=given.device)
        model(voxels, SUBJECT).square().mean().backward()
        optimizer.step()

    return Stage(step, low_level_training(config, SIZES, Amounts(IMAGES, 3 * IMAGES), 0).total)


def condition(unet: UNet2DConditionModel) -> Conditioning:
    """A random condition, one row."""
    width, generator = unet.config.cross_attention_dim, torch.Generator().manual_seed(1)
    pooled = unet.add_embedding.linear_1.in_features - 6 * unet.config.addition_time_embed_dim
    shapes = ((1, 77, width), (1, 1, 1280), (1, pooled))
    return Conditioning(
        *(torch.randn(shape, generator=generator).to(unet.device) for shape in shapes)
    )


def noise(device: torch.device) -> Tensor:
    """Of one image."""
    generator = torch.Generator().manual_seed(2)
    return torch.randn(1, 4, LATENT, LATENT, generator=generator).to(device)


def generate(given: Given) -> Stage:
    unet, vae, scheduler = load_backbone(str(given.folder), dtype=given.dtype)
    unet.to(given.device), vae.to(given.device)
    working = unet_working_bytes(dict(unet.config), 2, LATENT, given.dtype)
    expected = held(unet, vae) + max(working, vae_working_bytes(dict(vae.config), 1, SIDE))
    wanted = condition(unet)
    empty = Conditioning(*(torch.zeros_like(x) for x in wanted[:3]))  # type: ignore[arg-type]

    def step() -> Tensor:
        settings = {"size": SIDE, "steps": 1, "guidance_scale": 5.0}
        drawn = denoise(unet, scheduler, noise(given.device), lambda *_: wanted, empty, **settings)
        return decode_latents(vae, drawn)

    return Stage(step, expected)


def generate_after_decoding(given: Given) -> Stage:
    """As `braingen reconstruct`: decoding, and the U-Net when the encoders are gone."""
    settings = {
        "backbone.path": str(given.folder),
        "generation.precision": str(given.dtype).removeprefix("torch."),
        "generation.size": str(SIDE),
        "generation.batch_size": "1",
        "run.device": given.device.type,
    }
    encoders = BrainEncoders(*(embedding_decoder(given, name).eval() for name in ("image", "text")))
    expected = generating(load_config(None, settings), held(encoders.image, encoders.text) // 4)

    def step() -> Tensor:
        voxels = torch.randn(1, 3, VOXELS[SUBJECT], device=given.device)
        encoders.decode_embeddings(voxels, SUBJECT, [0], experts=True)
        encoders.release()
        return generate(given).step()

    return Stage(step, expected.total)


def refine(given: Given) -> Stage:
    settings = {
        "backbone.path": str(given.folder),
        "backbone.refiner": str(given.folder / "refiner"),
        "generation.precision": str(given.dtype).removeprefix("torch."),
        "run.device": given.device.type,
    }
    refiner = refiner_of(load_config(None, settings))
    working = unet_working_bytes(dict(refiner.unet.config), 2, LATENT, given.dtype)
    needed = [working, vae_working_bytes(dict(refiner.vae.config), 1, SIDE)]
    if given.device.type == "cpu":  # the text encoder, given back before the first step
        files = model_files(given.folder / "refiner" / "text_encoder_2", "transformers")
        needed.append(4 * numbers_in(files))
    width = refiner.form.text_columns[1] - refiner.form.text_columns[0]
    image, text = torch.rand(1, 3, SIDE, SIDE), torch.randn(1, 1, width)
    how = Refinement(4, 0.25, 5.0)
    return Stage(
        lambda: refine_images(refiner, image.to(given.device), text, [0], how),
        held(refiner.unet, refiner.vae) + max(needed),
    )


def fine_tune(given: Given) -> Stage:
    unet = load_backbone(str(given.folder), dtype=given.dtype, with_vae=False).unet
    unet.to(given.device)
    if given.device.type == "cpu":  # as `braingen finetune`
        return_large_blocks(unet.get_memory_footprint())
    settings = dict(unet.config)
    add_lora(unet, RANK)
    trained = list(lora_parameters(unet).values())
    for parameter in trained:
        parameter.data = parameter.data.float()
    unet.enable_gradient_checkpointing()
    unet.train()
    tuning = tuning_bytes(settings, 1, LATENT, given.dtype, RANK, True)
    optimizer = torch.optim.AdamW(trained)
    wanted, noisy = condition(unet), noise(given.device)

    def step() -> None:
        out = predict(unet, noisy, torch.tensor([500]), wanted, size_ids(SIDE, 1, noisy))
        out.square().mean().backward()
        optimizer.step()

    # gradients are among what a pass works with; two moments are not
    return Stage(step, held(unet) + 8 * tuning.lora + tuning.working)


STAGES: dict[str, Callable[[Given], Stage]] = {
    "image targets": image_targets,
    "text targets": text_targets,
    "latents": latents,
    "training": training,
    "train low_level": low_level,
    "generate": generate,
    "decode, then generate": generate_after_decoding,
    "refine": refine,
    "fine-tune": fine_tune,
}
