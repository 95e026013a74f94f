"""The CLIP targets against transformers' own outputs, and the laws of their preprocessing and
loading.
"""

from __future__ import annotations

from pathlib import Path
import shutil

from diffusers import StableDiffusionXLPipeline
import numpy as np
from PIL import Image
import pytest
from safetensors.torch import load_file, save_file
import torch
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    CLIPVisionConfig,
    CLIPVisionModel,
    CLIPVisionModelWithProjection,
)

from braingen.config.shipped import TINY
from braingen.runtime.errors import UserError
from braingen.targets.clip_image import CLIP_MEAN, CLIP_STD, CLIPImageEncoder, target_shape
from braingen.targets.clip_text import CLIPTextEncoderDual

pytestmark = pytest.mark.slow  # left out of `make quick`

LENGTH = 12
VISION = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 8,
}
TEXT = {
    "intermediate_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "max_position_embeddings": LENGTH,
    "projection_dim": 12,
}
CAPTIONS = ["a red car", "car", "a very red red car on a beach", "", "beach a car red"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Tiny models in the layout of an SDXL pipeline, with an image encoder beside them."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("tiny")
    letters = {
        f"{c}{end}": i
        for i, (c, end) in enumerate((c, e) for c in "abcdehnorvy" for e in ("", "</w>"))
    }
    special = {"<|startoftext|>": len(letters), "<|endoftext|>": len(letters) + 1}
    for name, pad in (("tokenizer", "<|endoftext|>"), ("tokenizer_2", "a")):
        tokenizer = CLIPTokenizer(
            vocab=letters | special, merges=[], model_max_length=LENGTH, pad_token=pad
        )
        tokenizer.save_pretrained(path / name)
    ids = {
        "vocab_size": len(letters) + 2,
        "bos_token_id": len(letters),
        "eos_token_id": len(letters) + 1,
    }
    CLIPTextModel(CLIPTextConfig(hidden_size=8, **TEXT, **ids)).save_pretrained(
        path / "text_encoder"
    )
    CLIPTextModelWithProjection(CLIPTextConfig(hidden_size=16, **TEXT, **ids)).save_pretrained(
        path / "text_encoder_2"
    )
    both = CLIPConfig(
        text_config=dict(hidden_size=8, **TEXT, **ids), vision_config=VISION, projection_dim=12
    )
    CLIPModel(both).save_pretrained(path / "image_encoder")
    CLIPVisionModelWithProjection(CLIPVisionConfig(projection_dim=10, **VISION)).save_pretrained(
        path / "vision_projected"
    )
    CLIPVisionModel(CLIPVisionConfig(**VISION)).save_pretrained(path / "vision_plain")
    return path


@pytest.fixture
def images() -> torch.Tensor:
    return torch.rand(3, 3, 40, 40, generator=torch.Generator().manual_seed(1))


def test_image_embedding_is_clips_own(folder, images):
    encoder = CLIPImageEncoder.from_pretrained(folder)
    whole = CLIPModel.from_pretrained(folder / "image_encoder").eval()
    with torch.no_grad():
        expected = whole.get_image_features(pixel_values=encoder.preprocess(images)).pooler_output
    target = encoder(images)
    torch.testing.assert_close(target.pooled_BD, expected)
    assert target.target_BTD.shape == (3, encoder.clip_seq_dim, encoder.clip_emb_dim) == (3, 1, 12)


@pytest.mark.parametrize("output", ["pooled", "tokens", "both"])
@pytest.mark.parametrize("projected", [True, False])
@pytest.mark.parametrize("source", ["image_encoder", "vision_projected", "vision_plain"])
def test_image_outputs_have_the_sizes_they_say(folder, images, output, projected, source):
    if source == "vision_plain" and projected:
        pytest.skip("no projection in this one")
    encoder = CLIPImageEncoder.from_pretrained(folder / source, output=output, projected=projected)
    target = encoder(images)
    assert target.target_BTD.shape == (3, encoder.clip_seq_dim, encoder.clip_emb_dim)
    assert (target.pooled_BD is None) == (output == "tokens")
    assert (target.tokens_BPD is None) == (output == "pooled")


def test_projected_and_plain_towers_give_the_same_tokens(folder, images):
    projected = CLIPImageEncoder.from_pretrained(folder / "vision_projected", output="both")
    plain = CLIPImageEncoder.from_pretrained(
        folder / "vision_projected", output="both", projected=False
    )
    inside = CLIPImageEncoder(projected.model, output="both", projected=False)
    for a, b in zip(plain(images), inside(images)):
        torch.testing.assert_close(a, b)
    model = projected.model
    torch.testing.assert_close(
        model.visual_projection(plain(images).pooled_BD), projected(images).pooled_BD
    )


def test_preprocessing_agrees_with_pillow_and_leaves_the_right_size_alone(folder):
    encoder = CLIPImageEncoder.from_pretrained(folder)
    rng = np.random.default_rng(0)
    smooth = Image.fromarray(rng.integers(0, 256, (10, 14, 3), dtype=np.uint8)).resize(
        (140, 100), Image.BICUBIC
    )
    picture = torch.from_numpy(np.asarray(smooth).copy()).permute(2, 0, 1)[None].float() / 255
    wide = round(140 * 32 / 100)
    expected = (
        np.asarray(smooth.resize((wide, 32), Image.BICUBIC), np.float32)[:, (wide - 32) // 2 :][
            :, :32
        ]
        / 255
    )
    ours = (
        encoder.preprocess(picture) * torch.tensor(CLIP_STD).view(3, 1, 1)
        + torch.tensor(CLIP_MEAN).view(3, 1, 1)
    )[0].permute(1, 2, 0)
    assert (
        np.abs(ours.numpy() - expected).max() < 1.5 / 255
    )  # Pillow rounds to bytes after each direction
    exact = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(
        encoder.preprocess(exact), (exact - encoder.mean_311) / encoder.std_311
    )


def test_image_embedding_does_not_depend_on_the_batch(folder, images):
    encoder = CLIPImageEncoder.from_pretrained(folder)
    one_by_one = torch.cat([encoder(image[None]).pooled_BD for image in images])
    torch.testing.assert_close(encoder(images).pooled_BD, one_by_one, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "bad",
    [
        torch.rand(3, 32, 32),
        torch.zeros(1, 3, 32, 32, dtype=torch.uint8),
        torch.rand(1, 3, 32, 32) * 255,
        torch.full((1, 3, 8, 8), torch.nan),
    ],
)
def test_pictures_that_are_none_are_refused(folder, bad):
    with pytest.raises(UserError, match="allowed"):
        CLIPImageEncoder.from_pretrained(folder)(bad)


@pytest.mark.parametrize("output", ["L", "bigG", "joint"])
@pytest.mark.parametrize("tokens", ["eos", "all"])
def test_text_target_is_the_penultimate_hidden_state(folder, output, tokens):
    encoder = CLIPTextEncoderDual.from_pretrained(folder, output=output, tokens=tokens)
    parts = []
    for name, cls in (("", CLIPTextModel), ("_2", CLIPTextModelWithProjection)):
        if output in (("joint", "L") if name == "" else ("joint", "bigG")):
            model = cls.from_pretrained(folder / f"text_encoder{name}").eval()
            tokenizer = CLIPTokenizer.from_pretrained(folder / f"tokenizer{name}")
            rows = []
            for text in CAPTIONS:
                ids = tokenizer(text, truncation=True, max_length=LENGTH)[
                    "input_ids"
                ]  # not padded: the end is simply the last
                with torch.no_grad():
                    if tokens == "all":
                        padded = tokenizer(
                            text, padding="max_length", truncation=True, max_length=LENGTH
                        )["input_ids"]
                        rows.append(
                            model(torch.tensor([padded]), output_hidden_states=True).hidden_states[
                                -2
                            ][0]
                        )
                    else:
                        rows.append(
                            model(torch.tensor([ids]), output_hidden_states=True).hidden_states[-2][
                                0, -1:
                            ]
                        )
            parts.append(torch.stack(rows))
    expected = torch.cat(parts, -1)
    ours = encoder.encode(CAPTIONS)
    assert ours.shape == (5, encoder.clip_seq_dim, encoder.clip_emb_dim)
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)


