"""Every stage with a backbone of the published structure and random weights, for one step.

    python benchmarks/full_size.py FOLDER                      # Stable Diffusion XL's sizes, bf16
    python benchmarks/full_size.py FOLDER --scale 0.2          # a fifth of the channels

FOLDER is filled with the weights first (13 GB at full size; kept for the next time). Each stage
runs in a process of its own. Printed for each: seconds to load and of one step, the memory of its
own at the peak (beyond what the libraries take), what it maps from files, and what `braingen
doctor` expects. Random weights draw noise: this measures sizes and times, no quality.
"""

from __future__ import annotations

# isort: off
import braingen  # noqa: F401  - before diffusers: prepares torchvision on CPU-only machines

# isort: on
import argparse
from collections.abc import Callable
import json
from pathlib import Path
import shutil
import subprocess
import sys
import threading
import time
from typing import Any

from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.schedulers import EulerDiscreteScheduler
import torch
from transformers import (
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
)

from braingen.config.shipped import TINY
from braingen.diagnostics.needs import REFINER, SDXL, SDXL_VAE
from braingen.generation.accounting import (
    BIG_G,
    clip_working_bytes,
    tuning_bytes,
    unet_working_bytes,
    vae_working_bytes,
)
from braingen.generation.lora import add_lora, lora_parameters
from braingen.generation.refiner import Refinement, load_refiner, refine_images
from braingen.generation.sampling import decode_latents, denoise, predict, size_ids
from braingen.pretrained.sdxl import encode_modes, load_backbone, load_vae
from braingen.pretrained.weight_files import model_files, numbers_in
from braingen.targets.clip_image import CLIPImageEncoder
from braingen.targets.clip_text import CLIPTextEncoderDual
from braingen.types import Conditioning

STAGES = ("image targets", "text targets", "latents", "generate", "refine", "fine-tune")
SIDE, SPREAD = 512, 0.02
BYTES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}


