"""Counted operations follow the laws of the passes, and hours the arithmetic."""

from __future__ import annotations

import pytest
from transformers import CLIPVisionConfig
from unit.fake_backbone import plain_unet, small_vae

from braingen.config import load_config
from braingen.diagnostics.hours import Load, hours, operations_of
from braingen.generation.operations import (
    clip_operations,
    tuning_operations,
    unet_operations,
    vae_operations,
)

UNET, VAE = dict(plain_unet().config), dict(small_vae().config)
LOAD = Load(images=3, trials=5, test_images=2, parameters=7)


@pytest.mark.slow
def test_a_pass_is_linear_in_its_rows():
    one = unet_operations(UNET, 1, 8)
    assert one > 0 and unet_operations(UNET, 3, 8) == 3 * one
    assert vae_operations(VAE, 3, 32) == 3 * vae_operations(VAE, 1, 32)
    assert vae_operations(VAE, 1, 64) == pytest.approx(4 * vae_operations(VAE, 1, 32), rel=0.01)
    assert vae_operations(VAE, 1, 32, decoding=False) < vae_operations(VAE, 1, 32)


def test_a_tower_is_counted_as_by_hand():
    settings = {"hidden_size": 8, "intermediate_size": 32, "num_hidden_layers": 1}
    settings |= {"num_attention_heads": 2, "projection_dim": 4, "image_size": 8, "patch_size": 4}
    tokens, width, wide = 5, 8, 32
    patches = 2 * 4 * width * 3 * 4 * 4
    block = 2 * tokens * (4 * width * width + 2 * width * wide) + 2 * 2 * tokens * tokens * width
    assert clip_operations(CLIPVisionConfig(**settings), 1) == patches + block + 2 * width * 4


@pytest.mark.slow
def test_a_frozen_unet_is_tuned_for_less_than_three_passes_and_checkpointing_adds_one():
    one = unet_operations(UNET, 2, 8)
    tuned = tuning_operations(UNET, 2, 8, rank=2)
    assert one < tuned < 3 * one  # no gradient goes further than the first LoRA
    assert tuning_operations(UNET, 2, 8, rank=2, checkpointing=True) == tuned + one


def operations(**more: str) -> dict[str, int]:
    settings = {name.replace("__", "."): value for name, value in more.items()}
    config = load_config(None, {"generation.size": "32", "finetune.resolution": "32", **settings})
    return operations_of(config, LOAD, 32, UNET, UNET, VAE)


@pytest.mark.slow
def test_stages_cost_what_their_settings_say():
    plain = operations(generation__steps="10", generation__guidance_scale="1")
    one, decoding = unet_operations(UNET, 1, 8), vae_operations(VAE, 1, 32)
    assert plain["generate"] == 2 * (10 * one + decoding)
    guided = operations(generation__steps="10", generation__guidance_scale="2")
    assert guided["generate"] == 2 * (20 * one + decoding)
    half = {"generation__steps": "10", "generation__guidance_end": "0.5"}
    assert operations(**half)["generate"] == 2 * (15 * one + decoding)
    assert operations(**half, generation__samples="3")["generate"] == 6 * (15 * one + decoding)
    refined = operations(refinement__steps="10", refinement__strength="0.3")
    assert refined["refine"] == 2 * (6 * one + decoding)
    tuned = operations(
        finetune__max_train_steps="4",
        finetune__train_batch_size="3",
        finetune__gradient_accumulation_steps="2",
        finetune__gradient_checkpointing="false",
    )
    assert tuned["fine-tune"] == 24 * tuning_operations(UNET, 1, 8, 16)
    assert operations(training__num_epochs="9")["train"] == 6 * 7 * 5 * 9


def test_hours_are_operations_by_what_a_gpu_reaches():
    assert hours(3.6e15, tflops=10, share=0.1) == pytest.approx(1.0)
    assert hours(3.6e15, tflops=20, share=0.1) == pytest.approx(0.5)
