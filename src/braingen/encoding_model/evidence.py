"""The image that measured responses fit best, among candidates or of two.

N images, V voxels.
"""

from __future__ import annotations

import numpy as np

from braingen.encoding_model.model import EncodingModel


def evidence_of(
    model: EncodingModel, responses_NV: np.ndarray, predicted_NV: np.ndarray
) -> np.ndarray:
    """Log likelihood of responses under the noise around a prediction each, less that around the
    mean response: N.

    Parameters
    ----------
    responses_NV : np.ndarray
        Measured, averaged over presentations.
    predicted_NV : np.ndarray
        What the model predicts to the images.
    """
    mean_V = model.ridge.voxel_mean_V
    signal_NV = predicted_NV - mean_V
    whitened_NV = model.noise.whiten(signal_NV)
    match_N = np.einsum("nv,nv->n", whitened_NV, responses_NV - mean_V)
    return match_N - 0.5 * np.einsum("nv,nv->n", whitened_NV, signal_NV)


def discriminate(
    model: EncodingModel, responses_NV: np.ndarray, predicted_NV: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Tell every seen image from every other one by the responses to it.

    Parameters
    ----------
    predicted_NV : np.ndarray
        To the seen images, in the order of the responses.

    Returns
    -------
    tuple[np.ndarray, np.ndarray]
        beats_NN, bool: the responses to image i are likelier under its own prediction than under
        that of j (False on the diagonal); nearest_N: the other image with the most similar
        prediction, the hardest pair.
    """
    mean_V = model.ridge.voxel_mean_V
    signal_NV = predicted_NV - mean_V
    whitened_NV = model.noise.whiten(signal_NV)
    cross_NN = whitened_NV @ signal_NV.T
    length_N = np.diag(cross_NN)
    evidence_NN = (responses_NV - mean_V) @ whitened_NV.T - 0.5 * length_N
    beats_NN = np.diag(evidence_NN)[:, None] > evidence_NN
    distance_NN = length_N[:, None] + length_N - 2 * cross_NN
    np.fill_diagonal(distance_NN, np.inf)
    return beats_NN, distance_NN.argmin(1)
