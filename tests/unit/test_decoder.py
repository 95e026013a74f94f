"""The decoder as one object and one folder: what it draws depends on the brain, the picture's id
and the seed, on nothing else.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from unit.fake_backbone import IMAGE_WIDTH, TEXT_WIDTH, fake_backbone

from braingen.config.shipped import TINY
from braingen.encoders.embedding_decoder import EmbeddingDecoder, TargetScale
from braingen.generation.pipeline import IP_ADAPTER, BrainDecoder, to_pil
from braingen.runtime.errors import UserError
from braingen.targets.clip_text import CLIPTextEncoderDual

pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation:DeprecationWarning"
)  # of diffusers' scheduler
VOXELS = {"1": 30, "5": 23}
TEXT_COLUMNS = (96, TEXT_WIDTH)
"""Where the second text encoder's embedding stands; the first one's columns are not predicted."""
FEW = {"num_inference_steps": 2, "guidance_scale": 2.0}


def embedding_decoder(width: int, seed: int, prior_use: str = "predict") -> EmbeddingDecoder:
    torch.manual_seed(seed)
    encoder = {
        "subjects": VOXELS,
        "clip_seq_dim": 1,
        "clip_emb_dim": width,
        "hidden_dim": 32,
        "n_blocks": 1,
        "exp_factor_list": [2],
    }
    prior = {"dim": width, "num_tokens": 1, "depth": 1, "dim_head": 16, "timesteps": 10}
    made = EmbeddingDecoder("BrainMoEMulti", encoder, prior, prior_use, sample_steps=3)
    made.set_scale(TargetScale(torch.randn(1, width), 1.7))
    return made.eval()


def decoder_of(prior_use: str = "predict") -> BrainDecoder:
    start_C = torch.zeros(TEXT_WIDTH)
    start_C[slice(*TEXT_COLUMNS)] = torch.randn(
        TEXT_COLUMNS[1] - TEXT_COLUMNS[0], generator=torch.Generator().manual_seed(0)
    )
    image, text = (
        embedding_decoder(IMAGE_WIDTH, 1, prior_use),
        embedding_decoder(TEXT_COLUMNS[1] - TEXT_COLUMNS[0], 2, prior_use),
    )
    return BrainDecoder(image, text, *fake_backbone(), start_C.tolist(), 6, TEXT_COLUMNS)


@pytest.fixture(scope="module", params=["predict", "sample"])
def decoder(request) -> BrainDecoder:
    """With the prior asked once, and with the prior sampled."""
    return decoder_of(request.param)


def voxels(count: int, subject: int = 1, repeats: int = 0, seed: int = 3) -> np.ndarray:
    shape = (count, repeats, VOXELS[str(subject)]) if repeats else (count, VOXELS[str(subject)])
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def pixels(images) -> np.ndarray:
    return np.stack([np.asarray(image) for image in images]).astype(int)


def test_voxels_become_pictures_and_embeddings(decoder):
    out = decoder(voxels(3), subject=1, **FEW)
    assert [image.size for image in out.images] == [(32, 32)] * 3
    assert out.decoded.image_BTD.shape == out.decoded.image_clip_BTD.shape == (3, 1, IMAGE_WIDTH)
    assert (
        out.decoded.text_BTD.shape
        == out.decoded.text_clip_BTD.shape
        == (3, 1, TEXT_COLUMNS[1] - TEXT_COLUMNS[0])
    )
    assert not any(value.requires_grad for value in out.decoded)
    assert np.abs(pixels(out.images)[0] - pixels(out.images)[1]).max() > 10


@pytest.mark.slow
def test_a_saved_decoder_draws_the_same_pictures(decoder, tmp_path, caplog):
    decoder.save_pretrained(tmp_path)
    loaded = BrainDecoder.from_pretrained(tmp_path)
    assert not caplog.records
    expected = decoder(voxels(2), subject=1, image_ids=[8, 9], **FEW)
    out = loaded(voxels(2), subject=1, image_ids=[8, 9], **FEW)
    # weights that are read lie differently in memory, which may change the last bit of a product
    assert np.abs(pixels(out.images) - pixels(expected.images)).max() <= 1
    for mine, theirs in zip(out.decoded, expected.decoded):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-4)
    assert (tmp_path / IP_ADAPTER).is_file()
    decoder(voxels(1), subject=1, **FEW)  # saving took nothing away from the one that was saved


@pytest.mark.slow
def test_a_folder_can_be_saved_over_and_loaded_as_any_pipeline(decoder, tmp_path):
    decoder.save_pretrained(tmp_path)
    BrainDecoder.from_pretrained(str(tmp_path)).save_pretrained(tmp_path)
    again = BrainDecoder.from_pretrained(tmp_path)
    assert set(again.components) == {
        "brain_image",
        "brain_text",
        "brain_low_level",
        "unet",
        "vae",
        "scheduler",
        "router_image",
        "router_text",
    }
    assert again.router_image is None and again.router_text is None
    assert again.config.text_length == 6 and tuple(again.config.text_columns) == TEXT_COLUMNS


@pytest.mark.slow
def test_a_picture_does_not_depend_on_its_batch(decoder):
    given, ids = voxels(5), [40, 7, 3, 999, 12]
    together = decoder(given, subject=1, image_ids=ids, batch_size=5, **FEW)
    for size in (1, 2):
        parts = decoder(given, subject=1, image_ids=ids, batch_size=size, **FEW)
        assert (
            np.abs(pixels(parts.images) - pixels(together.images)).max() <= 1
        )  # a rounding at most
        for mine, theirs in zip(parts.decoded, together.decoded):
            torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-4)
    order = [3, 0, 4, 1, 2]
    shuffled = decoder(
        given[order], subject=1, image_ids=[ids[i] for i in order], batch_size=3, **FEW
    )
    assert np.abs(pixels(shuffled.images) - pixels(together.images)[order]).max() <= 1


@pytest.mark.slow
def test_id_and_seed_are_all_that_chance_depends_on(decoder):
    given = voxels(1)

    def drawn(image: int, seed: int) -> np.ndarray:
        return pixels(decoder(given, subject=1, image_ids=[image], seed=seed, **FEW).images)

    torch.manual_seed(1)
    first = drawn(5, 0)
    torch.manual_seed(2)
    np.testing.assert_array_equal(first, drawn(5, 0))
    assert np.abs(first - drawn(6, 0)).max() > 10 and np.abs(first - drawn(5, 1)).max() > 10


def test_ids_are_counted_from_zero_when_not_given(decoder):
    given = voxels(3)
    np.testing.assert_array_equal(
        pixels(decoder(given, subject=1, **FEW).images),
        pixels(decoder(given, subject=1, image_ids=[0, 1, 2], **FEW).images),
    )


@pytest.mark.slow
def test_presentations_are_averaged_before_the_prior(decoder):
    given = voxels(2, repeats=3)
    out = decoder.embed(torch.from_numpy(given), 1, [4, 5])
    each = [decoder.embed(torch.from_numpy(given[:, [r]]), 1, [4, 5]) for r in range(3)]
    mean = torch.stack([one.image_clip_BTD for one in each]).mean(0)
    torch.testing.assert_close(out.image_clip_BTD, mean, rtol=0, atol=1e-4)
    torch.testing.assert_close(
        decoder(given, subject=1, image_ids=[4, 5], **FEW).decoded.image_BTD,
        out.image_BTD,
        rtol=0,
        atol=1e-4,
    )
    alike = decoder.embed(torch.from_numpy(given[:, [0, 0, 0]]), 1, [4, 5])
    torch.testing.assert_close(alike.image_BTD, each[0].image_BTD, rtol=0, atol=1e-4)


def test_a_presentation_that_is_absent_is_not_heard(decoder):
    given = torch.from_numpy(voxels(2, repeats=3))
    present_BR = torch.tensor([[True, True, False], [True, True, True]])
    changed = given.clone()
    changed[0, 2] = 50
    for mine, theirs in zip(
        decoder.embed(given, 1, [4, 5], 0, present_BR),
        decoder.embed(changed, 1, [4, 5], 0, present_BR),
    ):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=0)
    two = decoder.embed(given[:1, :2], 1, [4])
    torch.testing.assert_close(
        decoder.embed(given, 1, [4, 5], 0, present_BR).image_BTD[:1],
        two.image_BTD,
        rtol=0,
        atol=1e-4,
    )


def test_each_subject_has_its_own_voxels(decoder):
    assert len(decoder(voxels(2, subject=5), subject=5, **FEW).images) == 2
    with pytest.raises(UserError, match=r"\b23\b.*\b30\b|\b30\b.*\b23\b"):
        decoder(voxels(2, subject=5), subject=1, **FEW)
    with pytest.raises(UserError, match=r"\b3\b"):
        decoder(voxels(2), subject=3, **FEW)


@pytest.mark.parametrize(
    ("given", "ids", "sentence"),
    [
        (np.zeros(29, np.float32), None, "voxels has 29 voxels, subject 1 has 30"),
        ([[1.0, 2.0], [3.0]], None, "no array|expected real numbers"),
        (np.zeros((0, 30), np.float32), None, r"voxels is float32 of shape \(0, 30\)"),
        (np.full((1, 30), np.nan, np.float32), None, "finite numbers"),
        (np.zeros((2, 30), np.float32), [1], "image_ids names 1 pictures, voxels are of 2"),
    ],
)
def test_what_does_not_fit_is_refused(decoder, given, ids, sentence):
    with pytest.raises(UserError, match=sentence):
        decoder(given, subject=1, image_ids=ids, **FEW)


@pytest.mark.slow
def test_a_file_is_decoded_picture_by_picture(decoder, tmp_path):
    """Rows with one id are presentations of one picture; pictures come ascending by id."""
    given = voxels(2, repeats=3)
    np.savez(
        tmp_path / "mine.npz", voxels=given[[0, 1, 0, 1, 0, 1], [0, 0, 1, 1, 2, 2]], ids=[9, 4] * 3
    )
    out = decoder(tmp_path / "mine.npz", subject=1, **FEW)
    expected = decoder(given[[1, 0]], subject=1, image_ids=[4, 9], **FEW)
    assert out.image_ids == [4, 9] and out.routing == {}
    assert np.abs(pixels(out.images) - pixels(expected.images)).max() <= 1
    with pytest.raises(UserError, match="cannot be given with a file"):
        decoder(tmp_path / "mine.npz", subject=1, image_ids=[1, 2], **FEW)
    # a presentation that there was not, as a row of NaN
    absent = given.copy()
    absent[0, 2] = np.nan
    two = decoder(given[:1, :2], subject=1, image_ids=[7], **FEW)
    assert (
        np.abs(
            pixels(decoder(absent, subject=1, image_ids=[7, 8], **FEW).images)[0]
            - pixels(two.images)[0]
        ).max()
        <= 1
    )


def test_tensors_and_arrays_are_both_taken(decoder):
    given = voxels(1)
    expected = pixels(decoder(given, subject=1, **FEW).images)
    np.testing.assert_array_equal(
        pixels(decoder(torch.from_numpy(given).double(), subject=1, **FEW).images), expected
    )


@pytest.mark.slow
def test_image_and_text_can_each_be_left_out():
    decoder = decoder_of()
    generator = torch.Generator().manual_seed(6)
    image, text = (
        torch.randn(2, 1, IMAGE_WIDTH, generator=generator),
        torch.randn(2, 1, 128, generator=generator),
    )
    settings = {"steps": 2, "guidance_scale": 2.0}
    both, only_image, only_text = (
        decoder.generate(i, t, [1, 2], **settings)
        for i, t in ((image, text), (image, None), (None, text))
    )
    assert both.shape == (2, 3, 32, 32)
    for one, other in ((both, only_image), (both, only_text), (only_image, only_text)):
        assert (one - other).abs().max() > 1e-3
    with pytest.raises(UserError, match="at least one of them"):
        decoder.generate(None, None, [1, 2], **settings)


@pytest.mark.slow
def test_the_strength_of_the_image_condition():
    decoder = decoder_of()
    generator = torch.Generator().manual_seed(6)
    images, text = (
        torch.randn(2, 2, 1, IMAGE_WIDTH, generator=generator),
        torch.randn(2, 1, 128, generator=generator),
    )

    def drawn(image: torch.Tensor, scale: float) -> torch.Tensor:
        return decoder.generate(
            image, text, [1, 2], steps=2, guidance_scale=1.0, ip_adapter_scale=scale
        )

    torch.testing.assert_close(
        drawn(images[0], 0.0), drawn(images[1], 0.0), rtol=0, atol=0
    )  # nothing is heard of it
    assert (drawn(images[0], 1.0) - drawn(images[1], 1.0)).abs().max() > 1e-3
    assert (drawn(images[0], 0.5) - drawn(images[0], 1.0)).abs().max() > 1e-4


def test_the_size_may_be_another_than_the_unets():
    decoder = decoder_of()
    assert decoder.generate(torch.randn(1, 1, IMAGE_WIDTH), None, [1], steps=1, size=64).shape == (
        1,
        3,
        64,
        64,
    )


@pytest.mark.slow
def test_assembling_reads_the_form_off_the_text_encoder():
    texts = CLIPTextEncoderDual.from_pretrained(TINY, dtype=torch.float32)
    decoder = BrainDecoder.assemble(
        embedding_decoder(IMAGE_WIDTH, 1),
        embedding_decoder(texts.clip_emb_dim, 2),
        *fake_backbone(),
        texts,
    )
    form = decoder.form
    first = TEXT_WIDTH - texts.clip_emb_dim
    assert form.text_length == texts.length and form.text_columns == (first, TEXT_WIDTH)
    torch.testing.assert_close(form.start_C[first:], texts.start_token(), rtol=0, atol=1e-6)
    assert not form.start_C[:first].any()


def test_a_folder_that_is_no_decoder_says_where_to_get_one(tmp_path):
    with pytest.raises(
        UserError,
        match=(
            r"is not a saved decoder \(no model_index\.json\); `braingen demo` leaves one in"
            r" runs/demo/decoder"
        ),
    ):
        BrainDecoder.from_pretrained(tmp_path)


def test_pixels_are_rounded_to_eight_bits():
    image = to_pil(torch.tensor([0.0, 0.498, 1.0])[None, :, None, None].expand(1, 3, 2, 2))[0]
    assert image.mode == "RGB" and image.getpixel((1, 1)) == (0, 127, 255)
