"""What drives the voxels of every subject, for encoders whose experts are groups of voxels: an
encoding model per subject, fitted to the trials that are trained on, in one shared space.

P features, K dimensions of the shared space, V voxels.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from braingen.config import Config
from braingen.data.betas import Betas
from braingen.encoders.base import VoxelTuning
from braingen.encoding_model.banded_ridge import candidate_scales
from braingen.encoding_model.features import FeatureSpaces
from braingen.encoding_model.model import EncodingModel
from braingen.encoding_model.responses import average_responses
from braingen.encoding_model.voxel_space import shared_space
from braingen.runtime.console import Progress
from braingen.runtime.device import device_of
from braingen.targets.tables import Targets
from braingen.types import Trials

REFERENCE = 1000
"""Most pictures whose predicted responses define the space."""


def voxel_tuning(
    config: Config,
    targets: Targets,
    subjects: Sequence[tuple[Trials, Betas]],
    width: int,
    space_KP: np.ndarray | None = None,
) -> tuple[dict[int, VoxelTuning], np.ndarray]:
    """Fit what drives the voxels of every subject.

    Parameters
    ----------
    subjects : Sequence[tuple[Trials, Betas]]
        Measured training trials of every subject.
    width : int
        K.
    space_KP : np.ndarray | None, optional
        The shared space of earlier people; by default that of these.

    Returns
    -------
    tuple[dict[int, VoxelTuning], np.ndarray]
        Tuning by subject, and the space.
    """
    spaces = FeatureSpaces(config, targets)
    models: dict[int, EncodingModel] = {}
    images: list[np.ndarray] = []
    scales_CB = candidate_scales(len(spaces.bands), config.encoding.band_draws, config.run.seed)
    with Progress() as progress:
        bar = progress.add_task("tuning of voxels", total=len(scales_CB) * len(subjects))
        for trials, betas in subjects:
            responses = average_responses(trials, betas)
            images.append(responses.image_N)
            models[trials.subject] = EncodingModel.fit(
                spaces.of_ids(responses.image_N),
                responses,
                scales_CB,
                config.encoding.left_out_images,
                config.run.seed,
                device_of(config),
                lambda: progress.advance(bar),
            )
    if space_KP is None:
        reference_N = np.unique(np.concatenate(images))
        reference_N = reference_N[:: -(-len(reference_N) // REFERENCE)]
        space_KP = shared_space(list(models.values()), spaces.of_ids(reference_N), width) / np.sqrt(
            len(reference_N), dtype=np.float32
        )
        if len(space_KP) < width:  # fewer pictures than dimensions
            space_KP = np.pad(space_KP, ((0, width - len(space_KP)), (0, 0)))
    return {subject: _tuning(model, space_KP) for subject, model in models.items()}, space_KP


def _tuning(model: EncodingModel, space_KP: np.ndarray) -> VoxelTuning:
    weight_VK = (space_KP @ model.ridge.coefficients_PV).T
    return VoxelTuning(
        torch.from_numpy(np.ascontiguousarray(weight_VK, dtype=np.float32)),
        torch.from_numpy(1 / np.maximum(model.noise.variance_V, 0.05).astype(np.float32)),
    )
