"""Random weights of the published structure in a folder, for `full_size.py`."""

from __future__ import annotations

# isort: off
import braingen  # noqa: F401  - before diffusers: prepares torchvision on CPU-only machines

# isort: on
from collections.abc import Callable
import json
from pathlib import Path
import shutil
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
from braingen.generation.accounting import BIG_G

SPREAD = 0.02
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
