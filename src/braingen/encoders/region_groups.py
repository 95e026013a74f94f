"""Groups of voxels with the same tuning, over the voxels of all people, and their tree.

V voxels of all people, K dimensions of the shared space, G groups.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.cluster.hierarchy import cut_tree, linkage
import torch
from torch import Tensor
from torch.nn import functional as F

RESTARTS, ITERATIONS = 8, 60


def spherical_groups(directions_VK: Tensor, weight_V: Tensor, groups: int, seed: int = 0) -> Tensor:
    """Centres of groups by spherical k-means, the best of several starts: G x K, unit length.

    Parameters
    ----------
    directions_VK : Tensor
        Tuning of unit length.
    weight_V : Tensor
        How much signal every voxel has; its fourth root counts, so that few reliable voxels do not
        decide alone.
    groups : int
        G.
    """
    generator = torch.Generator().manual_seed(seed)
    root_V = weight_V.clamp_min(0) ** 0.25
    best, found = -np.inf, directions_VK[:groups]
    for _ in range(RESTARTS):
        centres_GK = _spread_start(directions_VK, root_V, groups, generator)
        for _ in range(ITERATIONS):
            cosine_VG = directions_VK @ centres_GK.T
            member_V = cosine_VG.argmax(1)
            sums_GK = torch.zeros_like(centres_GK).index_add_(
                0, member_V, directions_VK * root_V[:, None]
            )
            empty_G = sums_GK.norm(dim=1) < 1e-12
            moved_GK = torch.where(empty_G[:, None], centres_GK, F.normalize(sums_GK, dim=1))
            if torch.equal(moved_GK, centres_GK):
                break
            centres_GK = moved_GK
        value = float((root_V * (directions_VK @ centres_GK.T).amax(1)).sum())
        if value > best:
            best, found = value, centres_GK
    return found


def _spread_start(
    directions_VK: Tensor, root_V: Tensor, groups: int, generator: torch.Generator
) -> Tensor:
    """Voxels far from each other (k-means++)."""
    chosen = [int(torch.multinomial(root_V + 1e-12, 1, generator=generator))]
    nearest_V = directions_VK @ directions_VK[chosen[0]]
    for _ in range(groups - 1):
        distance_V = (1 - nearest_V).clamp_min(0) * root_V + 1e-12
        chosen.append(int(torch.multinomial(distance_V, 1, generator=generator)))
        nearest_V = torch.maximum(nearest_V, directions_VK @ directions_VK[chosen[-1]])
    return directions_VK[chosen]


def joined_levels(centres_GK: Tensor, counts: Sequence[int]) -> list[Tensor]:
    """Join the finest groups into a tree (Ward) and cut it where levels have so many experts.

    Returns
    -------
    list[Tensor]
        Per level, the expert of every finest group.
    """
    finest = len(centres_GK)
    tree = linkage(centres_GK.double().cpu().numpy(), "ward") if finest > 1 else None
    levels = []
    for count in counts:
        if count == finest or tree is None:
            levels.append(torch.arange(finest))
            continue
        # by the order of merges: a height cannot tell groups that merge at the same one apart
        group_G = cut_tree(tree, n_clusters=count)[:, 0]
        levels.append(torch.from_numpy(group_G.astype(np.int64)))
    return levels
