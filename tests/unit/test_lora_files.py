"""LoRAs in everybody's names come out as one and the same; what is none, or another's, is refused
with its kind.
"""

from __future__ import annotations

from collections.abc import Callable
import json
from pathlib import Path

from diffusers import StableDiffusionXLPipeline
import pytest
from safetensors.torch import load_file, save_file
import torch
from torch import Tensor
from unit.fake_backbone import fake_backbone, plain_unet
from unit.test_lora import called, randomised

from braingen.generation.lora import LORA_FILE, add_lora, load_lora, save_lora
from braingen.generation.lora_files import _of_stability, read_lora, unet_on_meta
from braingen.runtime.errors import UserError

Weights = dict[str, Tensor]
RANK = 3


@pytest.fixture(scope="module")
def tuned():
    unet = fake_backbone().unet
    add_lora(unet, RANK)
    randomised(unet)
    return unet


@pytest.fixture(scope="module")
def own(tuned, tmp_path_factory) -> Weights:
    saved = load_file(save_lora(tuned, tmp_path_factory.mktemp("own")))  # attention in older names
    names = {
        key: key.replace(".lora.down.", ".lora_A.").replace(".lora.up.", ".lora_B.")
        for key in saved
    }
    assert any(".lora.down." in key for key in names)
    return {name: saved[key] for key, name in names.items()}


def renamed(own: Weights, form: Callable[[str, str], str]) -> Weights:
    """Under other names: module and 'down' or 'up' -> key."""
    found = {}
    for key, value in own.items():
        module, _, which = key.removeprefix("unet.").removesuffix(".weight").rpartition(".lora_")
        found[form(module, {"A": "down", "B": "up"}[which])] = value.clone()
    return found


def letter(factor: str) -> str:
    return {"down": "A", "up": "B"}[factor]


def flat(module: str) -> str:
    return f"lora_unet_{module.replace('.', '_')}"


def processor(module: str, factor: str) -> str:
    if "attn" not in module:
        return f"unet.{module}.lora.{factor}.weight"
    head, _, part = module.removesuffix(".0").rpartition(".")
    return f"unet.{head}.processor.{part}_lora.{factor}.weight"


FORMS: dict[str, Callable[[str, str], str]] = {
    "diffusers": lambda module, factor: f"unet.{module}.lora.{factor}.weight",
    "diffusers, newer": lambda module, factor: f"unet.{module}.lora_{letter(factor)}.weight",
    "without prefix": lambda module, factor: f"{module}.lora_{letter(factor)}.weight",
    "named adapter": lambda m, factor: f"unet.{m}.lora_{letter(factor)}.default.weight",
    "peft": lambda m, factor: f"base_model.model.{m}.lora_{letter(factor)}.weight",
    "peft in diffusers": lambda m, f: f"unet.base_model.model.{m}.lora_{letter(f)}.weight",
    "attention processors": processor,
    "kohya": lambda module, factor: f"{flat(module)}.lora_{factor}.weight",
}


