"""LoRA: nothing changes at first, it is saved as diffusers saves it, and what is merged comes out
again.
"""

from __future__ import annotations

from diffusers import StableDiffusionXLPipeline
import pytest
import torch
from unit.fake_backbone import fake_backbone, plain_unet

from braingen.generation.lora import (
    LORA_FILE,
    TARGETS,
    add_lora,
    has_lora,
    load_lora,
    lora_parameters,
    lora_weights,
    merged_lora,
    save_lora,
)
from braingen.pretrained.sdxl import without_ip_adapter
from braingen.runtime.errors import UserError


def called(unet, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    added = {"text_embeds": draw(2, 128), "time_ids": draw(2, 6), "image_embeds": [draw(2, 1, 128)]}
    with torch.no_grad():
        return unet(
            draw(2, 4, 8, 8),
            torch.tensor(500),
            encoder_hidden_states=draw(2, 6, 224),
            added_cond_kwargs=added,
        ).sample


def randomised(unet) -> None:
    """A LoRA as if trained."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in lora_parameters(unet).values():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)


def test_a_fresh_one_changes_nothing_and_reaches_every_target():
    unet = fake_backbone().unet
    before = called(unet)
    add_lora(unet, 4)
    assert torch.equal(called(unet), before)
    adapted = {name.split(".lora_")[0] for name in lora_parameters(unet)}
    wanted = {name for name, _ in plain_unet().named_modules() if name.endswith(TARGETS)}
    assert adapted == wanted and len(wanted) > 10
    assert not any("_ip" in name for name in adapted)
    assert [name for name, parameter in unet.named_parameters() if parameter.requires_grad] == list(
        lora_parameters(unet)
    )
    with pytest.raises(UserError, match="a LoRA already"):
        add_lora(unet, 4)


@pytest.mark.slow
def test_saved_and_loaded_it_does_the_same(tmp_path):
    unet = fake_backbone().unet
    add_lora(unet, 3)
    randomised(unet)
    assert save_lora(unet, tmp_path) == tmp_path / LORA_FILE and (tmp_path / LORA_FILE).is_file()
    other = fake_backbone().unet
    plain = called(other)
    load_lora(other, tmp_path)
    assert (called(other) - plain).abs().max() > 1e-3
    torch.testing.assert_close(called(other), called(unet), rtol=0, atol=1e-5)
    assert not any(parameter.requires_grad for parameter in other.parameters())


@pytest.mark.slow
def test_a_stock_pipeline_loads_it(tmp_path):
    """StableDiffusionXLPipeline.load_lora_weights takes what is saved here, whole."""
    unet = fake_backbone().unet
    add_lora(unet, 3)
    randomised(unet)
    save_lora(unet, tmp_path)
    backbone = fake_backbone()
    parts = {
        "text_encoder": None,
        "text_encoder_2": None,
        "tokenizer": None,
        "tokenizer_2": None,
        "scheduler": backbone.scheduler,
    }
    stock = StableDiffusionXLPipeline(vae=backbone.vae, unet=backbone.unet, **parts)
    stock.load_lora_weights(tmp_path)
    torch.testing.assert_close(called(stock.unet), called(unet), rtol=0, atol=1e-5)
    loaded = {name: value for name, value in stock.unet.named_parameters() if ".lora_" in name}
    assert len(loaded) == len(lora_weights(unet))


def test_merging_twice_is_merging_once_and_comes_out_again():
    unet = fake_backbone().unet
    add_lora(unet, 3)
    randomised(unet)
    expected = called(unet)
    with merged_lora(unet), merged_lora(unet):
        torch.testing.assert_close(called(unet), expected, rtol=0, atol=1e-4)
    torch.testing.assert_close(called(unet), expected, rtol=0, atol=1e-4)


@pytest.mark.slow
def test_the_plain_unet_can_be_taken_out_from_under_it():
    unet = fake_backbone().unet
    expected = dict(without_ip_adapter(unet).state_dict())
    add_lora(unet, 3)
    plain = without_ip_adapter(unet)
    assert not has_lora(plain)
    for key, value in plain.state_dict().items():
        assert torch.equal(value, expected[key])


@pytest.mark.slow
def test_another_unets_is_refused(tmp_path):
    with pytest.raises(UserError, match="There is no LoRA in"):
        load_lora(fake_backbone().unet, tmp_path)
    unet = fake_backbone().unet
    add_lora(unet, 3)
    weights = {
        key.replace("down_blocks.1", "down_blocks.7"): value.contiguous()
        for key, value in lora_weights(unet).items()
    }
    StableDiffusionXLPipeline.save_lora_weights(tmp_path, unet_lora_layers=weights)
    with pytest.raises(UserError, match="LoRA in"):
        load_lora(fake_backbone().unet, tmp_path)
