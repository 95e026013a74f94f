"""Refinement against diffusers' StableDiffusionXLImg2ImgPipeline, on a base model and on a refiner,
and what it promises.
"""

from __future__ import annotations

from pathlib import Path

from diffusers import StableDiffusionXLImg2ImgPipeline, UNet2DConditionModel
from diffusers.schedulers import EulerDiscreteScheduler, HeunDiscreteScheduler
import pytest
import torch
from torch import Tensor
from unit.fake_backbone import (
    POOLED_WIDTH,
    TEXT_WIDTH,
    fake_backbone,
    plain_unet,
    sdxl_scheduler,
    small_vae,
    write_fake_refiner,
)

from braingen.config.shipped import TINY
from braingen.generation.refiner import (
    Refinement,
    Refiner,
    assemble_refiner,
    conditioning_ids,
    last_times,
    load_refiner,
    refine_images,
)
from braingen.generation.sampling import seeded_noise
from braingen.pretrained.sdxl import encode_modes
from braingen.runtime.errors import UserError
from braingen.targets.clip_text import CLIPTextEncoderDual

pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
    pytest.mark.slow,
]  # of diffusers' scheduler
HOW = Refinement(steps=6, strength=0.5, guidance_scale=5.0)
REFINER_UNET = {
    "sample_size": 128,
    "block_out_channels": (384, 768, 1536, 1536),
    "down_block_types": (
        "DownBlock2D",
        "CrossAttnDownBlock2D",
        "CrossAttnDownBlock2D",
        "DownBlock2D",
    ),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": 4,
    "layers_per_block": 2,
    "attention_head_dim": (6, 12, 24, 24),
    "cross_attention_dim": 1280,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2560,
}
"""The U-Net of stabilityai/stable-diffusion-xl-refiner-1.0."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A folder of the structure of stabilityai/stable-diffusion-xl-refiner-1.0."""
    return write_fake_refiner(tmp_path_factory.mktemp("refinement"))


@pytest.fixture(scope="module", params=["base", "refinement"])
def refiner(request, folder) -> Refiner:
    if request.param == "refinement":
        return load_refiner(str(folder), negative_prompt="a blurry photo")
    texts = CLIPTextEncoderDual.from_pretrained(TINY, dtype=torch.float32)
    both = CLIPTextEncoderDual.from_pretrained(TINY, output="joint", dtype=torch.float32)
    return assemble_refiner(
        plain_unet().eval().requires_grad_(False),
        small_vae(),
        sdxl_scheduler(),
        texts,
        both,
        "a blurry photo",
    )