def test_captions_of_a_picture_are_averaged(folder):
    encoder = CLIPTextEncoderDual.from_pretrained(folder)
    target = encoder([CAPTIONS[:2], CAPTIONS[2:]])
    each = encoder.encode(CAPTIONS)
    torch.testing.assert_close(target, torch.stack([each[:2].mean(0), each[2:].mean(0)]))
    with pytest.raises(UserError, match="image 1"):
        encoder([["a car"], "a car"])
    with pytest.raises(UserError, match="image 0"):
        encoder([[]])


def test_start_token_opens_every_text(folder):
    encoder = CLIPTextEncoderDual.from_pretrained(folder, output="joint", tokens="all")
    start = encoder.start_token()
    assert start.shape == (encoder.clip_emb_dim,)
    torch.testing.assert_close(
        encoder.encode(CAPTIONS)[:, 0], start.expand(5, -1), rtol=1e-4, atol=1e-5
    )


def test_prompts_are_what_the_sdxl_pipeline_reads(folder):
    encoder = CLIPTextEncoderDual.from_pretrained(folder, output="joint")
    pipeline = StableDiffusionXLPipeline(
        vae=None,
        unet=None,
        scheduler=None,
        text_encoder=CLIPTextModel.from_pretrained(folder / "text_encoder"),
        text_encoder_2=CLIPTextModelWithProjection.from_pretrained(folder / "text_encoder_2"),
        tokenizer=CLIPTokenizer.from_pretrained(folder / "tokenizer"),
        tokenizer_2=CLIPTokenizer.from_pretrained(folder / "tokenizer_2"),
    )
    tokens, _, pooled, _ = pipeline.encode_prompt(
        CAPTIONS, do_classifier_free_guidance=False, device="cpu"
    )
    ours = encoder.prompt(CAPTIONS)
    torch.testing.assert_close(ours.tokens_BTD, tokens)
    torch.testing.assert_close(ours.pooled_BD, pooled)


