"""Independent components of attribution maps, shared by all subjects.

Subjects have different voxels, but saw the same test images. The maps of all subjects are
concatenated to images x (voxels of all subjects), and independent component analysis runs over
voxels, as in group analyses of resting-state fMRI with images instead of time. A component is a map
of voxels in every subject, and one loading per image shared by all subjects.

N images, V voxels of a subject, W voxels of all subjects, K components, C classes, S subjects.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple
import warnings

import numpy as np
import pandas as pd
from scipy.linalg import eigh
from scipy.stats import false_discovery_control, ttest_ind
from sklearn.decomposition import FastICA
from sklearn.exceptions import ConvergenceWarning

from braingen.data.large_files import blocks

_AT_ONCE = 1 << 20  # numbers read at once, in blocks of voxels: 8 MB, however many images there are


class Components(NamedTuple):
    """Independent components of attribution maps."""

    maps: tuple[np.ndarray, ...]
    """Per subject, K x V float32: strength of every voxel, in standard deviations over the voxels
    of all subjects. The sign is chosen so that the heavier tail is positive.
    """
    loading_NK: np.ndarray
    """Loading of every component in the maps of every image, float32."""
    expression_SNK: np.ndarray
    """The same, fitted to the maps of every subject alone (least squares on the subject's own
    component maps).
    """
    explained: float
    """Share of the squared norm of the maps that the K components explain."""
    converged: bool
    """Whether the algorithm converged."""


def components_of(maps: Sequence[np.ndarray], count: int, seed: int = 0) -> Components:
    """Independent components of the maps of the same images in one or several subjects.

    Parameters
    ----------
    maps : Sequence[np.ndarray]
        Per subject N x V, arrays or memory maps, read in blocks of voxels; held are K numbers per
        voxel and N x N of the images.
    count : int
        K; fewer are found where there are fewer images.
    seed : int, optional
        Of the algorithm's start.
    """
    images = len(maps[0])
    count = min(count, images - 1)
    gram_NN = np.zeros((images, images))
    for maps_NV in maps:
        for block_NW in _blocks(maps_NV):
            gram_NN += block_NW @ block_NW.T
    size = float(np.trace(gram_NN))
    value_K, basis_NK = eigh(
        gram_NN.T, subset_by_index=(images - count, images - 1), overwrite_a=True
    )  # LAPACK's order: no copy
    basis_NK /= np.sqrt(np.maximum(value_K, 1e-30))
    reduced_WK = np.concatenate(
        [block_NW.T @ basis_NK for maps_NV in maps for block_NW in _blocks(maps_NV)]
    )
    ica = FastICA(count, whiten="unit-variance", random_state=seed, max_iter=500, tol=1e-3)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ConvergenceWarning)
        source_WK = ica.fit_transform(reduced_WK)
    sign_K = np.where((source_WK**3).mean(axis=0) < 0, -1.0, 1.0)
    source_WK = source_WK * sign_K
    edges = np.cumsum([0, *(maps_NV.shape[1] for maps_NV in maps)])
    parts = [source_WK[a:b] for a, b in pairwise(edges)]
    expression = np.stack([_fitted(maps_NV, part_VK) for maps_NV, part_VK in zip(maps, parts)])
    both_NK = sum(
        _projected(maps_NV, part_VK) for maps_NV, part_VK in zip(maps, parts)
    ) @ np.linalg.pinv(source_WK.T @ source_WK)
    return Components(
        maps=tuple(part_VK.T.astype(np.float32) for part_VK in parts),
        loading_NK=both_NK.astype(np.float32),
        expression_SNK=expression.astype(np.float32),
        explained=float(value_K.sum() / max(size, 1e-30)),
        converged=not any(issubclass(each.category, ConvergenceWarning) for each in caught),
    )


def _blocks(maps_NV: np.ndarray):  # type: ignore[no-untyped-def]
    for first, last in blocks(maps_NV.shape[1], max(1, _AT_ONCE // len(maps_NV))):
        yield np.asarray(maps_NV[:, first:last], dtype=np.float64)


def _projected(maps_NV: np.ndarray, part_VK: np.ndarray) -> np.ndarray:
    sum_NK, done = np.zeros((len(maps_NV), part_VK.shape[1])), 0
    for block_NW in _blocks(maps_NV):
        sum_NK += block_NW @ part_VK[done : (done := done + block_NW.shape[1])]
    return sum_NK


def _fitted(maps_NV: np.ndarray, part_VK: np.ndarray) -> np.ndarray:
    return _projected(maps_NV, part_VK) @ np.linalg.pinv(part_VK.T @ part_VK)


def related_classes(loading_NK: np.ndarray, member_NC: np.ndarray) -> pd.DataFrame:
    """Test components for class differences (Welch's t-test, as in MoRE-Brain; q over all tests).

    Returns
    -------
    pd.DataFrame
        Columns component, class (its number), t, p, q; classes with fewer than two images inside or
        outside are left out.
    """
    rows = []
    for number in range(member_NC.shape[1]):
        inside_N = member_NC[:, number]
        if 2 <= inside_N.sum() <= len(inside_N) - 2:
            t_K, p_K = ttest_ind(loading_NK[inside_N], loading_NK[~inside_N], equal_var=False)
            rows += [
                {"component": k, "class": number, "t": t, "p": p}
                for k, (t, p) in enumerate(zip(t_K, p_K))
            ]
    table = pd.DataFrame(rows, columns=["component", "class", "t", "p"])
    table["p"] = table["p"].fillna(1.0)
    table["q"] = false_discovery_control(table["p"]) if len(table) else table["p"]
    return table.sort_values(["component", "p"], kind="stable").reset_index(drop=True)


def expression_table(components: Components, subjects: Sequence[int]) -> pd.DataFrame:
    """Strength of components in every subject, and agreement of loadings with the shared ones.

    Returns
    -------
    pd.DataFrame
        Columns subject, component, strength (root mean square of the loading over images),
        agreement (correlation with the shared loading).
    """
    rows = []
    for subject, own_NK in zip(subjects, components.expression_SNK):
        for k in range(own_NK.shape[1]):
            both = (
                np.corrcoef(own_NK[:, k], components.loading_NK[:, k])[0, 1]
                if len(own_NK) > 1
                else np.nan
            )
            rows.append(
                {
                    "subject": subject,
                    "component": k,
                    "strength": np.sqrt((own_NK[:, k] ** 2).mean()),
                    "agreement": both,
                }
            )
    return pd.DataFrame(rows)
