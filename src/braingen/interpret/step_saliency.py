"""The step `saliency` of `braingen interpret`: image regions by population receptive fields."""

from __future__ import annotations

import numpy as np

from braingen.data.large_files import blocks, scratch_array
from braingen.data.volumes import load_label_vector
from braingen.evaluation.uncertainty import mean_interval
from braingen.interpret.question import Explanation
from braingen.interpret.readout import WHOLE, parts_of
from braingen.interpret.saliency import (
    ReceptiveFields,
    beyond_usual,
    gaussians,
    inside_outside,
    pointing_game,
    saliency,
)
from braingen.runtime.arrays import new_npy
from braingen.runtime.errors import UserError
from braingen.runtime.files import replaced_path, write_json
from braingen.simulation.pictures import load_scenes
from braingen.simulation.scenes import object_mask

SIDE = 48
"""Pixels of a saliency map along one side: 0.18 degrees each, finer than any receptive field."""


def write_saliency(work: Explanation) -> None:
    """Project attributions through receptive fields, for every part that has maps."""
    for subject in work.inputs.subjects:
        try:
            polar = [load_label_vector(work.layout, subject.number, name, subject.places)
                     for name in ("prf_eccentricity", "prf_angle", "prf_size")]  # fmt: skip
        except UserError as error:
            work.report(f"Saliency: skipped, because receptive fields are missing. {error}")
            return
        gaussian_VP = gaussians(
            ReceptiveFields.from_polar(*polar), SIDE, work.config.interpret.field_of_view
        )
        finished = [
            part for part in parts_of(work.experts) if work.map_file(subject, part).finished
        ]
        if not finished:
            raise UserError(
                "There are no maps yet: run `braingen interpret` with the step attributions first."
            )
        map_NP = scratch_array(work.folder, (len(subject.image_N), SIDE * SIDE))
        for part in finished:
            beyond_usual(saliency(work.map_file(subject, part).maps(), gaussian_VP, map_NP), map_NP)
            with replaced_path(work.of(subject) / "saliency" / f"{part.name}.npy") as path:
                kept = new_npy(path, np.float16, (len(map_NP), SIDE, SIDE))
                for first, last in blocks(len(map_NP), 64):
                    kept[first:last] = map_NP[first:last].reshape(-1, SIDE, SIDE)
                del kept
            if part == WHOLE and work.inputs.simulated:
                scenes = load_scenes(work.layout, subject.image_N.tolist())
                object_NP = np.stack([object_mask(scene, SIDE).ravel() for scene in scenes])
                pointing = pointing_game(map_NP, object_NP, seed=work.config.run.seed)
                inside = mean_interval(inside_outside(map_NP, object_NP), 2000)
                write_json(
                    work.of(subject) / "pointing.json",
                    {**pointing._asdict(), "inside": inside._asdict()},
                )
                work.report(
                    f"Saliency, subject {subject.number}: the maximum lies on the object"
                    f" in {pointing.hits:.0%} of images; with maps of other images"
                    f" {pointing.chance:.0%} (gain {pointing.gain:.2f}, 95 % interval"
                    f" {pointing.gain_low:.2f} to {pointing.gain_high:.2f})."
                )
