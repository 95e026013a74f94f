"""`decoder.decode`: what people hold goes in, and one object with everything comes out."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from unit.fake_backbone import IMAGE_WIDTH
from unit.test_decoder import FEW, decoder_of, pixels, voxels

from braingen.data.model_facts import model_facts, order_digest
from braingen.data.volumes import VoxelPlaces, save_places
from braingen.encoders.confidence import Confidence, read_features
from braingen.generation.captions import CaptionLibrary
from braingen.generation.output import spread_of_presentations, spread_of_samples
from braingen.generation.pipeline import BrainDecoder
from braingen.runtime.data_layout import Layout
from braingen.runtime.errors import UserError
from braingen.runtime.model_card import ModelFacts

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
ONE = {"num_inference_steps": 1, "guidance_scale": 2.0}


@pytest.fixture(scope="module")
def decoder() -> BrainDecoder:
    made = decoder_of()
    width = made.brain_text.config.encoder_config["clip_emb_dim"]
    library = torch.randn(4, 1, width, generator=torch.Generator().manual_seed(5))
    made.caption_library = CaptionLibrary(
        library, ["a cup", "<i>a cat</i>", "a bus", "a tree"], "simulated data"
    )
    return made


@pytest.fixture(scope="module")
def expected(decoder) -> np.ndarray:
    return pixels(decoder.decode(voxels(2), subject=1, **ONE).images)


@pytest.mark.parametrize("kind", ["array64", "tensor", "half", "list", "file", "B x R x V"])
@pytest.mark.slow
def test_the_same_voxels_in_any_form_give_the_same_images(decoder, expected, kind, tmp_path):
    given = voxels(2)
    np.save(tmp_path / "voxels.npy", given)
    forms = {
        "array64": given.astype(np.float64),
        "tensor": torch.from_numpy(given),
        "half": torch.from_numpy(given).bfloat16(),
        "list": given.tolist(),
        "file": tmp_path / "voxels.npy",
        "B x R x V": given[:, None],
    }
    found = pixels(decoder.decode(forms[kind], subject=1, **ONE).images)
    assert np.abs(found - expected).max() <= (40 if kind == "half" else 0)
    assert decoder.__call__.__func__ is decoder.decode.__func__


@pytest.mark.slow
def test_one_response_is_one_image(decoder, expected):
    out = decoder.decode(voxels(2)[0], subject=1, **ONE)
    np.testing.assert_array_equal(pixels(out.images), expected[:1])
    assert decoder.decode(voxels(2)[0], subject=1, image_ids=[7], **ONE).image_ids == [7]
    with pytest.raises(UserError, match="image_ids names 2 pictures, voxels are of 1"):
        decoder.decode(voxels(2)[0], subject=1, image_ids=[7, 8], **ONE)


def data_folder(root: Path, seed: int = 0) -> tuple[Layout, VoxelPlaces]:
    mask = np.zeros((4, 4, 4), dtype=bool)
    mask.ravel()[np.random.default_rng(seed).permutation(64)[:30]] = True
    places = VoxelPlaces(mask, "C", np.diag([2.0, 2.0, 2.0, 1.0]), "a test")
    layout = Layout.of(root)
    layout.volumes(1).mkdir(parents=True)
    save_places(layout, 1, places)
    return layout, places


def test_a_nifti_image_is_read_at_the_subjects_voxels(decoder, expected, tmp_path):
    _, places = data_folder(tmp_path)
    volume = places.to_volume(voxels(2).T)
    image = nibabel.Nifti1Image(volume, places.affine)
    found = decoder.decode(image, subject=1, data_root=tmp_path, **ONE)
    np.testing.assert_array_equal(pixels(found.images), expected)
    one = nibabel.Nifti2Image(volume[..., 0], places.affine)
    assert len(decoder.decode(one, subject=1, data_root=tmp_path, **ONE).images) == 1
    with pytest.raises(UserError, match=r"data_root="):
        decoder.decode(image, subject=1, **ONE)
    with pytest.raises(UserError, match="it is in another space"):
        decoder.decode(nibabel.Nifti1Image(volume, np.eye(4)), 1, data_root=tmp_path, **ONE)
    surface = nibabel.gifti.GiftiImage()
    with pytest.raises(UserError, match=r"GiftiImage.*give the path"):
        decoder.decode(surface, subject=1, data_root=tmp_path, **ONE)


def test_a_data_folder_with_the_voxels_in_another_order_is_refused(tmp_path):
    decoder = decoder_of()
    layout, places = data_folder(tmp_path / "trained")
    decoder.facts = model_facts("decoder", "x", {1: 30, 5: 23}, root=tmp_path / "trained")
    assert decoder.facts.of_subject(1).order_digest == order_digest(layout.root, 1)
    assert decoder.facts.of_subject(5).order_digest == ""
    embeddings_only = {"num_inference_steps": 0}
    decoder.decode(voxels(1), 1, data_root=tmp_path / "trained", **embeddings_only)
    other = Layout.of(tmp_path / "other")
    other.volumes(1).mkdir(parents=True)
    save_places(other, 1, places._replace(order="F"))
    with pytest.raises(UserError, match=r"other voxels of subject 1, or another order"):
        decoder.decode(voxels(1), 1, data_root=tmp_path / "other", **embeddings_only)


def test_captions_are_the_nearest_around_the_mean(decoder):
    out = decoder.decode(voxels(3), subject=1, num_inference_steps=0)
    assert out.images == [] and out.routing == {} and len(out.captions) == 3
    library = decoder.caption_library
    known = library.embedding_NTD.flatten(1)
    mean = known.mean(0)
    for caption, text_TD in zip(out.captions, out.decoded.text_BTD):
        cosine = torch.cosine_similarity(known - mean, (text_TD.flatten() - mean)[None])
        assert caption == library.texts[int(cosine.argmax())]
    plain = decoder_of()
    assert plain.decode(voxels(1), subject=1, num_inference_steps=0).captions is None


@pytest.mark.slow
def test_captions_are_kept_with_the_decoder_and_loaded_when_needed(decoder, tmp_path):
    calls = []
    lazy = decoder_of()
    lazy.caption_library = lambda: calls.append(1) or decoder.caption_library
    assert not calls
    lazy.save_pretrained(tmp_path)
    assert calls == [1]
    again = BrainDecoder.from_pretrained(tmp_path).caption_library
    assert list(again.texts) == decoder.caption_library.texts
    torch.testing.assert_close(again.embedding_NTD, decoder.caption_library.embedding_NTD)


@pytest.mark.slow
def test_uncertainty_is_there_where_something_is_repeated(decoder):
    assert decoder.decode(voxels(2), subject=1, num_inference_steps=0).uncertainty is None
    given = voxels(2, repeats=3)
    given[1, 1:] = np.nan
    found = decoder.decode(given, subject=1, batch_size=1, num_inference_steps=0).uncertainty
    assert found.pixels_BHW is None and found.embedding_B[0] > 0
    assert torch.isnan(found.embedding_B[1])
    alike = np.repeat(voxels(2)[:, None], 3, axis=1)
    found = decoder.decode(alike, subject=1, num_inference_steps=0).uncertainty
    assert found.embedding_B.max() < 1e-5
    out = decoder.decode(voxels(2), subject=1, samples=3, **ONE)
    assert [len(each) for each in out.samples] == [3, 3]
    assert out.uncertainty.pixels_BHW.shape == (2, 32, 32) and out.uncertainty.embedding_B is None
    assert out.uncertainty.pixels_BHW.mean() > 0.001
    np.testing.assert_array_equal(pixels([out.samples[0][0]]), pixels(out.images[:1]))


def test_the_standard_error_is_that_of_numpy():
    each = torch.randn(4, 3, 2, 5, generator=torch.Generator().manual_seed(1))
    present = torch.tensor([[1, 1, 1], [1, 1, 0], [1, 0, 0], [0, 1, 1]]).bool()
    found = spread_of_presentations(each, present)
    for row, error in enumerate(found):
        some = each[row][present[row]].numpy()
        if len(some) < 2:
            assert torch.isnan(error)
            continue
        sem = some.std(0, ddof=1) / np.sqrt(len(some))
        np.testing.assert_allclose(error, np.sqrt((sem**2).mean()), rtol=1e-5)
    assert spread_of_presentations(each[:, :1], present[:, :1] | True) is None
    images = [torch.rand(2, 3, 4, 4) for _ in range(5)]
    wanted = np.stack([x.numpy() for x in images]).std(0, ddof=1).mean(1)
    np.testing.assert_allclose(spread_of_samples(images), wanted, rtol=1e-4)


@pytest.mark.slow
def test_image_or_text_alone_size_and_strength_of_the_image(decoder, expected):
    alone = [
        pixels(decoder.decode(voxels(2), subject=1, **ONE, **named).images)
        for named in ({"use_image": False}, {"use_text": False}, {"ip_adapter_scale": 0.0})
    ]
    for one in alone:
        assert np.abs(one - expected).max() > 1
    large = decoder.decode(voxels(1), subject=1, size=64, **ONE).images[0]
    assert large.size == (64, 64)
    with pytest.raises(UserError, match="Leave one of them on"):
        decoder.decode(voxels(1), subject=1, use_image=False, use_text=False)


@pytest.mark.parametrize(
    ("named", "sentence"),
    [
        ({"num_inference_steps": -1}, "num_inference_steps = -1 is not allowed: give 0 or more"),
        ({"samples": 0}, "samples = 0 is not allowed"),
        ({"batch_size": 0}, "batch_size = 0 is not allowed"),
        ({"level": 2}, "level = 2, but the image encoder has levels 0 to 1"),
        ({"negative_prompt": "blur"}, "text_encoders="),
    ],
)
def test_what_cannot_be_met_is_refused(decoder, named, sentence):
    with pytest.raises(UserError, match=sentence):
        decoder.decode(voxels(1), subject=1, **named)


def test_one_level_gives_other_images_than_all(decoder, expected):
    found = [
        pixels(decoder.decode(voxels(2), subject=1, level=level, **ONE).images) for level in (0, 1)
    ]
    assert np.abs(found[0] - found[1]).max() > 1 and np.abs(found[0] - expected).max() > 1


def test_embeddings_come_from_arrays(decoder):
    given = voxels(2)
    first = decoder.embed(given[:, None], 1, [0, 1])
    again = decoder.embed(torch.from_numpy(given[:, None]), 1, [0, 1])
    torch.testing.assert_close(first.image_BTD, again.image_BTD)
    assert first.image_BTD.shape == (2, 1, IMAGE_WIDTH)
    with pytest.raises(UserError, match=r"of shape \(2, 30\); expected B x R x V"):
        decoder.embed(given, 1, [0, 1])


@pytest.mark.slow
def test_a_notebook_shows_images_and_escapes_captions(decoder):
    out = decoder.decode(voxels(2, repeats=2), subject=1, **ONE)
    out.captions[0] = '<script>alert("x")</script>'
    shown = out._repr_html_()
    assert shown.count("<img") == shown.count('alt="Decoded from brain activity: image') == 2
    assert "<script" not in shown and "&lt;script&gt;" in shown and "standard error" in shown
    many = decoder.decode(voxels(30), subject=1, num_inference_steps=0)._repr_html_()
    assert "and 6 more" in many and "<img" not in many


def test_facts_stay_where_nothing_new_is_found():
    first = ModelFacts("decoder", "x", (), data="NSD", seed=4, backbone="tiny")
    again = model_facts("decoder", "x", {1: 30}, known=first)
    assert (again.data, again.seed, again.backbone) == ("NSD", 4, "tiny")
    assert again.of_subject(1).voxels == 30 and FEW


def test_a_calibrated_decoder_tells_how_close_its_embeddings_are(decoder):
    image = decoder.brain_image
    assert decoder.decode(voxels(2), subject=1, **ONE).uncertainty is None
    image.confidence = Confidence()
    try:
        draws = torch.Generator().manual_seed(0)
        features = torch.randn(40, 3, generator=draws)
        image.confidence.fit(1, features, torch.rand(40, generator=draws) + 0.1)
        out = decoder.decode(voxels(3), subject=1, **ONE)
        each = image(torch.from_numpy(voxels(3)), 1).backbone_BTD[:, None].detach()
        read = read_features(each, torch.ones(3, 1, dtype=torch.bool), image.predicted)
        expected = image.confidence(read.features_BF, torch.ones(3))
        torch.testing.assert_close(out.uncertainty.cosine.least_B, expected.least_B)
        torch.testing.assert_close(out.uncertainty.cosine.expected_B, expected.expected_B)
        assert out.uncertainty.embedding_B is None
        assert f"expected cosine {expected.expected_B[0].item():.2f}" in out._repr_html_()
    finally:
        image.confidence = None
