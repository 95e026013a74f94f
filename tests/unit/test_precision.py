"""Half precision is the U-Net's alone, however it is asked for, and draws what float32 draws."""

from __future__ import annotations

import math
from typing import Any

import accelerate.hooks
import numpy as np
import pytest
import torch
from torch import nn
from unit.test_decoder import decoder_of, pixels, voxels

from braingen.config import load_config
from braingen.diagnostics.doctor import _machine
from braingen.generation.lora import add_lora, lora_parameters
from braingen.generation.pipeline import BrainDecoder
from braingen.generation.sampling import decode_latents, predict, size_ids
from braingen.routing.diffuse_router import DiffuseRouter
from braingen.runtime.distributed import Workers
from braingen.runtime.errors import UserError
from braingen.runtime.precision import TYPES, generation_type, slow_on, types_of_parts, unet_type
from braingen.types import Conditioning

pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation:DeprecationWarning"
)  # of diffusers' scheduler
HALF = [torch.bfloat16, torch.float16]
FEW: dict[str, Any] = {"num_inference_steps": 3, "guidance_scale": 2.0}
LEAST_PSNR = {torch.bfloat16: 30.0, torch.float16: 45.0}
"""In dB, of the fake backbone's pictures; measured: 42 and 60."""


def psnr(first: np.ndarray, second: np.ndarray) -> float:
    error = np.square(first.astype(float) - second.astype(float)).mean()
    return math.inf if error == 0 else 10 * math.log10(255**2 / error)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("decoder")
    decoder = decoder_of()
    add_lora(decoder.unet, 2)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in lora_parameters(decoder.unet).values():
            parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    torch.manual_seed(4)
    router = DiffuseRouter(
        num_experts=(2, 4), clip_emb_dim=128, time_hidden_dim=16, space="mix", space_grid=8
    )
    decoder.register_modules(router_image=router.eval())
    decoder.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def expected(folder):
    return BrainDecoder.from_pretrained(folder)(voxels(2), subject=1, **FEW)


def in_half(folder, how: str, dtype: torch.dtype) -> BrainDecoder:
    if how == "loaded":
        return BrainDecoder.from_pretrained(folder, torch_dtype=dtype)
    decoder = BrainDecoder.from_pretrained(folder)
    if how == "only the U-Net":
        decoder.unet.to(dtype)
        return decoder
    return decoder.to(dtype) if how == "moved" else decoder.to("cpu", dtype)


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("how", ["loaded", "moved", "moved with its device", "only the U-Net"])
@pytest.mark.slow
def test_half_precision_draws_the_pictures_of_float32(folder, expected, how, dtype):
    decoder = in_half(folder, how, dtype)
    assert decoder.unet.dtype == dtype
    for name in ("vae", "brain_image", "brain_text", "router_image"):
        assert {p.dtype for p in getattr(decoder, name).parameters()} == {torch.float32}, name
    out = decoder(voxels(2), subject=1, **FEW)
    assert psnr(pixels(out.images), pixels(expected.images)) > LEAST_PSNR[dtype]
    assert not np.array_equal(pixels(out.images), pixels(expected.images))  # it was in half
    for mine, theirs in zip(out.decoded, expected.decoded):  # encoders and priors are not
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-5)


@pytest.mark.slow
def test_a_decoder_saved_in_half_precision_is_loaded_as_that_variant(folder, expected, tmp_path):
    """As any pipeline of diffusers: ``variant="fp16"``."""
    decoder = BrainDecoder.from_pretrained(folder, torch_dtype=torch.float16)
    decoder.save_pretrained(tmp_path / "half", variant="fp16")
    assert list((tmp_path / "half" / "unet").glob("*.fp16.safetensors"))
    loaded = BrainDecoder.from_pretrained(
        tmp_path / "half", variant="fp16", torch_dtype=torch.float16
    )
    assert loaded.unet.dtype == torch.float16 and loaded.vae.dtype == torch.float32
    out = loaded(voxels(2), subject=1, **FEW)
    assert psnr(pixels(out.images), pixels(expected.images)) > LEAST_PSNR[torch.float16]