def scaled(sizes: dict[str, Any], scale: float) -> dict[str, Any]:
    """A U-Net's configuration with fewer channels, 64 to a head as in the published one."""
    channels = [max(64, round(c * scale / 64) * 64) for c in sizes["block_out_channels"]]
    return sizes | {
        "block_out_channels": channels,
        "attention_head_dim": [c // 64 for c in channels],
    }


def write_model(model: torch.nn.Module, folder: Path, stem: str, dtype: torch.dtype) -> int:
    """Random weights for a model on the meta device, tensor by tensor: little memory."""
    folder.mkdir(parents=True, exist_ok=True)
    model.config.to_json_file(folder / "config.json") if hasattr(
        model.config, "to_json_file"
    ) else model.save_config(folder)
    return write_tensors(
        {name: tuple(value.shape) for name, value in model.state_dict().items()},
        folder / f"{stem}{'.fp16' if dtype != torch.float32 else ''}.safetensors",
        dtype,
    )


def write_tensors(shapes: dict[str, tuple[int, ...]], path: Path, dtype: torch.dtype) -> int:
    """A safetensors file of random tensors; norms are one, biases zero."""
    path.parent.mkdir(parents=True, exist_ok=True)
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in shapes.items():
        size = dtype.itemsize * int(torch.Size(shape).numel())
        header[name] = {"dtype": BYTES[dtype], "shape": shape, "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    generator = torch.Generator().manual_seed(0)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, shape in shapes.items():
            if len(shape) > 1:
                values = SPREAD * torch.randn(shape, generator=generator)
            else:
                values = torch.full(shape, float("norm" in name and name.endswith("weight")))
            file.write(values.to(dtype).contiguous().view(torch.uint8).numpy().tobytes())
    return end


def build(folder: Path, scale: float) -> None:
    """Write the parts that are not there yet, in half precision except for the VAE."""
    half = torch.float16
    width = 2048 if scale == 1 else 64 * max(2, round(2048 * scale / 64))
    text_width = 1280 if scale == 1 else width - 64
    base = {**scaled(SDXL, scale), "cross_attention_dim": width}
    base["projection_class_embeddings_input_dim"] = 6 * 256 + text_width
    refiner = {**scaled(REFINER, scale), "cross_attention_dim": text_width}
    refiner["projection_class_embeddings_input_dim"] = 5 * 256 + text_width
    text = CLIPTextConfig(
        hidden_size=text_width,
        intermediate_size=4 * text_width,
        projection_dim=text_width,
        num_hidden_layers=32 if scale == 1 else 4,
        num_attention_heads=text_width // 64,
    )
    vision = CLIPVisionConfig(**(BIG_G if scale == 1 else {**BIG_G, "num_hidden_layers": 4}))
    parts: dict[str, Callable[[], torch.nn.Module]] = {
        "unet": lambda: UNet2DConditionModel(**base),
        "vae": lambda: AutoencoderKL(**SDXL_VAE, scaling_factor=0.13025),
        "text_encoder_2": lambda: CLIPTextModelWithProjection(text),
        "image_encoder": lambda: CLIPVisionModelWithProjection(vision),
        "refiner/unet": lambda: UNet2DConditionModel(**refiner),
    }
    for name, make in parts.items():
        if (folder / name).is_dir():
            continue
        stem = "model" if "encoder" in name else "diffusion_pytorch_model"
        began = time.monotonic()
        with torch.device("meta"):
            model = make()
        size = write_model(model, folder / name, stem, torch.float32 if name == "vae" else half)
        print(f"  wrote {name}: {size / 1e9:.2f} GB in {time.monotonic() - began:.0f} s")
        if name == "unet":
            cross = [key for key in model.attn_processors if "attn2" in key]
            inner = dict(model.named_modules())
            shapes = {"image_proj.proj.weight": (4 * width, 1280)}
            shapes |= {"image_proj.proj.bias": (4 * width,)}
            shapes |= {f"image_proj.norm.{k}": (width,) for k in ("weight", "bias")}
            for order, key in enumerate(cross):
                out = inner[key.removesuffix(".processor")].inner_dim
                for part in ("to_k_ip", "to_v_ip"):
                    shapes[f"ip_adapter.{2 * order + 1}.{part}.weight"] = (out, width)
            file = folder / "ip_adapter" / "ip-adapter.safetensors"
            write_tensors(shapes, file, half)
    EulerDiscreteScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1
    ).save_pretrained(folder / "scheduler")
    shutil.copytree(TINY / "tokenizer_2", folder / "tokenizer_2", dirs_exist_ok=True)
    for name in ("vae", "scheduler", "text_encoder_2", "tokenizer_2"):
        link = folder / "refiner" / name
        if not link.exists():
            link.symlink_to(Path("..") / name)


class Memory(threading.Thread):
    """Watches the memory of this process: its own, and what it maps from files."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.before, self.peak, self.mapped = self._read()[0], 0, 0
        self.start()

    @staticmethod
    def _read() -> tuple[int, int]:
        lines = dict(
            line.split(":", 1)
            for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
        )
        own, file = (int(lines[name].split()[0]) * 1024 for name in ("RssAnon", "RssFile"))
        return own, file

    def run(self) -> None:
        while True:
            own, file = self._read()
            self.peak, self.mapped = max(self.peak, own), max(self.mapped, file)
            time.sleep(0.02)


def condition(unet: UNet2DConditionModel) -> Conditioning:
    """A random condition, one row."""
    width = unet.config.cross_attention_dim
    pooled = unet.add_embedding.linear_1.in_features - 6 * unet.config.addition_time_embed_dim
    return Conditioning(torch.randn(1, 77, width), torch.randn(1, 1, 1280), torch.randn(1, pooled))


def run_stage(folder: Path, name: str, dtype: torch.dtype) -> dict[str, float]:
    """Load a stage's models and run a step of it; expected are the bytes of `braingen doctor`."""
    torch.manual_seed(0)
    memory, began = Memory(), time.monotonic()
    image, latent = torch.rand(1, 3, SIDE, SIDE), SIDE // 8

    def weights(*models: Any) -> int:
        tensors = [x for model in models for x in (*model.parameters(), *model.buffers())]
        return sum(x.numel() * x.element_size() for x in tensors)

    if name == "image targets":
        encoder = CLIPImageEncoder.from_pretrained(folder, dtype=torch.float32)
        expected = weights(encoder) + clip_working_bytes(encoder.model.config, 1)
        step: Callable[[], Any] = lambda: encoder(image)  # noqa: E731
    elif name == "text targets":
        texts = CLIPTextEncoderDual.from_pretrained(folder, dtype=torch.float32)
        expected = weights(texts)
        step = lambda: texts([["a house on a hill"]])  # noqa: E731
    elif name == "latents":
        vae = load_vae(str(folder))
        expected = weights(vae) + vae_working_bytes(dict(vae.config), 1, SIDE, decoding=False)
        step = torch.no_grad()(lambda: encode_modes(vae, image))
    elif name == "generate":
        unet, vae, scheduler = load_backbone(str(folder), dtype=dtype)
        settings = dict(unet.config)
        working = unet_working_bytes(settings, 2, latent, dtype)
        expected = weights(unet, vae) + max(working, vae_working_bytes(dict(vae.config), 1, SIDE))
        given, noise = condition(unet), torch.randn(1, 4, latent, latent)
        empty = Conditioning(*(torch.zeros_like(x) for x in given[:3]))  # type: ignore[arg-type]

        def step() -> Any:
            latents = denoise(
                unet,
                scheduler,
                noise,
                lambda *_: given,
                empty,
                size=SIDE,
                steps=1,
                guidance_scale=5,
            )
            return decode_latents(vae, latents)
    elif name == "refine":
        refiner = load_refiner(str(folder / "refiner"), dtype=dtype)
        settings = dict(refiner.unet.config)
        working = unet_working_bytes(settings, 2, latent, dtype)
        text = model_files(folder / "refiner" / "text_encoder_2", "transformers")
        at_setup = 4 * numbers_in(text)  # the text encoder, given back before the first step
        decoding = vae_working_bytes(dict(refiner.vae.config), 1, SIDE)
        expected = weights(refiner.unet, refiner.vae) + max(working, decoding, at_setup)
        width = refiner.form.text_columns[1] - refiner.form.text_columns[0]
        how = Refinement(4, 0.25, 5.0)
        step = lambda: refine_images(refiner, image, torch.randn(1, 1, width), [0], how)  # noqa: E731
    else:
        unet = load_backbone(str(folder), dtype=dtype, with_vae=False).unet
        settings = dict(unet.config)
        add_lora(unet, 16)
        trained = list(lora_parameters(unet).values())
        for parameter in trained:
            parameter.data = parameter.data.float()
        unet.enable_gradient_checkpointing()
        unet.train()
        tuning = tuning_bytes(settings, 1, latent, dtype, 16, True)
        # gradients are among what a pass works with; two moments are not
        expected = weights(unet) + 8 * tuning.lora + tuning.working
        optimizer = torch.optim.AdamW(trained)
        given, noise = condition(unet), torch.randn(1, 4, latent, latent)

        def step() -> Any:
            out = predict(unet, noise, torch.tensor([500]), given, size_ids(SIDE, 1, noise))
            out.square().mean().backward()
            optimizer.step()

    loaded = time.monotonic()
    step()
    ended = time.monotonic()
    time.sleep(0.05)
    return {
        "load_s": loaded - began,
        "step_s": ended - loaded,
        "own_gb": (memory.peak - memory.before) / 1e9,
        "mapped_gb": memory.mapped / 1e9,
        "expected_gb": expected / 1e9,
    }


def main() -> None:
    """Build, run every stage in a process of its own, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--scale", type=float, default=1.0, help="of the U-Nets' channels")
    parser.add_argument("--dtype", choices=["bfloat16", "float16", "float32"], default="bfloat16")
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES))
    parser.add_argument("--only", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.only:
        print(json.dumps(run_stage(given.folder, given.only, getattr(torch, given.dtype))))
        return
    build(given.folder, given.scale)
    columns = ["loading, s", "a step, s", "own memory, GB", "mapped, GB", "expected, GB"]
    print("| stage |", " | ".join([*columns, "own / expected"]), "|")
    print("| --- |" + " ---: |" * 6)
    for name in given.stages:
        words = [sys.executable, __file__, str(given.folder), "--only", name]
        done = subprocess.run(
            [*words, "--dtype", given.dtype], stdout=subprocess.PIPE, encoding="utf-8", check=False
        )
        if done.returncode:
            print(f"| {name} | failed (exit code {done.returncode}) | | | | | |", flush=True)
            continue
        found = json.loads(done.stdout.strip().splitlines()[-1])
        print(
            f"| {name} | {found['load_s']:.0f} | {found['step_s']:.1f} | {found['own_gb']:.2f}"
            f" | {found['mapped_gb']:.2f} | {found['expected_gb']:.2f}"
            f" | {found['own_gb'] / found['expected_gb']:.2f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
