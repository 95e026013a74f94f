"""Brain correlation: do generated images predict the responses that were measured?

An encoding model predicts every voxel's responses to the generated images; the score is the
correlation with the measured ones over images, averaged over the voxels of a region (MindEye2).

N images, V voxels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch

from braingen.config import Config
from braingen.data.volumes import read_regions
from braingen.encoding_model.run import load_encoding
from braingen.evaluation import uncertainty
from braingen.evaluation.encoding_scores import test_responses
from braingen.runtime.data_layout import Layout
from braingen.runtime.errors import UserError
from braingen.targets.tables import Targets
from braingen.types import Score

WHOLE = "brain_correlation"
REGIONS = {
    f"{WHOLE}_v1": "V1",
    f"{WHOLE}_v2": "V2",
    f"{WHOLE}_v3": "V3",
    f"{WHOLE}_v4": "V4",
    f"{WHOLE}_higher": "higher_vis",
}
"""Score -> region of brain_region_masks.hdf5; `WHOLE` is over all voxels."""
FEWEST = 5
"""Number of images below which no correlation is computed."""
_BATCH = 32


def correlation_parts(predicted_NV: np.ndarray, measured_NV: np.ndarray) -> np.ndarray:
    """Every image's part in every voxel's correlation over images, N x V: its mean over images is
    the correlation. Zero in voxels without variance.
    """
    parts = []
    for rows in (predicted_NV, measured_NV):
        centred_NV = rows - rows.mean(0, dtype=np.float64)
        spread_V = centred_NV.std(0)
        parts.append(np.where(spread_V > 1e-9, centred_NV / np.maximum(spread_V, 1e-9), 0))
    return parts[0] * parts[1]


def brain_values(
    predicted_NV: np.ndarray, measured_NV: np.ndarray, regions: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Values of every image, by score; their mean is the score.

    Parameters
    ----------
    regions : Mapping[str, np.ndarray]
        Name -> bool per voxel; scores of regions that are missing or empty are left out.
    """
    parts_NV = correlation_parts(predicted_NV, measured_NV)
    found = {WHOLE: parts_NV.mean(1)}
    for name, region in REGIONS.items():
        inside_V = regions.get(region)
        if inside_V is not None and len(inside_V) == parts_NV.shape[1] and inside_V.any():
            found[name] = parts_NV[:, inside_V].mean(1)
    return found


class BrainScorer:
    """Scores generated images by the encoding model of the run.

    Parameters
    ----------
    config : Config
        Of one subject that has an encoding model.
    """

    def __init__(self, config: Config, targets: Targets, ids: np.ndarray) -> None:
        self.config, self.ids = config, ids
        self.trained = load_encoding(config, targets)
        self.trained.spaces.refuse_captions()

    @cached_property
    def measured_NV(self) -> np.ndarray:
        """Responses to the seen images."""
        return test_responses(self.config, self.ids)

    @cached_property
    def regions(self) -> dict[str, np.ndarray]:
        """Regions of the subject's voxels; none where the data folder has no masks."""
        try:
            layout = Layout.of(self.config.data.root)
            return read_regions(layout, self.config.data.subjects[0])
        except UserError:
            return {}

    def predicted(self, images: Sequence[Any]) -> np.ndarray:
        """Responses that the encoding model predicts to images: N x V."""
        rows = []
        for start in range(0, len(images), _BATCH):
            some = np.stack([images[k] for k in range(start, min(start + _BATCH, len(images)))])
            pixels = torch.from_numpy(some).float() / (255 if some.dtype == np.uint8 else 1)
            rows.append(self.trained.model.predict(self.trained.spaces.of_images(pixels)))
        return np.concatenate(rows)

    def scores(
        self, images: Sequence[Any], resamples: int, seed: int
    ) -> tuple[dict[str, Score], dict[str, np.ndarray]]:
        """Scores with intervals over images, and the values of every image."""
        if len(self.ids) < FEWEST:
            return {}, {}
        values = brain_values(self.predicted(images), self.measured_NV, self.regions)
        scores = {
            name: Score(
                *uncertainty.mean_interval(each, resamples, seed),
                random=None,
                oracle=None,
                ridge=None,
                chance=0.0,
                n=len(each),
                pool=None,
            )
            for name, each in values.items()
        }
        return scores, values
