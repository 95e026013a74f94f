"""Regions that are the same in every person: of voxels that fluctuate together in single trials of
one person, and are tuned alike in all of them.

Fluctuations tell the voxels of one person apart far better than tuning does, but no trial is common
to two people. So every person's voxels are first cut into pieces by their fluctuations. A region is
a distribution of tuning, normal around zero, with a covariance of its own: an area is known by
what its voxels vary in. Pieces go, in turns, to the region under which the tuning of their voxels
is likeliest, given the voxels that other people have in it; a piece that fluctuates with others of
its person is drawn to their region.

T trials, V voxels, C pieces, A regions, K dimensions of tuning.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import squareform

from braingen.encoding_model.model import EncodingModel
from braingen.encoding_model.voxel_space import shared_space

PIECES = 2.5
"""Pieces of a person, for every region."""
SHRINKAGE = 0.7
"""Of a region's covariance, towards that of all voxels: otherwise the largest region takes what is
noise.
"""
PULL = 0.01
"""Weight of fluctuations beside tuning when pieces are shared out: log-likelihood per pair of
voxels and unit of correlation above `USUAL`.
"""
USUAL = 0.03
"""Correlation of voxels that do not fluctuate together more than all do."""
ROUNDS = 30
"""Most turns."""


class PersonVoxels(NamedTuple):
    """What regions are found from."""

    model: EncodingModel
    left_TV: np.ndarray
    """What left-out predictions do not explain of single trials."""


class _Person(NamedTuple):
    tuning_VK: np.ndarray
    weight_V: np.ndarray
    """How much signal a voxel has, mean 1."""
    piece_V: np.ndarray
    together_CC: np.ndarray
    """Correlation above `USUAL` between two pieces' voxels, summed; 0 of a piece with itself."""
    start_V: np.ndarray
    """Region of every voxel before people are compared."""

    def shared_out(self, likelihood_VA: np.ndarray, region_V: np.ndarray) -> np.ndarray:
        """Region of every voxel, given how likely its tuning is in each."""
        pieces, regions = len(self.together_CC), likelihood_VA.shape[1]
        sums_CA = np.zeros((pieces, regions))
        np.add.at(sums_CA, self.piece_V, likelihood_VA * self.weight_V[:, None])
        region_C = np.zeros(pieces, dtype=np.int64)
        region_C[self.piece_V] = region_V
        largest_C = np.argsort(-np.bincount(self.piece_V), kind="stable")
        for _ in range(ROUNDS):
            before_C = region_C.copy()
            for piece in largest_C:
                pull_A = np.bincount(region_C, self.together_CC[piece], minlength=regions)
                region_C[piece] = (sums_CA[piece] + PULL * pull_A).argmax()
            if np.array_equal(before_C, region_C):
                break
        return region_C[self.piece_V]


def shared_regions(
    people: Sequence[PersonVoxels], features: Mapping[str, np.ndarray], regions: int
) -> list[np.ndarray]:
    """Find the regions of some people: of each, the region of every voxel.

    Parameters
    ----------
    people : Sequence[PersonVoxels]
        Two at least.
    features : Mapping[str, np.ndarray]
        Bands of images by whose predicted responses voxels are compared.
    regions : int
        Most regions; some may stay empty, in one person or in all.
    """
    found = [
        _Person(tuning_VK, weight_V, *pieces(each.left_TV, regions))
        for each, (tuning_VK, weight_V) in zip(people, _tuning(people, features))
    ]
    region = _paired(found, regions)
    for _ in range(ROUNDS):
        before = [region_V.copy() for region_V in region]
        for place, person in enumerate(found):
            others = [other for other in range(len(found)) if other != place]
            likelihood_VA = _likelihood(
                person.tuning_VK,
                np.concatenate([found[other].tuning_VK for other in others]),
                np.concatenate([region[other] for other in others]),
                regions,
            )
            region[place] = person.shared_out(likelihood_VA, region[place])
        if all(np.array_equal(old, new) for old, new in zip(before, region)):
            break
    return region


