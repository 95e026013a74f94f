"""Images by id, their content keys, and captions."""

from __future__ import annotations

import json

import h5py
import numpy as np
import pytest
from unit.fake_nsd import SIZE, write_images

from braingen.data.captions import load_captions
from braingen.data.stimuli import Stimuli
from braingen.runtime.data_layout import Layout
from braingen.runtime.errors import UserError


@pytest.fixture
def pictures():
    return np.random.default_rng(0).random((12, 3, SIZE, SIZE)).astype(np.float16)


@pytest.mark.parametrize("chunks", [False, True])
def test_images_by_id(tmp_path, pictures, chunks):
    layout = Layout(tmp_path)
    write_images(layout.images(), pictures, chunks, simulated=chunks)
    stimuli = Stimuli(layout)
    assert len(stimuli) == 12 and stimuli.size == (SIZE, SIZE) and stimuli.simulated is chunks
    ids = [7, 2, 2, 11, 0]
    found = stimuli.images(ids)
    assert found.dtype == np.float32 and np.array_equal(found, pictures[ids].astype(np.float32))
    with pytest.raises(UserError, match="row 12 was asked for, `images` has rows 0-11"):
        stimuli.images([12])


@pytest.mark.parametrize("value", [1.5, -0.1, np.nan, np.inf])
def test_values_outside_the_range_are_named(tmp_path, pictures, value):
    layout = Layout(tmp_path)
    pictures[5, 1, 2, 3] = value
    write_images(layout.images(), pictures)
    stimuli = Stimuli(layout)
    stimuli.images([0, 4, 6])
    with pytest.raises(UserError, match=r"image 5 has values"):
        stimuli.images([6, 5])


def test_wrong_form_is_refused(tmp_path, pictures):
    layout = Layout(tmp_path)
    write_images(layout.images(), (pictures * 255).astype(np.uint8))
    with pytest.raises(UserError, match="uint8"):
        Stimuli(layout)
    write_images(layout.images(), pictures.transpose(0, 2, 3, 1))
    with pytest.raises(UserError, match=r"\(12, 8, 8, 3\)"):
        Stimuli(layout)
    layout.images().unlink()
    with pytest.raises(UserError, match="is missing"):
        Stimuli(layout)


def test_digests_follow_the_content(tmp_path, pictures):
    layout = Layout(tmp_path)
    write_images(layout.images(), pictures)
    digests = Stimuli(layout).digests(np.arange(12))
    assert Stimuli(layout).digests([4, 4, 1]).tolist() == digests[[4, 4, 1]].tolist()
    pictures[4, 0, 0, 0] += 0.125
    write_images(layout.images(), pictures, chunks=True)  # stored otherwise, and one value changed
    assert np.flatnonzero(Stimuli(layout).digests(np.arange(12)) != digests).tolist() == [4]
    pictures[4, 0, 0, 0] -= 0.125
    pictures[[3, 1]] = pictures[[1, 3]]
    write_images(layout.images(), pictures)
    assert np.flatnonzero(Stimuli(layout).digests(np.arange(12)) != digests).tolist() == [
        1,
        3,
    ]  # the same images under other ids


def test_an_image_is_hashed_once(tmp_path, pictures, monkeypatch):
    layout = Layout(tmp_path)
    write_images(layout.images(), pictures)
    digests = Stimuli(layout).digests(np.arange(12))
    stimuli = Stimuli(layout)
    monkeypatch.setattr(stimuli.rows, "take", lambda ids: pytest.fail("read again"))
    assert (stimuli.digests(np.arange(12)) == digests).all()


def test_captions_from_json(tmp_path):
    layout = Layout(tmp_path)
    layout.captions().write_text(json.dumps({"0": ["a", " b ", ""], "7": ["c"], "8": ["", " "]}))
    captions = load_captions(layout)
    assert captions[0] == ("a", "b") and captions[7] == ("c",)
    assert 8 not in captions and len(captions) == 2
    assert captions.missing([8, 0, 3, 3, np.int64(7)]) == [3, 8]
    with pytest.raises(UserError, match="no caption for image 8"):
        captions[8]


def test_captions_of_mindeye2(tmp_path):
    layout = Layout(tmp_path)
    np.save(layout.captions_mindeye2(), np.array([["a", "b", ""], ["", "", ""]]))
    captions = load_captions(layout)
    assert captions[0] == ("a", "b") and captions.missing([0, 1]) == [1]
    layout.captions().write_text('{"0": ["from JSON"]}')
    assert load_captions(layout)[0] == ("from JSON",)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('{"0": ["a"', "cut short"),
        ("[1, 2]", "holds a list"),
        ('{"zero": ["a"]}', '"zero"'),
        ('{"0": "a"}', '"0"'),
        ('{"0": [1]}', '"0"'),
        ("", "empty"),
    ],
)
def test_damaged_captions_end_in_a_sentence(tmp_path, content, words):
    layout = Layout(tmp_path)
    layout.captions().write_text(content)
    with pytest.raises(UserError, match=words):
        load_captions(layout)


def test_pickled_captions_are_not_opened(tmp_path):
    layout = Layout(tmp_path)
    np.save(
        layout.captions_mindeye2(), np.array([["a"], ["b", "c"]], dtype=object), allow_pickle=True
    )
    with pytest.raises(UserError, match=r"cannot be read as \.npy"):
        load_captions(layout)


def test_no_captions_at_all(tmp_path):
    with pytest.raises(UserError, match=r"coco_captions.json is missing"):
        load_captions(Layout(tmp_path))


def test_simulated_is_false_without_the_attribute(tmp_path, pictures):
    layout = Layout(tmp_path)
    with h5py.File(layout.images(), "w") as file:
        file["images"] = pictures
    assert Stimuli(layout).simulated is False