def test_a_type_of_each_part_is_taken_as_diffusers_takes_it_but_for_the_vae():
    assert types_of_parts(None) is None
    assert types_of_parts(torch.float16) == {
        "unet": torch.float16,
        "default": torch.float32,
        "vae": torch.float32,
    }
    assert types_of_parts({"default": torch.float16})["vae"] == torch.float32


@pytest.mark.parametrize("name", ["brain_image", "brain_text", "router_image"])
@pytest.mark.slow
def test_another_part_in_half_precision_is_refused_in_a_sentence(folder, name):
    decoder = BrainDecoder.from_pretrained(folder)
    getattr(decoder, name).to(torch.bfloat16)
    with pytest.raises(UserError, match=rf"decoder\.{name} is in bfloat16.*to\(torch\.float32\)"):
        decoder(voxels(1), subject=1, **FEW)


@pytest.mark.parametrize(
    ("precision", "on_cpu", "on_gpu"),
    [
        ("auto", torch.float32, torch.float16),
        *((name, dtype, dtype) for name, dtype in TYPES.items()),
    ],
)
def test_the_policy(precision, on_cpu, on_gpu):
    assert unet_type(precision, "cpu") == on_cpu
    assert unet_type(precision, torch.device("cuda")) == on_gpu
    config = load_config(None, {"generation.precision": precision, "run.device": "cpu"})
    assert generation_type(config) == on_cpu


@pytest.mark.parametrize("wanted", [True, False])
def test_tf32_is_set_by_every_stage(wanted):
    places = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [place.allow_tf32 for place in places]
    try:
        for place in places:
            place.allow_tf32 = not wanted
        Workers(load_config(None, {"run.tf32": str(wanted), "run.device": "cpu"}))
        assert all(place.allow_tf32 is wanted for place in places)
    finally:
        for place, value in zip(places, before):
            place.allow_tf32 = value


class _Recorded(nn.Module):
    """In place of a U-Net: keeps the types of what enters, and predicts zeros of its own type."""

    dtype = torch.bfloat16

    def forward(self, latents, t, *, encoder_hidden_states, added_cond_kwargs):
        self.entered = {
            "latents": latents.dtype,
            "tokens": encoder_hidden_states.dtype,
            "pooled": added_cond_kwargs["text_embeds"].dtype,
            "image": added_cond_kwargs["image_embeds"][0].dtype,
            "sizes": added_cond_kwargs["time_ids"],
        }
        return type("Output", (), {"sample": latents * 0})


def test_values_change_their_type_at_the_unets_door_and_sizes_do_not():
    unet, latents = _Recorded(), torch.randn(1, 4, 8, 8)
    condition = Conditioning(torch.randn(1, 2, 3), torch.randn(1, 1, 3), torch.randn(1, 3))
    out = predict(unet, latents, torch.tensor(5), condition, size_ids(1023, 1, latents))
    assert out.dtype == torch.float32
    sizes = unet.entered.pop("sizes")
    assert set(unet.entered.values()) == {torch.bfloat16}
    assert sizes.tolist() == [[1023, 1023, 0, 0, 1023, 1023]]


class _Decoder(nn.Module):
    """In place of an autoencoder of factor 8: every image is its first latent."""

    config = type("Config", (), {"scaling_factor": 1.0, "block_out_channels": (1,) * 4})
    dtype = torch.float32

    def decode(self, latents):
        self.sizes = [*getattr(self, "sizes", []), len(latents)]
        rows = latents[:, :3].repeat_interleave(8, 2).repeat_interleave(8, 3)
        return type("Output", (), {"sample": rows})


