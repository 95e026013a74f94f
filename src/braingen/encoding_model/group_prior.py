"""A person's encoding model by what other people's voxels are tuned to: a mixture of groups.

Voxels of several people fall into groups with the same tuning (people.py). The weights of a
new person's voxel are Gaussian with the covariance that the weights of one of these groups have; by
which group, and at which penalty, its responses are most likely is not decided but averaged over
(marginal likelihood, the variance profiled out). All people's weights together, and every band by
itself, are candidates too, for a voxel like nobody's. All in closed form: with A the images'
features along the directions of a group, A'A = Q l Q',

    log p = -n/2 log(s) - 1/2 sum log(l + penalty),   s = y'(A A' + penalty)^-1 y / n.

N images, P features, K directions of a candidate, G candidates, A penalties, V voxels, J images
whose left-out residuals are kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy.linalg import eigh
from scipy.special import softmax

from braingen.encoding_model.banded_ridge import (
    LEFT_OUT,
    BandedRidge,
    band_slices,
    check_fit,
    stack_bands,
)

DIRECTIONS = 128
"""Most directions of features along which a group's weights vary."""
PENALTIES = tuple(10.0 ** (power / 2) for power in range(-5, 6))
"""Grid, in units of the mean square of a candidate's features."""
_SMALL = 1e-3
"""Weight below which a candidate is left out of a voxel's average."""


class GroupPrior(NamedTuple):
    """What groups of other people's voxels are tuned to."""

    maps_GPK: tuple[np.ndarray, ...]
    """P x K each: directions of features, times the standard deviation of weights along them; all
    voxels first, then group by group.
    """


def leading_directions(weight_PV: np.ndarray) -> np.ndarray:
    """Leading eigenvectors of the mean W W' times the roots of their eigenvalues: P x K."""
    features, voxels = weight_PV.shape
    if voxels < features:
        value_K, vector_VK = eigh(weight_PV.T.astype(np.float64) @ weight_PV / voxels)
        kept = value_K > max(value_K[-1], 0) * 1e-7
        value_K, vector_VK = value_K[kept][-DIRECTIONS:], vector_VK[:, kept][:, -DIRECTIONS:]
        return (weight_PV @ vector_VK / np.sqrt(voxels)).astype(np.float32)
    first = (max(0, features - DIRECTIONS), features - 1)
    value_K, vector_PK = eigh(weight_PV @ weight_PV.T / voxels, subset_by_index=first)
    return (vector_PK * np.sqrt(np.maximum(value_K, 0))).astype(np.float32)


class _Candidate(NamedTuple):
    """One covariance of weights, on the training images. R its rank."""

    value_R: np.ndarray
    """Eigenvalues of A A'."""
    left_NR: np.ndarray
    """Eigenvectors of A A'."""
    right_PR: np.ndarray
    """Weights of the features per unit along the eigenvectors, before 1 / (l + penalty)."""


def _candidate(x_NP: np.ndarray, map_PK: np.ndarray) -> _Candidate:
    along_NK = (x_NP @ map_PK).astype(np.float64)
    scale = np.sqrt(max(float(np.square(along_NK).sum()) / len(along_NK), 1e-24))
    along_NK /= scale
    images, width = along_NK.shape
    if images <= width:
        value_R, left_NR = eigh(along_NK @ along_NK.T)
        kept = value_R > value_R[-1] * 1e-9
        value_R, left_NR = value_R[kept], left_NR[:, kept]
    else:
        value_R, vector_KR = eigh(along_NK.T @ along_NK)
        kept = value_R > value_R[-1] * 1e-9
        value_R = value_R[kept]
        left_NR = along_NK @ vector_KR[:, kept] / np.sqrt(value_R)
    right_PR = map_PK @ (along_NK.T @ left_NR) / scale
    return _Candidate(value_R, left_NR, right_PR)


