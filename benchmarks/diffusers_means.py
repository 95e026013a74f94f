"""What diffusers' means cost or gain on the tiny backbone: each beside the plain way, in turns.

    python benchmarks/diffusers_means.py --rounds 7

One denoising step of a batch under guidance, or one decoding of a batch, with one thread, in
processor seconds: other work on the machine counts less in them than in those of the clock. Every
round measures the plain way and each of the means, in another order; printed are the median of the
rounds' ratios to the plain way of the same round, the least and the largest, and the largest
difference of what came out. A U-Net with a LoRA of rank 16, in float32. Prints a Markdown table.
"""

from __future__ import annotations

# isort: off
import braingen  # noqa: F401  - before diffusers: prepares torchvision on CPU-only machines

# isort: on
import argparse
from collections.abc import Callable
from copy import deepcopy
import random
import statistics
import time

from diffusers import UNet2DConditionModel
import torch
from torch import Tensor

from braingen.generation.lora import add_lora, lora_parameters
from braingen.generation.sampling import decode_latents, predict, size_ids
from braingen.generation.speed import compile_blocks
from braingen.pretrained.sdxl import image_size, load_backbone, vae_factor
from braingen.types import Conditioning

RANK, TIME = 16, 500


def tuned(unet: UNet2DConditionModel) -> UNet2DConditionModel:
    """The U-Net with a LoRA that changes what it predicts."""
    add_lora(unet, RANK)
    generator = torch.Generator().manual_seed(3)
    for parameter in lora_parameters(unet).values():
        parameter.data = 0.02 * torch.randn(parameter.shape, generator=generator)
    return unet.requires_grad_(False).eval()


def condition(unet: UNet2DConditionModel, rows: int) -> Conditioning:
    """A random condition."""
    width, generator = unet.config.cross_attention_dim, torch.Generator().manual_seed(1)
    pooled = unet.add_embedding.linear_1.in_features - 6 * unet.config.addition_time_embed_dim
    image = unet.encoder_hid_proj.image_projection_layers[0].image_embeds.in_features
    shapes = ((rows, 77, width), (rows, 1, image), (rows, pooled))
    return Conditioning(*(torch.randn(shape, generator=generator) for shape in shapes))


def ways(batch: int) -> dict[str, dict[str, Callable[[], Tensor]]]:
    """What is compared: by the work, by the way."""
    plain, vae, _ = load_backbone("tiny")
    side = image_size(plain, vae) // vae_factor(vae)
    given = condition(plain, 2 * batch)
    plain = tuned(plain)
    generator = torch.Generator().manual_seed(2)
    noisy = torch.randn(2 * batch, plain.config.in_channels, side, side, generator=generator)
    ids = size_ids(image_size(plain, vae), 2 * batch, noisy)

    def step(unet: UNet2DConditionModel) -> Callable[[], Tensor]:
        return lambda: predict(unet, noisy, torch.tensor(TIME), given, ids)

    fused, last, compiled = (deepcopy(plain) for _ in range(3))
    fused.fuse_lora()
    both = deepcopy(fused).to(memory_format=torch.channels_last)
    last.to(memory_format=torch.channels_last)
    compile_blocks(compiled)
    sliced, tiled = deepcopy(vae), deepcopy(vae)
    sliced.enable_slicing(), tiled.enable_tiling()
    first = deepcopy(vae).to(memory_format=torch.contiguous_format)

    def decode(each: torch.nn.Module) -> Callable[[], Tensor]:
        return lambda: decode_latents(each, noisy[:batch])

    return {
        "a step": {
            "plain": step(plain),
            "fuse_lora": step(fused),
            "channels_last": step(last),
            "both": step(both),
            "torch.compile of blocks": step(compiled),
        },
        "decoding": {
            "channels_last, as loaded": decode(vae),
            "contiguous": decode(first),
            "VAE slicing": decode(sliced),
            "VAE tiling": decode(tiled),
        },
    }


def main() -> None:
    """Measure in turns, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--batch", type=int, default=8, help="images at once")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    turns = random.Random(0)
    print("| work | way | ratio of seconds: median (least, largest) | largest difference |")
    print("| --- | --- | ---: | ---: |")
    with torch.no_grad():
        for work, those in ways(asked.batch).items():
            base = next(iter(those))
            out = {way: run() for way, run in those.items()}  # compiled here
            seconds: dict[str, list[float]] = {way: [] for way in those}
            for _ in range(asked.rounds):
                order = list(those)
                turns.shuffle(order)
                for way in order:
                    began = time.process_time()
                    those[way]()
                    seconds[way].append(time.process_time() - began)
            for way in those:
                ratios = [x / y for x, y in zip(seconds[way], seconds[base])]
                far = (out[way] - out[base]).abs().max().item()
                spread = f"{min(ratios):.2f}, {max(ratios):.2f}"
                print(
                    f"| {work} | {way} | {statistics.median(ratios):.2f} ({spread}) | {far:.1e} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
