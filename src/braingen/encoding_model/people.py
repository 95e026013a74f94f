"""Groups of other people's voxels, by what they are tuned to: the prior of a new person's encoding
model (group_prior.py).

P features, K directions, G groups, V voxels of all people.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from braingen.encoders.region_groups import spherical_groups
from braingen.encoding_model.group_prior import GroupPrior, leading_directions
from braingen.encoding_model.model import EncodingModel
from braingen.encoding_model.voxel_space import shared_space

GROUPS = 16
"""Groups of voxels."""
FEWEST = 20
"""Voxels of the smallest group."""


def people_groups(
    models: Sequence[EncodingModel],
    features: Mapping[str, np.ndarray],
    groups: int = GROUPS,
    seed: int = 0,
) -> GroupPrior:
    """Group other people's voxels, and describe every group's weights.

    Parameters
    ----------
    models : Sequence[EncodingModel]
        Of other people, with the same bands.
    features : Mapping[str, np.ndarray]
        Bands of pictures by whose predicted responses voxels are compared.
    """
    space_KP = shared_space(models, features)
    weights = [
        model.ridge.coefficients_PV / np.sqrt(np.maximum(model.noise.variance_V, 1e-6))
        for model in models
    ]
    weight_PV = np.concatenate(weights, axis=1)
    direction_VK = np.concatenate([model.embed_voxels(space_KP) for model in models])
    explained_V = np.concatenate([np.maximum(model.explained_V, 1e-3) for model in models])
    centres_GK = spherical_groups(
        torch.from_numpy(direction_VK), torch.from_numpy(explained_V**2), groups, seed
    ).numpy()
    group_V = (direction_VK @ centres_GK.T).argmax(1)
    members = [np.flatnonzero(group_V == group) for group in range(groups)]
    wanted = [np.arange(len(group_V)), *(each for each in members if len(each) >= FEWEST)]
    return GroupPrior(tuple(leading_directions(weight_PV[:, each]) for each in wanted))
