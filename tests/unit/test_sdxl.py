"""Loading of what draws: the same lines for the shipped backbones, a local copy and a hub name;
IP-Adapters in and out unchanged.
"""

from __future__ import annotations

from diffusers import AutoencoderKL, UNet2DConditionModel
from huggingface_hub.errors import LocalEntryNotFoundError
import pytest
from safetensors.torch import load_file, save_file
import torch
from unit.fake_backbone import (
    IMAGE_TOKENS,
    IMAGE_WIDTH,
    POOLED_WIDTH,
    TEXT_WIDTH,
    fake_backbone,
    plain_unet,
    random_adapter,
    write_fake_backbone,
)

from braingen.config.shipped import TINY, backbone_folder
from braingen.pretrained.sdxl import (
    IP_ADAPTER_FILE,
    add_ip_adapter,
    image_embedding_width,
    image_size,
    ip_adapter_weights,
    load_backbone,
    load_ip_adapter_file,
    pooled_width,
    vae_factor,
    without_ip_adapter,
)
from braingen.runtime.errors import UserError

SDXL = {
    "sample_size": 128,
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10),
    "layers_per_block": 2,
    "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
"""The U-Net of stabilityai/stable-diffusion-xl-base-1.0."""
SDXL_VAE = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "layers_per_block": 2,
}
SDXL_VAE |= {"up_block_types": ("UpDecoderBlock2D",) * 4, "latent_channels": 4, "sample_size": 1024}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_fake_backbone(tmp_path_factory.mktemp("backbone"))


def outputs(unet, image=None):
    """What a U-Net makes of fixed inputs."""
    generator = torch.Generator().manual_seed(3)
    latents, text = (
        torch.randn(2, 4, 8, 8, generator=generator),
        torch.randn(2, 6, TEXT_WIDTH, generator=generator),
    )
    added = {
        "text_embeds": torch.randn(2, POOLED_WIDTH, generator=generator),
        "time_ids": torch.full((2, 6), 32.0),
    }
    if image is not None:
        added["image_embeds"] = [image]
    with torch.no_grad():
        return unet.eval()(
            latents, torch.tensor(500), encoder_hidden_states=text, added_cond_kwargs=added
        ).sample


def equal(first: dict, second: dict) -> None:
    assert first.keys() == second.keys()
    for key in first:
        torch.testing.assert_close(first[key], second[key], rtol=0, atol=0)


def test_an_adapter_comes_out_as_it_went_in():
    unet = plain_unet()
    weights = random_adapter(unet)
    assert len(weights) == 4 + 2 * sum("attn2" in name for name in unet.attn_processors)
    add_ip_adapter(unet, weights)
    equal(ip_adapter_weights(unet), weights)


@pytest.mark.slow
def test_an_adapter_is_heard_and_can_be_taken_off_again():
    plain, unet = plain_unet(), plain_unet()
    add_ip_adapter(unet, random_adapter(unet))
    image = torch.randn(2, 1, IMAGE_WIDTH, generator=torch.Generator().manual_seed(4))
    assert (outputs(unet, image) - outputs(unet, image.flip(0))).abs().max() > 1e-3
    taken_off = without_ip_adapter(unet)
    torch.testing.assert_close(outputs(taken_off), outputs(plain), rtol=0, atol=0)
    equal(taken_off.state_dict(), plain.state_dict())
    outputs(unet, image)  # the one with the adapter still has it
    assert (
        next(taken_off.parameters()).data_ptr() == next(unet.parameters()).data_ptr()
    )  # no copy of the weights


@pytest.mark.slow
def test_a_plain_unet_is_what_is_saved_and_loaded(tmp_path):
    unet = fake_backbone().unet
    without_ip_adapter(unet).save_pretrained(tmp_path)
    loaded = UNet2DConditionModel.from_pretrained(tmp_path)
    add_ip_adapter(loaded, ip_adapter_weights(unet))
    image = torch.randn(2, 1, IMAGE_WIDTH, generator=torch.Generator().manual_seed(4))
    torch.testing.assert_close(outputs(loaded, image), outputs(unet, image), rtol=0, atol=0)


def test_a_key_of_something_else_is_named():
    with pytest.raises(UserError, match=r"lora\.up is not a key of an IP-Adapter file"):
        add_ip_adapter(plain_unet(), {"lora.up": torch.zeros(1)})


@pytest.mark.slow
def test_a_folder_is_loaded_frozen_with_its_adapter(folder):
    backbone = load_backbone(str(folder))
    for model in (backbone.unet, backbone.vae):
        assert not model.training and not any(
            parameter.requires_grad for parameter in model.parameters()
        )
    equal(
        ip_adapter_weights(backbone.unet),
        load_file(folder / "ip_adapter" / "ip-adapter.safetensors"),
    )
    fake = fake_backbone()
    equal(backbone.unet.state_dict(), fake.unet.state_dict())
    assert all(
        backbone.scheduler.config[key] == value
        for key, value in fake.scheduler.config.items()
        if not key.startswith("_")
    )


def test_loading_says_nothing(folder, capfd):
    load_backbone(str(folder))
    printed = capfd.readouterr()
    assert (printed.out, printed.err) == ("", "")


