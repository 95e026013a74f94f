"""What draws, at full size on the meta device: the published numbers of parameters, without the
memory.
"""

from __future__ import annotations

from diffusers import UNet2DConditionModel
import pytest
import torch
from unit.test_sdxl import SDXL

from braingen.generation.lora import TARGETS, add_lora, lora_parameters
from braingen.pretrained.sdxl import add_ip_adapter, image_embedding_width, ip_adapter_weights

PLAIN = 2_567_463_684
"""Parameters of SDXL's U-Net."""
ADAPTER = 351_285_248
"""Parameters of h94/IP-Adapter's sdxl_models/ip-adapter_sdxl.safetensors: a file of 703 MB in half
precision.
"""
RANK = 16


def adapter_of(unet: UNet2DConditionModel) -> dict[str, torch.Tensor]:
    """The names and shapes of the IP-Adapter made for ViT-bigG/14: four tokens out of 1280 numbers,
    two maps per cross-attention.
    """
    width = unet.config.cross_attention_dim
    weights = {
        "image_proj.proj.weight": torch.empty(4 * width, 1280),
        "image_proj.proj.bias": torch.empty(4 * width),
    }
    weights |= {
        "image_proj.norm.weight": torch.empty(width),
        "image_proj.norm.bias": torch.empty(width),
    }
    modules = dict(unet.named_modules())
    cross = [name.removesuffix(".processor") for name in unet.attn_processors if "attn2" in name]
    for order, name in enumerate(cross):
        for part in ("to_k_ip", "to_v_ip"):
            weights[f"ip_adapter.{2 * order + 1}.{part}.weight"] = torch.empty(
                modules[name].inner_dim, width
            )
    return weights


def sdxl_with_adapter() -> UNet2DConditionModel:
    """To be called under ``torch.device("meta")``."""
    unet = UNet2DConditionModel(**SDXL)
    add_ip_adapter(unet, adapter_of(unet))
    return unet.eval()


def count(parameters) -> int:
    return sum(parameter.numel() for parameter in parameters)


@pytest.fixture(scope="module")
def unet() -> UNet2DConditionModel:
    with torch.device("meta"):
        return sdxl_with_adapter()


@pytest.mark.slow
def test_the_unet_and_its_adapter_have_their_published_sizes(unet):
    assert count(adapter_of(unet).values()) == count(ip_adapter_weights(unet).values()) == ADAPTER
    assert (
        len(ip_adapter_weights(unet)) == 4 + 2 * 70
        and max(int(k.split(".")[1]) for k in ip_adapter_weights(unet) if "_ip." in k) == 139
    )
    assert count(unet.parameters()) == PLAIN + ADAPTER
    assert image_embedding_width(unet) == 1280


@pytest.mark.slow
def test_a_lora_of_rank_16_adds_two_factors_to_every_target(unet):
    layers = {
        n: m
        for n, m in unet.named_modules()
        if isinstance(m, torch.nn.Linear) and n.endswith(tuple(f".{t}" for t in TARGETS))
    }
    expected = sum(RANK * (layer.in_features + layer.out_features) for layer in layers.values())
    with torch.device("meta"):
        add_lora(unet, RANK)
    assert (
        len(layers) == 2 * 70 * 4 + 70 * 2
    )  # self- and cross-attention of 70 blocks, and their feed-forward layers
    assert count(lora_parameters(unet).values()) == expected
    assert count(unet.parameters()) == PLAIN + ADAPTER + expected
    assert {name for name, parameter in unet.named_parameters() if parameter.requires_grad} == set(
        lora_parameters(unet)
    )
    assert expected == 41_861_120