def fit_group_prior(
    features: Mapping[str, np.ndarray],
    responses_NV: np.ndarray,
    prior: GroupPrior,
    times_N: np.ndarray | None = None,
    left_out: int = LEFT_OUT,
    seed: int = 0,
    on_candidate: Callable[[], object] = lambda: None,
) -> BandedRidge:
    """Fit the weights of every voxel; arguments as of `fit_banded_ridge`.

    Parameters
    ----------
    prior : GroupPrior
        Of other people.

    Returns
    -------
    BandedRidge
        ``candidate_V`` is the most likely candidate of every voxel: all voxels, the groups, the
        bands; ``scales_CB`` is 1 where a candidate is a band. Left-out residuals are those of the
        averaged fit, whose weights saw the image.

    Raises
    ------
    UserError
        For fewer than three images, NaN or infinite values.
    """
    bands = {name: values.shape[1] for name, values in features.items()}
    x_NP = stack_bands(features, bands)
    images, voxels = len(x_NP), responses_NV.shape[1]
    times_N = np.ones(images) if times_N is None else np.asarray(times_N, dtype=np.float64)
    check_fit(x_NP, responses_NV, times_N)
    share_N = times_N / times_N.sum()
    feature_mean_P = (share_N @ x_NP).astype(np.float32)
    voxel_mean_V = (share_N @ responses_NV).astype(np.float32)
    root_N = np.sqrt(times_N).astype(np.float32)[:, None]
    x_NP = (x_NP - feature_mean_P) * root_N
    y_NV = (responses_NV - voxel_mean_V) * root_N
    total_V = np.square(y_NV, dtype=np.float64).sum(0)

    maps = list(prior.maps_GPK)
    candidates = [_candidate(x_NP, each) for each in maps]
    for _ in candidates:
        on_candidate()
    for part in band_slices(bands).values():
        one_PK = np.zeros((x_NP.shape[1], part.stop - part.start), dtype=np.float32)
        one_PK[part] = np.eye(part.stop - part.start, dtype=np.float32)
        candidates.append(_candidate(x_NP, one_PK))
        on_candidate()
    scales_CB = np.zeros((len(candidates), len(bands)))
    scales_CB[len(maps) :] = np.eye(len(bands))

    along = [(each.left_NR.T @ y_NV).astype(np.float64) for each in candidates]
    weight_GAV = _weights(candidates, along, total_V, images)
    rows_J = np.arange(images)
    if images > left_out:
        rows_J = np.sort(np.random.default_rng(seed).permutation(images)[:left_out])
    coefficients_PV = np.zeros((x_NP.shape[1], voxels), dtype=np.float32)
    residual_JV = np.zeros((len(rows_J), voxels), dtype=np.float32)
    for number, (each, along_RV) in enumerate(zip(candidates, along)):
        rows_JR = each.left_NR[rows_J]
        for penalty, weight_V in zip(PENALTIES, weight_GAV[number]):
            used = np.flatnonzero(weight_V > _SMALL)
            if not len(used):
                continue
            shrink_R1 = 1 / (each.value_R + penalty)[:, None]
            part_RV = along_RV[:, used] * weight_V[used]
            coefficients_PV[:, used] += each.right_PR @ (part_RV * shrink_R1)
            left_J1 = (
                1 - share_N[rows_J, None] - np.square(rows_JR) @ (each.value_R[:, None] * shrink_R1)
            )
            fitted_JV = rows_JR @ (part_RV * each.value_R[:, None] * shrink_R1)
            mine_JV = y_NV[np.ix_(rows_J, used)] * weight_V[used]
            residual_JV[:, used] += (mine_JV - fitted_JV) / np.maximum(left_J1, 1e-6)
    lost_V = weight_GAV.sum((0, 1), where=weight_GAV > _SMALL)
    coefficients_PV /= lost_V
    residual_JV /= lost_V
    best_V = weight_GAV.reshape(-1, voxels).argmax(0)
    left_out_V = np.square(y_NV[rows_J], dtype=np.float64).sum(0)
    return BandedRidge(
        coefficients_PV,
        feature_mean_P,
        voxel_mean_V,
        bands,
        scales_CB,
        best_V // len(PENALTIES),
        np.array(PENALTIES)[best_V % len(PENALTIES)],
        (
            1 - np.square(residual_JV, dtype=np.float64).sum(0) / np.maximum(left_out_V, 1e-12)
        ).astype(np.float32),
        residual_JV,
        rows_J,
    )


def _weights(
    candidates: Sequence[_Candidate], along: Sequence[np.ndarray], total_V: np.ndarray, images: int
) -> np.ndarray:
    """Posterior weight of every candidate and penalty for every voxel: G x A x V, summing to 1."""

    def likelihoods() -> Iterator[np.ndarray]:
        for each, along_RV in zip(candidates, along):
            square_RV = np.square(along_RV)
            rest_V = np.maximum(total_V - square_RV.sum(0), 0)
            missing = images - len(each.value_R)
            for penalty in PENALTIES:
                inside_R = each.value_R + penalty
                variance_V = ((1 / inside_R) @ square_RV + rest_V / penalty) / images
                yield (
                    -0.5 * images * np.log(np.maximum(variance_V, 1e-24))
                    - 0.5 * (np.log(inside_R).sum() + missing * np.log(penalty))
                )

    found_CV = softmax(np.stack(list(likelihoods())), axis=0)
    return found_CV.reshape(len(candidates), len(PENALTIES), -1)