def test_images_are_decoded_in_slices_of_a_number_of_pixels():
    vae, latents = _Decoder(), torch.rand(5, 4, 64, 64)
    images = decode_latents(vae, latents)
    assert vae.sizes == [2, 2, 1]  # of 512 pixels
    torch.testing.assert_close(images[3, :, ::8, ::8], latents[3, :3] / 2 + 0.5)
    small = _Decoder()
    decode_latents(small, torch.rand(5, 4, 8, 8))
    assert small.sizes == [5]


@pytest.mark.parametrize("level", [-3.0, 0.0, 5.0])
def test_a_blank_image_is_an_error(level):
    latents = torch.rand(2, 4, 4, 4)
    latents[1] = level
    with pytest.raises(UserError, match="Image 9 came out blank, all pixels are") as caught:
        decode_latents(_Decoder(), latents, [8, 9])
    assert "generation.precision=float32" in str(caught.value)


@pytest.mark.parametrize(
    ("order", "dtype"),
    [("output", torch.float32), ("step", torch.float32), *(("output", each) for each in HALF)],
)
@pytest.mark.slow
def test_nothing_of_an_offloaded_part_is_used_outside_of_its_forward(
    folder, monkeypatch, order, dtype
):
    """Under ``enable_model_cpu_offload`` a part that waits has NaN for weights here."""
    decoder = BrainDecoder.from_pretrained(folder, prior_order=order).to(dtype)
    given = voxels(2)
    plain = pixels(decoder(given, subject=1, **FEW).images)
    kept: dict[nn.Module, dict[str, torch.Tensor]] = {}

    def wait(self, module):
        if module not in kept:
            kept[module] = {name: p.detach().clone() for name, p in module.named_parameters()}
            for parameter in module.parameters():
                parameter.data.fill_(math.nan)
        return module

    def come(self, module, *args, **kwargs):
        if self.prev_module_hook is not None:
            self.prev_module_hook.offload()
        for name, value in kept.pop(module, {}).items():
            module.get_parameter(name).data.copy_(value)
        return args, kwargs

    monkeypatch.setattr(accelerate.hooks.CpuOffload, "init_hook", wait)
    monkeypatch.setattr(accelerate.hooks.CpuOffload, "pre_forward", come)
    decoder.enable_model_cpu_offload(device="cpu")
    assert decoder.unet in kept
    out = decoder(given, subject=1, **FEW)
    np.testing.assert_array_equal(pixels(out.images), plain)
    assert decoder.unet in kept  # all parts wait again


@pytest.mark.parametrize("mean", ["enable_slicing", "enable_tiling"])
@pytest.mark.slow
def test_diffusers_means_for_the_autoencoder(folder, expected, mean):
    decoder = BrainDecoder.from_pretrained(folder)
    getattr(decoder.vae, mean)()
    out = decoder(voxels(2), subject=1, **FEW)
    assert np.abs(pixels(out.images) - pixels(expected.images)).max() <= 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.slow
def test_float16_on_a_cpu_is_warned_of_once(folder, caplog, dtype):
    decoder = BrainDecoder.from_pretrained(folder, torch_dtype=dtype)
    for _ in range(2):
        decoder(voxels(1), subject=1, **FEW)
    said = [each.getMessage() for each in caplog.records if "float16 on a CPU" in each.getMessage()]
    assert len(said) == (1 if dtype == torch.float16 else 0)
    assert all("generation.precision=auto or bfloat16" in each for each in said)
    assert slow_on(torch.float16, torch.device("cpu"))
    assert not slow_on(torch.float16, torch.device("cuda"))


def test_doctor_warns_of_float16_on_a_cpu(tmp_path):
    def warned(precision: str) -> bool:
        settings = {"generation.precision": precision, "run.device": "cpu"}
        config = load_config(None, settings | {"run.folder": str(tmp_path / "run")})
        return any(
            item.what == "precision" and item.level == "warning" for item in _machine(config)
        )

    assert warned("float16") and not warned("bfloat16") and not warned("auto")
