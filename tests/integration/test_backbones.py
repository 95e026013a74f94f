"""The recipe of the tiny backbones runs from nothing to a folder that the ordinary loaders read."""

from __future__ import annotations

from pathlib import Path
import shutil

import pytest
from safetensors.torch import load_file
import torch

from braingen.pretrained.sdxl import image_embedding_width, image_size, load_backbone, pooled_width
from braingen.simulation.backbones import corpus as corpus_module
from braingen.simulation.backbones.build import BackboneRecipe, build
from braingen.simulation.scene_classifier import SceneClassifier
from braingen.targets.clip_image import CLIPImageEncoder
from braingen.targets.clip_text import CLIPTextEncoderDual

RECIPE = BackboneRecipe(
    side=64,
    pictures=40,
    chunk=20,
    held_out=8,
    conditioned=32,
    clip_steps=2,
    image_tower_steps=2,
    vae_steps=2,
    vae_full_size_steps=1,
    decoder_steps=2,
    classifier_steps=2,
    unet_steps=2,
)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    folder = tmp_path_factory.mktemp("backbones")
    build(folder / "work", folder / "tiny", RECIPE)
    return folder


def drawn_already(built: Path, name: str) -> Path:
    """A folder to build in that has the corpus, which takes long to draw."""
    shutil.copytree(built / "work" / "corpus", built / name / "corpus")
    return built / name


@pytest.mark.long
def test_what_was_built_is_read_like_any_backbone(built):
    backbone = load_backbone(str(built / "tiny"))
    images = CLIPImageEncoder.from_pretrained(built / "tiny")
    texts = CLIPTextEncoderDual.from_pretrained(built / "tiny", output="joint")
    assert image_size(backbone.unet, backbone.vae) == RECIPE.side
    assert image_embedding_width(backbone.unet) == images.clip_emb_dim
    assert backbone.unet.config.cross_attention_dim == texts.clip_emb_dim
    assert pooled_width(backbone.unet) == texts.prompt(["a cup"]).pooled_BD.shape[1]
    assert SceneClassifier.from_pretrained(built / "tiny" / "scene_classifier").config.objects == 24


@pytest.mark.long
def test_weights_are_shipped_in_half_precision(built):
    for path in (built / "tiny").rglob("*.safetensors"):
        assert {value.dtype for value in load_file(path).values() if value.is_floating_point()} == {
            torch.float16
        }, path


@pytest.mark.long
def test_a_finished_recipe_is_not_trained_again(built):
    before = {path: path.stat().st_mtime_ns for path in (built / "work").glob("*/*.safetensors")}
    build(built / "work", built / "again", RECIPE)
    assert before == {
        path: path.stat().st_mtime_ns for path in (built / "work").glob("*/*.safetensors")
    }
    first, second = (
        load_file(built / name / "unet" / "diffusion_pytorch_model.safetensors")
        for name in ("tiny", "again")
    )
    assert all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.long
def test_the_corpus_is_the_same_wherever_it_is_drawn(tmp_path):
    whole = corpus_module._draw_chunk(0, 4, 32)
    half = corpus_module._draw_chunk(2, 2, 32)
    assert (whole[1][2:] == half[1]).all() and whole[2][2:] == half[2]


@pytest.mark.long
def test_finished_backbones_are_trained_further(built):
    recipe = RECIPE._replace(init_from=built / "tiny", unet_steps=1, decoder_steps=1)
    build(drawn_already(built, "further"), built / "next", recipe)

    def weights(folder: str, part: str) -> dict[str, torch.Tensor]:
        return load_file(next((built / folder / part).glob("*.safetensors")))

    for part in ("text_encoder", "text_encoder_2", "scene_classifier"):
        assert all(
            torch.equal(value, weights("tiny", part)[key])
            for key, value in weights("next", part).items()
        ), part
    before, after = weights("tiny", "unet"), weights("next", "unet")
    moved = torch.cat(
        [(after[key].float() - value.float()).abs().flatten() for key, value in before.items()]
    )
    assert 0 < moved.max() < 1e-3  # one step of the warm-up (rate 1e-5) away from where it began
    encoder = {
        key: value for key, value in weights("tiny", "vae").items() if key.startswith("encoder.")
    }
    assert all(torch.equal(value, weights("next", "vae")[key]) for key, value in encoder.items())


@pytest.mark.long
@pytest.mark.slow
def test_two_processes_train_the_unet_together(built):
    recipe = RECIPE._replace(
        init_from=built / "tiny", unet_steps=2, decoder_steps=1, unet_processes=2
    )
    build(drawn_already(built, "together"), built / "of two", recipe)
    weights = load_file(built / "together" / "unet" / "weights.safetensors")
    alone = load_file(built / "work" / "unet" / "weights.safetensors")
    assert weights.keys() == alone.keys()
    assert all(torch.isfinite(value).all() for value in weights.values())
