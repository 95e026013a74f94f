"""Memory format, compiled blocks and a fused LoRA draw the pictures of the plain U-Net, where they
are asked for.
"""

from __future__ import annotations

from copy import deepcopy
import shutil
from typing import Any

import numpy as np
import pytest
import torch
import torch._inductor.config
from unit.fake_backbone import fake_backbone, write_fake_backbone, write_fake_refiner
from unit.test_decoder import decoder_of, pixels, voxels
from unit.test_lora import called, randomised

from braingen.config import Config, load_config
from braingen.generation import decode, refine, speed
from braingen.generation.lora import add_lora, is_fused
from braingen.generation.pipeline import BrainDecoder
from braingen.generation.speed import prepare_unet
from braingen.runtime.errors import UserError

pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation:DeprecationWarning"
)  # of diffusers' scheduler
FEW: dict[str, Any] = {"num_inference_steps": 2, "guidance_scale": 2.0}


def config_of(**more: str) -> Config:
    return load_config(
        None, {"run.device": "cpu"} | {f"generation.{name}": value for name, value in more.items()}
    )


def is_channels_last(unet: torch.nn.Module) -> bool:
    weight = unet.conv_in.weight
    return weight.is_contiguous(memory_format=torch.channels_last) and not weight.is_contiguous()


def compiled(unet: torch.nn.Module) -> int:
    """How many transformer blocks are compiled."""
    blocks = [m for m in unet.modules() if type(m).__name__ == "BasicTransformerBlock"]
    assert blocks
    return sum(block._compiled_call_impl is not None for block in blocks)


def test_nothing_is_changed_unless_it_is_asked_for():
    unet = fake_backbone().unet
    prepare_unet(unet, config_of())
    assert not is_channels_last(unet) and compiled(unet) == 0


def test_channels_last_predicts_the_same():
    unet = fake_backbone().unet
    expected = called(unet)
    prepare_unet(unet, config_of(memory_format="channels_last"))
    assert is_channels_last(unet)
    torch.testing.assert_close(called(unet), expected, rtol=0, atol=1e-4)


@pytest.mark.long
@pytest.mark.slow
def test_a_compiled_unet_draws_the_same_pictures(monkeypatch):
    if not any(map(shutil.which, ("g++", "c++", "clang++"))):
        monkeypatch.setattr(speed, "BACKEND", "eager")  # torch's tracing without its compiler
    # in this process: others would import torch first
    monkeypatch.setattr(torch._inductor.config, "compile_threads", 1)
    decoder = decoder_of()
    expected = decoder(voxels(2), subject=1, **FEW)
    prepare_unet(decoder.unet, config_of(compile="true"))
    assert compiled(decoder.unet) > 0
    out = decoder(voxels(2), subject=1, **FEW)
    torch._dynamo.reset()
    assert np.abs(pixels(out.images) - pixels(expected.images)).max() <= 1


def test_a_machine_that_cannot_compile_says_so_before_anything_is_drawn(monkeypatch):
    def fails(model: Any, **_: Any) -> Any:
        raise RuntimeError("no C++ compiler found\nand a long traceback")

    monkeypatch.setattr(torch, "compile", fails)
    unet = fake_backbone().unet
    with pytest.raises(UserError, match=r"generation\.compile.*no C\+\+ compiler found.*g\+\+"):
        prepare_unet(unet, config_of(compile="true"))
    assert compiled(unet) == 0


@pytest.mark.slow
def test_refining_and_decoding_prepare_the_unet(tmp_path):
    base = write_fake_backbone(tmp_path / "base", with_clip=True)
    settings = {
        "backbone.path": str(base),
        "backbone.refiner": str(write_fake_refiner(tmp_path / "refiner")),
        "generation.memory_format": "channels_last",
        "run.device": "cpu",
    }
    assert is_channels_last(refine.setup(load_config(None, settings)).unet)
    decoder_of().save_pretrained(tmp_path / "decoder")
    given = {"decode.decoder": str(tmp_path / "decoder"), "run.device": "cpu"}
    last = {**given, "generation.memory_format": "channels_last"}

    def loaded(settings: dict[str, str]) -> BrainDecoder:
        config = load_config(None, settings)
        return decode.load_decoder(config, None, decode.read_encoders(config, None, whole=False))

    assert is_channels_last(loaded(last).unet)
    assert not is_channels_last(loaded(given).unet)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["bfloat16", "float32"])
def test_a_saved_decoder_is_loaded_in_the_type_it_computes_in(monkeypatch, tmp_path, precision):
    """Not in float32 first, which is twice the memory that `braingen doctor` counts."""
    decoder_of().save_pretrained(tmp_path / "decoder")
    given = {"decode.decoder": str(tmp_path / "decoder"), "run.device": "cpu"}
    config = load_config(None, given | {"generation.precision": precision})
    plain, as_loaded = BrainDecoder.to, []

    def to(self: BrainDecoder, *given: Any) -> BrainDecoder:
        as_loaded.append(types_in(self.unet))
        return plain(self, *given)

    with monkeypatch.context() as patch:
        patch.setattr(BrainDecoder, "to", to)
        encoders = decode.read_encoders(config, None, whole=False)
        decoder = decode.load_decoder(config, None, encoders)
    wanted = {getattr(torch, precision)}
    assert as_loaded[-1] == types_in(decoder.unet) == wanted
    assert types_in(decoder.vae) == {torch.float32} == {decoder.brain_image.mean_TD.dtype}
    whole = BrainDecoder.from_pretrained(tmp_path / "decoder").to(getattr(torch, precision))
    mine, theirs = decoder.unet.state_dict(), whole.unet.state_dict()
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)


def types_in(model: Any) -> set[torch.dtype]:
    return {weight.dtype for weight in model.parameters()}


# --- a fused LoRA ----------------------------------------------------------------


@pytest.fixture
def tuned() -> BrainDecoder:
    decoder = decoder_of()
    add_lora(decoder.unet, 3)
    randomised(decoder.unet)
    return decoder


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.slow
def test_a_fused_lora_draws_what_the_lora_draws(tuned, dtype):
    tuned.to(dtype)
    expected = pixels(tuned(voxels(2), subject=1, **FEW).images)
    tuned.fuse_lora()
    tuned.fuse_lora()  # twice is once
    assert is_fused(tuned.unet)
    fused = pixels(tuned(voxels(2), subject=1, **FEW).images)
    assert np.abs(fused - expected).max() <= (1 if dtype == torch.float32 else 12)
    tuned.unfuse_lora()
    assert not is_fused(tuned.unet)
    again = pixels(tuned(voxels(2), subject=1, **FEW).images)
    assert np.abs(again - expected).max() <= (1 if dtype == torch.float32 else 12)


def test_a_fused_decoder_is_not_saved(tuned, tmp_path):
    before = deepcopy(tuned.unet.state_dict())
    tuned.fuse_lora()
    with pytest.raises(UserError, match=r"would be saved twice.*decoder\.unfuse_lora\(\)"):
        tuned.save_pretrained(tmp_path / "decoder")
    assert not (tmp_path / "decoder").exists()
    tuned.unfuse_lora()
    for key, value in tuned.unet.state_dict().items():
        torch.testing.assert_close(value, before[key], rtol=0, atol=1e-5)
    tuned.save_pretrained(tmp_path / "decoder")


def test_without_a_lora_nothing_is_fused():
    decoder = decoder_of()
    decoder.fuse_lora()
    assert not is_fused(decoder.unet)
    decoder.unfuse_lora()