def same(found: Weights, own: Weights) -> None:
    assert found.keys() == own.keys()
    for key, value in own.items():
        torch.testing.assert_close(found[key], value, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("ending", [".safetensors", ".bin"])
@pytest.mark.slow
def test_every_form_is_the_same_lora(own, tuned, tmp_path, name, ending):
    path = tmp_path / f"lora{ending}"
    weights = renamed(own, FORMS[name])
    save_file(weights, path) if ending == ".safetensors" else torch.save(weights, path)
    same(read_lora(path, unet_on_meta(plain_unet().config)).weights, own)
    other = fake_backbone().unet
    load_lora(other, path)
    torch.testing.assert_close(called(other), called(tuned), rtol=0, atol=1e-5)


@pytest.mark.slow
def test_a_stock_pipeline_and_this_one_read_the_imported_file_alike(own, tuned, tmp_path):
    """Of several ranks, with alphas: what is written has one rank, and alpha the same."""
    weights: Weights = {}
    for number, (key, value) in enumerate(renamed(own, FORMS["kohya"]).items()):
        module, _, factor = key.removesuffix(".weight").partition(".lora_")
        if number // 2 % 3 == 0:  # a larger rank, its last row without effect
            zeros = (
                value.new_zeros(1, value.shape[1])
                if factor == "down"
                else value.new_zeros(len(value), 1)
            )
            value = torch.cat([value, zeros], dim=0 if factor == "down" else 1)
        rank = value.shape[0] if factor == "down" else value.shape[1]
        weights[key] = value * (2.0 if factor == "up" else 1.0)
        weights[f"{module}.alpha"] = torch.tensor(rank / 2)  # undoes the doubling
    save_file(weights, tmp_path / "kohya.safetensors")
    found = read_lora(tmp_path / "kohya.safetensors", plain_unet()).weights
    assert {value.shape["lora_B" in key] for key, value in found.items()} == {RANK + 1}
    (tmp_path / "imported").mkdir()
    save_file(found, tmp_path / "imported" / LORA_FILE)
    ours, backbone = fake_backbone().unet, fake_backbone()
    load_lora(ours, tmp_path / "imported")
    torch.testing.assert_close(called(ours), called(tuned), rtol=0, atol=1e-5)
    parts = dict.fromkeys(("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"))
    stock = StableDiffusionXLPipeline(
        vae=backbone.vae, unet=backbone.unet, scheduler=backbone.scheduler, **parts
    )
    stock.load_lora_weights(tmp_path / "imported")
    torch.testing.assert_close(called(stock.unet), called(tuned), rtol=0, atol=1e-5)


@pytest.mark.parametrize("where", ["header", "beside"])
@pytest.mark.slow
def test_alpha_is_found_where_it_is_stated(own, tmp_path, where):
    weights = renamed(own, FORMS["peft" if where == "beside" else "diffusers, newer"])
    settings = {"r": RANK, "lora_alpha": 2 * RANK, "alpha_pattern": {"attn1.to_q": RANK}}
    path = tmp_path / "adapter_model.safetensors"
    if where == "beside":
        save_file(weights, path)
        (tmp_path / "adapter_config.json").write_text(json.dumps(settings))
    else:
        named = {f"unet.{key}": value for key, value in settings.items()}
        save_file(weights, path, metadata={"lora_adapter_metadata": json.dumps(named)})
    found = read_lora(path, plain_unet()).weights
    for key, value in own.items():
        factor = 1.0 if "lora_A" in key or "attn1.to_q." in key else 2.0
        torch.testing.assert_close(found[key], value * factor, rtol=0, atol=1e-6)


def test_text_encoders_are_left_out(own, tmp_path):
    extra = {"lora_te1_text_model_encoder.lora_down.weight": torch.zeros(2, 2)}
    extra |= {"text_encoder.layers.0.lora_A.weight": torch.zeros(2, 2)}
    save_file({**own, **extra}, tmp_path / "a.safetensors")
    found = read_lora(tmp_path / "a.safetensors", plain_unet())
    assert found.left_out == 2
    same(found.weights, own)
    save_file(extra, tmp_path / "b.safetensors")
    with pytest.raises(UserError, match=r"no LoRA of a U-Net .* 2 weights are of text encoders"):
        read_lora(tmp_path / "b.safetensors", plain_unet())


def without(weights: Weights, ending: str) -> Weights:
    gone = next(key for key in weights if key.endswith(ending))
    return {key: value for key, value in weights.items() if key != gone}


BAD: dict[str, tuple[Callable[[Weights], Weights], str]] = {
    "nothing": (lambda own: {"a": torch.zeros(1)}, r"holds no LoRA of a U-Net .its entries: a."),
    "one factor": (lambda own: without(own, "lora_B.weight"), "1 modules have one factor of two"),
    "other ranks": (
        lambda own: {k: v[:1] if "lora_A" in k else v for k, v in own.items()},
        "of different ranks",
    ),
    "another U-Net, wider": (
        lambda own: {k: torch.cat([v, v], 1) if "lora_A" in k else v for k, v in own.items()},
        r"does not fit this U-Net: it adapts .* made for another U-Net",
    ),
    "another U-Net, deeper": (
        lambda own: {k.replace("mid_block", "mid_block.deep"): v for k, v in own.items()},
        "which it has not",
    ),
    "DoRA": (
        lambda own: own | {"unet.x.lora_magnitude_vector": torch.zeros(1)},
        "is a DoRA .*lora_magnitude_vector",
    ),
    "kohya's DoRA": (lambda own: own | {"lora_unet_x.dora_scale": torch.zeros(1)}, "is a DoRA"),
    "LoHa": (lambda own: {"lora_unet_x.hada_w1_a": torch.zeros(1)}, "is a LoHa"),
    "LoKr": (lambda own: {"lora_unet_x.lokr_w1": torch.zeros(1)}, "is a LoKr"),
    "LoCon": (lambda own: own | {"lora_unet_x.lora_mid.weight": torch.zeros(1)}, "is a LoCon"),
    "biases": (lambda own: own | {"unet.x.lora_B.bias": torch.zeros(1)}, "with biases"),
    "more": (lambda own: own | {"unet.conv_in.weight": torch.zeros(1)}, "are no factors of a LoRA"),
    "NaN": (lambda own: {k: v * torch.nan for k, v in own.items()}, "NaN or infinite"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_lora_of_this_unet_is_refused_with_its_kind(own, tmp_path, name):
    change, words = BAD[name]
    save_file(change(own), tmp_path / "x.safetensors")
    for reading in (
        lambda path: read_lora(path, unet_on_meta(plain_unet().config)),
        lambda path: load_lora(fake_backbone().unet, path),
    ):
        with pytest.raises(UserError, match=words):
            reading(tmp_path / "x.safetensors")


def test_without_the_unet_names_are_taken_as_they_are(own, tmp_path):
    save_file(own, tmp_path / "a.safetensors")
    same(read_lora(tmp_path / "a.safetensors", None).weights, own)
    save_file(renamed(own, FORMS["kohya"]), tmp_path / "b.safetensors")
    with pytest.raises(UserError, match=r"kohya's trainer .* set backbone\.path"):
        read_lora(tmp_path / "b.safetensors", None)


def test_block_names_of_stability():
    """Against SDXL's U-Net: one name for every block that has attention or layers."""
    pairs = {
        "input_blocks_4_1_transformer_blocks_0_attn1_to_q": (
            "down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q"
        ),
        "input_blocks_8_1_proj_in": "down_blocks_2_attentions_1_proj_in",
        "middle_block_1_proj_out": "mid_block_attentions_0_proj_out",
        "middle_block_2_in_layers_2": "mid_block_resnets_1_conv1",
        "output_blocks_0_1_proj_in": "up_blocks_0_attentions_0_proj_in",
        "output_blocks_5_1_proj_in": "up_blocks_1_attentions_2_proj_in",
        "output_blocks_2_2_conv": "up_blocks_0_upsamplers_0_conv",
        "input_blocks_1_0_emb_layers_1": "down_blocks_0_resnets_0_time_emb_proj",
        "input_blocks_3_0_op": "down_blocks_0_downsamplers_0_conv",
        "output_blocks_8_0_skip_connection": "up_blocks_2_resnets_2_conv_shortcut",
        "mid_block_attentions_0_proj_in": "mid_block_attentions_0_proj_in",
    }
    for theirs, ours in pairs.items():
        assert _of_stability(theirs) == ours


def test_a_file_that_is_no_file(tmp_path: Path):
    with pytest.raises(UserError, match="no LoRA in"):
        load_lora(plain_unet(), tmp_path / "none.safetensors")