def test_old_checkpoints_with_prefixed_keys_load_and_lacking_ones_are_refused(folder, tmp_path):
    source = folder / "text_encoder"
    state = load_file(source / "model.safetensors")
    for name, kept in (
        ("prefixed", {f"text_model.{k}": v for k, v in state.items()}),
        ("lacking", dict(list(state.items())[1:])),
    ):
        inside = tmp_path / name / "text_encoder"
        inside.mkdir(parents=True)
        (inside / "config.json").write_text((source / "config.json").read_text())
        save_file(kept, inside / "model.safetensors", metadata={"format": "pt"})
        (tmp_path / name / "tokenizer").symlink_to(folder / "tokenizer")
    encoder = CLIPTextEncoderDual.from_pretrained(tmp_path / "prefixed", output="L")
    torch.testing.assert_close(
        encoder.encode(["a car"]),
        CLIPTextEncoderDual.from_pretrained(folder, output="L").encode(["a car"]),
    )
    with pytest.raises(UserError, match="1 missing"):
        CLIPTextEncoderDual.from_pretrained(tmp_path / "lacking", output="L")


def test_wrong_folders_end_in_one_sentence(folder, tmp_path):
    for path in (tmp_path, folder / "text_encoder"):
        with pytest.raises(UserError, match=path.name):
            CLIPImageEncoder.from_pretrained(path)
    with pytest.raises(UserError, match="text_encoder_2"):
        CLIPTextEncoderDual.from_pretrained(tmp_path)
    with pytest.raises(UserError, match="joint"):
        CLIPTextEncoderDual.from_pretrained(folder, output="G")
    with pytest.raises(UserError, match="WithProjection"):
        CLIPImageEncoder(CLIPVisionModel.from_pretrained(folder / "vision_plain"))


def test_saved_and_loaded_encoders_embed_alike(folder, images, tmp_path):
    for projected in (True, False):
        encoder = CLIPImageEncoder.from_pretrained(folder, output="both", projected=projected)
        encoder.mean_311 += 0.125  # statistics of its own
        encoder.save_pretrained(tmp_path / str(projected))
        again = CLIPImageEncoder.from_pretrained(
            tmp_path / str(projected), output="both", projected=projected
        )
        torch.testing.assert_close(again(images).target_BTD, encoder(images).target_BTD)
    for output in ("L", "bigG", "joint"):
        text = CLIPTextEncoderDual.from_pretrained(folder, output=output, tokens="all")
        text.save_pretrained(tmp_path / output)
        again = CLIPTextEncoderDual.from_pretrained(tmp_path / output, output=output, tokens="all")
        torch.testing.assert_close(again.encode(CAPTIONS), text.encode(CAPTIONS))


# --- full sizes, without weights ------------------------------------------------------------------

FIELDS = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "projection_dim",
)
VIT_L_IMAGE, VIT_BIGG_IMAGE = (
    dict(zip(FIELDS, sizes)) for sizes in ((1024, 4096, 24, 16, 768), (1664, 8192, 48, 16, 1280))
)
VIT_L_TEXT, VIT_BIGG_TEXT = (
    dict(zip(FIELDS, sizes)) for sizes in ((768, 3072, 12, 12, 768), (1280, 5120, 32, 20, 1280))
)


