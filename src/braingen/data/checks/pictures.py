"""Checks of the pictures and captions that trials name."""

from __future__ import annotations

import numpy as np

from braingen.data import nsd
from braingen.data.captions import load_captions
from braingen.data.checks.problem import Problem, some
from braingen.data.stimuli import Stimuli
from braingen.runtime.data_layout import Layout
from braingen.runtime.errors import UserError

_IMAGES_CHECKED, _AT_ONCE = 512, 32


def check_images(layout: Layout, ids: np.ndarray) -> Problem:
    """Check that the images of all ids are there, and read a sample of them."""
    try:
        stimuli = Stimuli(layout)
        if len(ids) and ids[-1] >= len(stimuli):
            raise UserError(
                f"{stimuli.path} has {len(stimuli)} images, the tars name ids up to {ids[-1]} "
                f"(from 0): it is cut short or of other data; {nsd.GET_IT}."
            )
        places = np.linspace(0, len(ids) - 1, min(len(ids), _IMAGES_CHECKED)).astype(np.int64)
        for first in range(0, len(places) if stimuli.has_pictures else 0, _AT_ONCE):
            stimuli.images(ids[places[first : first + _AT_ONCE]])
    except UserError as error:
        return Problem("error", None, "images", str(error))
    if not stimuli.has_pictures:
        sentence = (
            f"Features of {len(stimuli)} simulated scenes, without pictures; {len(ids)} of them are"
            " used."
        )
        return Problem("ok", None, "images", sentence)
    kind = "simulated scenes" if stimuli.simulated else "images"
    height, width = stimuli.size
    sentence = f"{len(stimuli)} {kind} of {height} x {width} pixels; {len(ids)} of them are used."
    return Problem("ok", None, "images", sentence)


def check_captions(layout: Layout, ids: np.ndarray) -> Problem:
    """Check that every image has a caption."""
    try:
        captions = load_captions(layout)
    except UserError as error:
        return Problem("error", None, "captions", str(error))
    missing = np.array(captions.missing(ids))
    if not len(missing):
        return Problem("ok", None, "captions", f"All {len(ids)} images used have captions.")
    sentence = (
        f"{captions.path} has no caption for {len(missing)} of the {len(ids)} images used "
        f"({some(missing)}), at least one each was expected; add them, or write the file with "
        "`braingen prepare` (from COCO's annotations)."
    )
    return Problem("error", None, "captions", sentence)