@pytest.mark.slow
def test_an_adapter_is_found_as_a_file_and_in_both_layouts(folder, tmp_path):
    file = folder / "ip_adapter" / "ip-adapter.safetensors"
    (tmp_path / IP_ADAPTER_FILE).parent.mkdir()
    save_file(load_file(file), tmp_path / IP_ADAPTER_FILE)  # as h94/IP-Adapter lays it out
    for source in (file, file.parent, tmp_path, tmp_path / IP_ADAPTER_FILE):
        equal(load_ip_adapter_file(str(source)), load_file(file))
        backbone = load_backbone(str(folder), ip_adapter=str(source))
        assert image_embedding_width(backbone.unet) == IMAGE_WIDTH


def test_sizes_are_read_from_the_models(folder):
    backbone = load_backbone(str(folder))
    assert (vae_factor(backbone.vae), image_size(backbone.unet, backbone.vae)) == (4, 32)
    assert (pooled_width(backbone.unet), image_embedding_width(backbone.unet)) == (
        POOLED_WIDTH,
        IMAGE_WIDTH,
    )
    assert (
        backbone.unet.encoder_hid_proj.image_projection_layers[0].num_image_text_embeds
        == IMAGE_TOKENS
    )


@pytest.mark.slow
def test_the_shipped_backbones_are_loaded_by_the_same_lines():
    assert backbone_folder("tiny") == str(TINY) and backbone_folder("some/where") == "some/where"
    backbone = load_backbone("tiny")
    assert (
        next(backbone.unet.parameters()).dtype == torch.float32
    )  # shipped in half precision, used in single
    assert image_size(backbone.unet, backbone.vae) == 128
    equal(
        ip_adapter_weights(backbone.unet),
        {
            k: v.float()
            for k, v in load_file(TINY / "ip_adapter" / "ip-adapter.safetensors").items()
        },
    )


@pytest.mark.slow
def test_sdxl_at_full_size_has_its_published_shapes():
    with torch.device("meta"):
        unet, vae = UNet2DConditionModel(**SDXL), AutoencoderKL(**SDXL_VAE)
    assert sum(parameter.numel() for parameter in unet.parameters()) == 2_567_463_684
    assert (vae_factor(vae), image_size(unet, vae), pooled_width(unet)) == (8, 1024, 1280)
    # h94/IP-Adapter's sdxl_models/ip-adapter_sdxl.safetensors: 70 cross-attentions, numbered 1, 3
    # ... 139
    cross = [name for name in unet.attn_processors if "attn2" in name]
    assert len(cross) == 70 and 2 * (len(cross) - 1) + 1 == 139


@pytest.mark.parametrize("missing", ["unet", "vae", "scheduler"])
def test_a_folder_with_a_part_missing_says_what_to_type(tmp_path, missing):
    folder = write_fake_backbone(tmp_path / "backbone")
    for file in (folder / missing).iterdir():
        file.unlink()
    with pytest.raises(
        UserError,
        match=r"does not hold an SDXL pipeline \(unet/, vae/, scheduler/\).*backbone\.path=tiny",
    ) as caught:
        load_backbone(str(folder))
    assert "\n" not in str(caught.value)


def test_weights_that_are_missing_are_not_left_random(tmp_path):
    folder = write_fake_backbone(tmp_path / "backbone")
    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights = load_file(path)
    del weights["conv_in.weight"]
    save_file(weights, path)
    with pytest.raises(UserError, match="does not hold an SDXL pipeline"):
        load_backbone(str(folder))


def test_a_missing_adapter_says_what_to_type(tmp_path):
    with pytest.raises(
        UserError,
        match=r"There is no IP-Adapter in .*/nowhere.*backbone\.ip_adapter=h94/IP-Adapter",
    ):
        load_ip_adapter_file(str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match=r"There is no IP-Adapter in "):
        load_ip_adapter_file(str(tmp_path))


def test_without_a_network_it_says_what_to_copy(monkeypatch):
    def offline(*args):
        raise LocalEntryNotFoundError("no network\nand more lines")

    monkeypatch.setattr("braingen.pretrained.sdxl.hf_hub_download", offline)
    with pytest.raises(
        UserError,
        match=(
            r"h94/IP-Adapter could not be downloaded: no network Without network access copy"
            r" .*ip_adapter=PATH"
        ),
    ):
        load_ip_adapter_file("h94/IP-Adapter")


def test_an_adapter_for_another_model_is_refused_in_a_sentence():
    wider = random_adapter(plain_unet())
    wider["ip_adapter.3.to_k_ip.weight"] = torch.zeros(64, TEXT_WIDTH)
    plus = {"image_proj.latents": torch.zeros(1, 4, 8)}
    for weights in (wider, plus):
        with pytest.raises(UserError, match="This IP-Adapter does not fit the U-Net") as caught:
            add_ip_adapter(plain_unet(), weights)
        assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_an_adapters_tensors_are_taken_as_they_are_and_all_of_them_are_asked_for():
    unet = plain_unet()
    weights = random_adapter(unet)
    add_ip_adapter(unet, weights)
    for key, value in ip_adapter_weights(unet).items():  # no second copy while loading
        assert value.data_ptr() == weights[key].data_ptr(), key
    for name in weights:
        if name.startswith("image_proj") or name == "ip_adapter.3.to_v_ip.weight":
            lacking = {key: value for key, value in weights.items() if key != name}
            with pytest.raises(UserError, match="This IP-Adapter does not fit the U-Net"):
                add_ip_adapter(plain_unet(), lacking)