def given(batch: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Smooth pictures and text embeddings."""
    generator = torch.Generator().manual_seed(seed)
    small = torch.rand(batch, 3, 4, 4, generator=generator)
    pictures = torch.nn.functional.interpolate(small, size=(32, 32), mode="bilinear")
    return pictures, torch.randn(batch, 1, 128, generator=generator)


# --- against diffusers ----------------------------------------------------------------------------


def pipeline_of(refiner: Refiner, scheduler) -> StableDiffusionXLImg2ImgPipeline:
    texts = CLIPTextEncoderDual.from_pretrained(TINY, dtype=torch.float32)
    parts = dict.fromkeys(
        ("text_encoder", "tokenizer", "tokenizer_2", "image_encoder", "feature_extractor")
    )
    pipeline = StableDiffusionXLImg2ImgPipeline(
        vae=refiner.vae,
        unet=refiner.unet,
        scheduler=scheduler,
        text_encoder_2=texts.models["bigG"],  # asked for its width only
        requires_aesthetics_score=refiner.scored,
        add_watermarker=False,
        **parts,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.mark.parametrize("scheduler_class", [EulerDiscreteScheduler, HeunDiscreteScheduler])
@pytest.mark.parametrize(
    "how",
    [
        HOW,
        HOW._replace(guidance_scale=1.0),
        HOW._replace(strength=1.0),
        HOW._replace(denoising_start=0.6, strength=0.1),
    ],
    ids=["strength", "no guidance", "everything", "denoising start"],
)
def test_refining_is_diffusers_image_to_image(refiner, scheduler_class, how, monkeypatch):
    """The same latents, noise, text, times and numbers; latents after every step, and the
    picture.
    """
    refiner = refiner._replace(scheduler=scheduler_class.from_config(refiner.scheduler.config))
    pictures, text_BTD = given(1)
    ours: list[Tensor] = []
    original = type(refiner.scheduler).step

    def step(self, *args, **kwargs):
        out = original(self, *args, **kwargs)
        ours.append(out[0])
        return out

    with monkeypatch.context() as patch:
        patch.setattr(type(refiner.scheduler), "step", step)
        refined = refine_images(refiner, pictures, text_BTD, [7], how, seed=3)
    scheduler = scheduler_class.from_config(refiner.scheduler.config)
    clean = encode_modes(refiner.vae, pictures)
    noise = seeded_noise([7], tuple(clean.shape[1:]), 3, "refinement")
    if (
        how.denoising_start is not None
    ):  # there diffusers expects latents with the noise still in them
        scheduler.set_timesteps(how.steps)
        times, first = last_times(scheduler, how)
        scheduler.set_begin_index(first)
        clean = scheduler.add_noise(clean, noise, times[:1])
        scheduler = scheduler_class.from_config(refiner.scheduler.config)
    else:
        module = "diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl_img2img"
        monkeypatch.setattr(f"{module}.randn_tensor", lambda *args, **kwargs: noise)
    theirs: list[Tensor] = []

    def keep(pipeline, step, t, values):
        theirs.append(values["latents"])
        return values

    out = pipeline_of(refiner, scheduler)(
        image=clean,
        prompt_embeds=refiner.form.text(text_BTD),
        pooled_prompt_embeds=torch.zeros(1, POOLED_WIDTH),
        negative_prompt_embeds=refiner.unconditional.tokens_BTC,
        negative_pooled_prompt_embeds=refiner.unconditional.pooled_BD,
        num_inference_steps=how.steps,
        strength=how.strength,
        denoising_start=how.denoising_start,
        guidance_scale=how.guidance_scale,
        aesthetic_score=how.aesthetic_score,
        negative_aesthetic_score=how.negative_aesthetic_score,
        callback_on_step_end=keep,
        output_type="pt",
    ).images
    assert len(ours) == len(theirs) > 1
    for mine, other in zip(ours, theirs):
        torch.testing.assert_close(mine, other, rtol=0, atol=5e-4)
    torch.testing.assert_close(refined, out.float(), rtol=0, atol=5e-4)


# --- what it promises -----------------------------------------------------------------------------


def test_a_batch_equals_one_by_one(refiner):
    pictures, text_BTD = given(4)
    together = refine_images(refiner, pictures, text_BTD, [5, 6, 7, 8], HOW)
    for row in range(4):
        alone = refine_images(
            refiner, pictures[row : row + 1], text_BTD[row : row + 1], [5 + row], HOW
        )
        torch.testing.assert_close(together[row : row + 1], alone, rtol=0, atol=5e-4)


def test_image_and_seed_are_all_that_chance_depends_on(refiner):
    pictures, text_BTD = given(1)
    torch.manual_seed(0)
    first = refine_images(refiner, pictures, text_BTD, [7], HOW, seed=1)
    torch.manual_seed(1)
    torch.testing.assert_close(
        refine_images(refiner, pictures, text_BTD, [7], HOW, seed=1), first, rtol=0, atol=0
    )
    for image, seed in ((8, 1), (7, 2)):
        assert (
            refine_images(refiner, pictures, text_BTD, [image], HOW, seed=seed) - first
        ).abs().max() > 1e-3


@pytest.mark.slow
def test_the_less_strength_the_nearer_to_the_picture():
    """With the shipped U-Net, which has learnt to remove noise."""
    pictures, text_BTD = given(4)
    pictures = torch.nn.functional.interpolate(pictures, size=(128, 128), mode="bilinear")
    refiner = load_refiner("tiny")
    far = [
        float(
            (
                refine_images(refiner, pictures, text_BTD, range(4), Refinement(10, strength, 1.0))
                - pictures
            )
            .abs()
            .mean()
        )
        for strength in (0.1, 0.4, 1.0)
    ]
    assert far[0] < far[1] < far[2]


def test_text_and_negative_prompt_are_heard(refiner):
    pictures, text_BTD = given(1)
    first = refine_images(refiner, pictures, text_BTD, [7], HOW)
    assert (refine_images(refiner, pictures, -text_BTD, [7], HOW) - first).abs().max() > 1e-3
    other = refiner._replace(unconditional=refiner.form.empty(1))
    assert (refine_images(other, pictures, text_BTD, [7], HOW) - first).abs().max() > 1e-3


def test_the_aesthetic_score_is_heard_by_a_refiner_only(refiner):
    pictures, text_BTD = given(1)
    first = refine_images(refiner, pictures, text_BTD, [7], HOW)
    for change in ({"aesthetic_score": 2.0}, {"negative_aesthetic_score": 6.0}):
        differ = (
            (refine_images(refiner, pictures, text_BTD, [7], HOW._replace(**change)) - first)
            .abs()
            .max()
        )
        assert differ > 1e-4 if refiner.scored else differ == 0


def test_of_a_joint_text_embedding_a_refiner_reads_the_second_encoder(refiner):
    pictures, text_BTD = given(1)
    if refiner.scored:
        joint = torch.cat([torch.randn(1, 1, 96), text_BTD], dim=-1)
        torch.testing.assert_close(
            refine_images(refiner, pictures, joint, [7], HOW),
            refine_images(refiner, pictures, text_BTD, [7], HOW),
            rtol=0,
            atol=0,
        )


def test_it_may_be_refined_at_another_size(refiner):
    pictures, text_BTD = given(1)
    assert refine_images(refiner, pictures, text_BTD, [7], HOW, size=64).shape == (1, 3, 64, 64)
    with pytest.raises(UserError, match="a multiple of 4"):
        refine_images(refiner, pictures, text_BTD, [7], HOW, size=33)
    with pytest.raises(UserError, match="give square ones"):
        refine_images(refiner, pictures[..., :16], text_BTD, [7], HOW)


@pytest.mark.parametrize(
    ("how", "sentence"),
    [
        (HOW._replace(strength=0.1), "strength 0.1 of 6 steps"),
        (HOW._replace(denoising_start=0.999), "denoising_start 0.999 with 6 steps"),
    ],
)
def test_a_refinement_without_a_step_is_refused(refiner, how, sentence):
    pictures, text_BTD = given(1)
    with pytest.raises(UserError, match=f"{sentence} leaves no step"):
        refine_images(refiner, pictures, text_BTD, [7], how)


# --- base models and refiners ---------------------------------------------------------------------


def test_a_folder_of_the_real_structure_is_loaded_as_a_refiner(folder):
    assert {path.name for path in folder.iterdir() if path.is_dir()} == {
        "unet",
        "vae",
        "text_encoder_2",
        "tokenizer_2",
        "scheduler",
    }
    loaded = load_refiner(str(folder))
    assert loaded.scored and loaded.form.text_columns == (0, 128)
    texts = CLIPTextEncoderDual.from_pretrained(folder, dtype=torch.float32)
    torch.testing.assert_close(
        loaded.unconditional.tokens_BTC, texts.prompt([""]).tokens_BTD
    )  # an empty text, not zeros
    assert not any(
        parameter.requires_grad
        for parameter in [*loaded.unet.parameters(), *loaded.vae.parameters()]
    )


def test_the_shipped_backbone_is_loaded_as_a_base_model():
    loaded = load_refiner("tiny")
    assert not loaded.scored and loaded.form.text_columns == (96, TEXT_WIDTH)
    assert not loaded.unconditional.tokens_BTC.any() and loaded.unet.encoder_hid_proj is None
    listening = load_refiner("tiny", ip_adapter=str(TINY / "ip_adapter"))
    pictures, text_BTD = torch.rand(1, 3, 128, 128), given(1)[1]
    image = torch.randn(
        2, 1, 1, listening.form.image_shape[1], generator=torch.Generator().manual_seed(0)
    )
    one, other = (
        refine_images(listening, pictures, text_BTD, [7], HOW, image_BTD=x) for x in image
    )
    assert (one - other).abs().max() > 1e-3


def test_what_cannot_refine_is_refused(folder, tmp_path):
    with pytest.raises(UserError, match=r"backbone\.text_output is L"):
        load_refiner(str(folder), text_output="L")
    with pytest.raises(UserError, match="does not hold an SDXL pipeline"):
        load_refiner(str(tmp_path))
    with pytest.raises(
        UserError,
        match=(
            r"added embedding is 176 wide; with a pooled text of 120 .* 168 \(a base model\) or 160"
        ),
    ):
        conditioning_ids(fake_backbone().unet, 120)


def test_the_refiner_at_full_size_has_its_published_shapes():
    with torch.device("meta"):
        unet = UNet2DConditionModel(**REFINER_UNET)
    assert unet.add_embedding.linear_1.in_features == 1280 + 5 * 256
    assert conditioning_ids(unet, 1280) == 5
    assert (
        sum(parameter.numel() for parameter in unet.parameters()) == 2_259_526_660
    )  # of a 9.04 GB file in float32