def pieces(left_TV: np.ndarray, regions: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Cut one person's voxels into groups that fluctuate together: `PIECES` for every region, and
    these joined to as many as there are regions.

    Pieces are cut by the mean correlation of their voxels, which leaves voxels that fluctuate with
    no other to themselves; joining is by Ward's rule, which makes regions of similar size.

    Returns
    -------
    piece_V : np.ndarray
        From 0.
    together_CC : np.ndarray
        Correlation above `USUAL` between the voxels of two pieces, summed; 0 on the diagonal.
    region_V : np.ndarray
        From 0.
    """
    centred_TV = left_TV - left_TV.mean(0)
    centred_TV /= np.maximum(np.linalg.norm(centred_TV, axis=0), 1e-12)
    distance_VV = np.clip(1 - centred_TV.T @ centred_TV, 0, None)
    np.fill_diagonal(distance_VV, 0)
    pairs = squareform(distance_VV, checks=False)
    wanted = min(round(PIECES * regions), len(centred_TV.T))
    piece_V = fcluster(linkage(pairs, "average"), wanted, "maxclust")
    whole_V = fcluster(linkage(pairs, "ward"), regions, "maxclust") - 1
    piece_V = np.unique(piece_V, return_inverse=True)[1]
    count_CA = np.zeros((piece_V.max() + 1, regions), dtype=np.int64)
    np.add.at(count_CA, (piece_V, whole_V), 1)
    inside_CV = np.eye(len(count_CA), dtype=distance_VV.dtype)[piece_V].T
    together_CC = inside_CV @ (1 - USUAL - distance_VV) @ inside_CV.T
    np.fill_diagonal(together_CC, 0)
    return piece_V, together_CC, count_CA.argmax(1)[piece_V]


def _tuning(
    people: Sequence[PersonVoxels], features: Mapping[str, np.ndarray]
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Every voxel's tuning in units of what all voxels vary in, and its weight."""
    space_KP = shared_space([each.model for each in people], features)
    tuning = [each.model.embed_voxels(space_KP) for each in people]
    explained = [np.maximum(each.model.explained_V, 1e-3) for each in people]
    signal_VK = np.concatenate([t * np.sqrt(e)[:, None] for t, e in zip(tuning, explained)])
    size_K, axis_KK = np.linalg.eigh(np.cov(signal_VK.T))
    axis_KK /= np.sqrt(np.maximum(size_K, 1e-4 * size_K[-1]))
    found = []
    for tuning_VK, explained_V in zip(tuning, explained):
        white_VK = tuning_VK @ axis_KK
        length_V = np.maximum(np.linalg.norm(white_VK, axis=1, keepdims=True), 1e-12)
        unit_VK = white_VK * (white_VK.shape[1] ** 0.5 / length_V)
        found.append((unit_VK, explained_V / explained_V.mean()))
    return found


def _likelihood(
    tuning_VK: np.ndarray, known_VK: np.ndarray, region_V: np.ndarray, regions: int
) -> np.ndarray:
    """Log-likelihood of voxels' tuning in every region, given voxels that are in it: V x A."""
    width = known_VK.shape[1]
    found_VA = np.full((len(tuning_VK), regions), -np.inf)
    for region in range(regions):
        mine_VK = known_VK[region_V == region]
        if len(mine_VK) < 2:
            continue
        covariance_KK = (1 - SHRINKAGE) * (mine_VK.T @ mine_VK) / len(mine_VK)
        covariance_KK[np.diag_indices(width)] += SHRINKAGE
        inverse_KK = np.linalg.inv(covariance_KK)
        squared_V = np.einsum("vk,kl,vl->v", tuning_VK, inverse_KK, tuning_VK, optimize=True)
        found_VA[:, region] = -0.5 * (squared_V + np.linalg.slogdet(covariance_KK)[1])
    return found_VA


def _paired(people: Sequence[_Person], regions: int) -> list[np.ndarray]:
    """Number every person's regions so that equal numbers are tuned alike: by the second moments of
    their voxels, each person against the sum of the others, from the best of several starts.
    """
    moments = []
    for person in people:
        rows = np.zeros((regions, person.tuning_VK.shape[1] ** 2))
        for region in range(regions):
            inside = person.start_V == region
            weighed_VK = person.tuning_VK[inside] * person.weight_V[inside, None]
            rows[region] = (weighed_VK.T @ person.tuning_VK[inside]).ravel()
            rows[region] /= max(float(person.weight_V[inside].sum()), 1e-12)
        rows -= rows.mean(0)
        moments.append(rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12))
    best, found = -np.inf, [np.arange(regions)] * len(people)
    for start in range(len(people)):
        order = [_matched(moments[start], each) for each in moments]
        for _ in range(ROUNDS):
            before = [each.copy() for each in order]
            for place in range(len(people)):
                total = sum(
                    moments[other][order[other]] for other in range(len(people)) if other != place
                )
                order[place] = _matched(total, moments[place])
            if all(np.array_equal(old, new) for old, new in zip(before, order)):
                break
        total = sum(rows[each] for rows, each in zip(moments, order))
        value = float(np.linalg.norm(total, axis=1).sum())
        if value > best:
            best, found = value, order
    return [np.argsort(order)[person.start_V] for person, order in zip(people, found)]


def _matched(aim: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """The order in which rows are most like those of another table."""
    return linear_sum_assignment(-aim @ rows.T)[1]