@pytest.mark.parametrize(
    ("sizes", "millions", "projected", "plain"),
    [(VIT_L_IMAGE, 303.97, 768, 1024), (VIT_BIGG_IMAGE, 1844.91, 1280, 1664)],
    ids=["ViT-L/14", "ViT-bigG/14"],
)
def test_image_encoders_at_full_size(sizes, millions, projected, plain):
    """Both towers at their released sizes (parameters as OpenCLIP lists them), on the meta device;
    256 x 1664 is MindEye2's target.
    """
    vision = CLIPVisionConfig(image_size=224, patch_size=14, **sizes)
    for output, tokens in (("pooled", 1), ("tokens", 256), ("both", 257)):
        for project, width in ((True, projected), (False, plain)):
            encoder = CLIPImageEncoder.on_meta(vision, output=output, projected=project)
            assert (encoder.clip_seq_dim, encoder.clip_emb_dim, encoder.size) == (
                tokens,
                width,
                224,
            )
            assert target_shape(vision, output, project) == (tokens, width)  # without a model
    model = CLIPImageEncoder.on_meta(vision).model
    assert round(sum(parameter.numel() for parameter in model.parameters()) / 1e6, 2) == millions
    out = model(pixel_values=torch.empty(2, 3, 224, 224, device="meta"))
    assert out.image_embeds.shape == (2, projected) and out.last_hidden_state.shape == (
        2,
        257,
        plain,
    )


def test_text_encoders_at_full_size(folder):
    """SDXL's two at their released sizes: 123,060,480 and 694,659,840 parameters."""
    with torch.device("meta"):
        first = CLIPTextModel(CLIPTextConfig(**VIT_L_TEXT))
        second = CLIPTextModelWithProjection(CLIPTextConfig(**VIT_BIGG_TEXT))
    assert sum(parameter.numel() for parameter in first.parameters()) == 123_060_480
    assert sum(parameter.numel() for parameter in second.parameters()) == 694_659_840
    tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
    for output, width in (("L", 768), ("bigG", 1280), ("joint", 2048)):
        for tokens, length in (("eos", 1), ("all", 77)):
            encoder = CLIPTextEncoderDual(
                first, tokenizer, second, tokenizer, output=output, tokens=tokens
            )
            assert (encoder.clip_seq_dim, encoder.clip_emb_dim) == (length, width)


@pytest.mark.slow
def test_the_shipped_ones_load_by_the_same_lines(images):
    for output in ("pooled", "tokens", "both"):
        for projected in (True, False):
            encoder = CLIPImageEncoder.from_pretrained(TINY, output=output, projected=projected)
            assert encoder(images).target_BTD.shape == (
                3,
                encoder.clip_seq_dim,
                encoder.clip_emb_dim,
            )
    for output, width in (("L", 96), ("bigG", 128), ("joint", 224)):
        assert CLIPTextEncoderDual.from_pretrained(TINY, output=output)([["a red car"]]).shape == (
            1,
            1,
            width,
        )


def test_a_hub_name_loads_what_the_folder_loads(folder, tmp_path):
    """From the hub's own cache, as a download leaves it; there is no network in a test."""
    revision = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "models--someone--tiny"
    shutil.copytree(folder, repository / "snapshots" / revision)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(revision)
    cached = {"cache_dir": tmp_path, "local_files_only": True}
    pictures = torch.rand(2, 3, 40, 40, generator=torch.Generator().manual_seed(0))
    image = CLIPImageEncoder.from_pretrained("someone/tiny", subfolder="image_encoder", **cached)
    torch.testing.assert_close(
        image(pictures).target_BTD,
        CLIPImageEncoder.from_pretrained(folder)(pictures).target_BTD,
        rtol=0,
        atol=0,
    )
    text = CLIPTextEncoderDual.from_pretrained("someone/tiny", output="joint", **cached)
    expected = CLIPTextEncoderDual.from_pretrained(folder, output="joint")
    torch.testing.assert_close(text([CAPTIONS]), expected([CAPTIONS]), rtol=0, atol=0)
    with pytest.raises(UserError, match="someone/else"):
        CLIPImageEncoder.from_pretrained("someone/else", subfolder="image_encoder", **cached)
