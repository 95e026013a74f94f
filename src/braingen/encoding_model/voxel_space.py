"""Voxel embeddings: what a voxel responds to, in a space that all people share.

Two voxels are alike when their predicted responses to images are: the space is that of the
leading directions of predicted response profiles, over the voxels of all people, expressed as a map
from feature weights, so that a new person's voxels need their weights alone.

P features, L images, V voxels, K dimensions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from braingen.encoding_model.banded_ridge import stack_bands
from braingen.encoding_model.model import EncodingModel

WIDTH = 64
"""Dimensions of a voxel embedding."""


def shared_space(
    models: Sequence[EncodingModel], features: Mapping[str, np.ndarray], width: int = WIDTH
) -> np.ndarray:
    """The map from feature weights to the shared space: K x P, float32.

    Parameters
    ----------
    models : Sequence[EncodingModel]
        Of all people, with the same bands.
    features : Mapping[str, np.ndarray]
        Bands of reference images.
    width : int, optional
        K, at most the number of images.
    """
    x_LP = stack_bands(features, models[0].ridge.bands)
    x_LP = x_LP - x_LP.mean(0)
    gram_LL = np.zeros((len(x_LP), len(x_LP)))
    for model in models:
        profile_LV = x_LP @ model.ridge.coefficients_PV
        length_V = np.maximum(np.linalg.norm(profile_LV, axis=0), 1e-12)
        profile_LV /= length_V  # every voxel counts alike, whatever its signal
        gram_LL += profile_LV @ profile_LV.T
    _, vector_LL = np.linalg.eigh(gram_LL)
    leading_LK = vector_LL[:, ::-1][:, :width]
    return (leading_LK.T @ x_LP).astype(np.float32)
