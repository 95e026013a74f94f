"""Synthetic trials where images are named and their share is not."""

from __future__ import annotations

import pytest

from braingen.config import load_config
from braingen.config.run_and_data import SHARE_OF_NAMED_IMAGES


@pytest.mark.parametrize("config", [None, "nsd_subj01"])
@pytest.mark.parametrize(
    ("given", "share"),
    [
        ({}, 0.0),
        ({"data.synthetic_images": "images"}, SHARE_OF_NAMED_IMAGES),
        ({"data.synthetic_images": "images", "data.synthetic_share": "0.5"}, 0.5),
        ({"data.synthetic_share": "0.25"}, 0.25),
    ],
)
def test_named_images_have_the_share_that_held_out_images_chose(config, given, share):
    assert load_config(config, given).data.synthetic_share == share
