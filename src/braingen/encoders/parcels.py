"""Soft assignment of voxels to a tree of parcels, which defines the voxels of every expert.

B batch, V voxels, H shared width, P parcels (leaves of the tree), E branches of a level, S voxels
of a node.
"""

from __future__ import annotations

from collections.abc import Sequence
import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from braingen.runtime.errors import UserError

START_LOGIT = 2.0
"""Initial logit of the branch of a voxel (0 for the others): a share of 88 % of two branches."""


class ParcelMap(nn.Linear):
    """Voxels of a subject in parcels, with one small linear map per parcel (docs/interpret.md).

    Every voxel has a logit for every branch of the tree. A softmax among the branches of one node,
    multiplied along the path, is its share in every parcel; the shares of a voxel sum to 1 on
    every level. Units come in the order of the parcels, so those of a subtree are contiguous. The
    shares of a parcel are scaled to a mean square of 1 over voxels, so that units have the same
    initial scale for parcels of any size and softness.

    Parameters
    ----------
    voxels, width : int
        V, H.
    factors : Sequence[int]
        Branches per node, level by level.

    Raises
    ------
    UserError
        When the parcels cannot share the units evenly.
    """

    def __init__(self, voxels: int, width: int, factors: Sequence[int]) -> None:
        super().__init__(voxels, width)
        self.factors = tuple(factors)
        parcels = math.prod(self.factors)
        if width % parcels:
            raise UserError(
                f"hidden_dim={width} cannot be shared by {parcels} parcels: take a multiple of"
                f" {parcels}."
            )
        sizes = [math.prod(self.factors[: depth + 1]) for depth in range(len(self.factors))]
        self.branch_logits = nn.ParameterList(
            nn.Parameter(torch.randn(size, voxels)) for size in sizes
        )

    def shares(self) -> list[Tensor]:
        """Per level, E x V: share of every voxel in every branch, summing to 1 over branches."""
        levels: list[Tensor] = []
        for factor, logits_EV in zip(self.factors, self.branch_logits):
            within_EV = logits_EV.float().unflatten(0, (-1, factor)).softmax(dim=1).flatten(0, 1)
            levels.append(
                within_EV if not levels else within_EV * levels[-1].repeat_interleave(factor, dim=0)
            )
        return levels

    def map_of(self, share_PV: Tensor) -> Tensor:
        """The linear map H x V from shares and weights."""
        scaled_PV = share_PV / share_PV.square().mean(dim=1, keepdim=True).sqrt().clamp_min(1e-6)
        return self.weight * scaled_PV.repeat_interleave(
            self.out_features // len(share_PV), dim=0
        ).to(self.weight.dtype)

    def forward(self, voxels_BV: Tensor) -> Tensor:
        """Units in the order of their parcels, B x H."""
        return F.linear(voxels_BV, self.map_of(self.shares()[-1]), self.bias)

    @torch.no_grad()
    def init_from(self, responses_TV: Tensor) -> None:
        """Initialise parcels with voxels of similar responses, instead of at random.

        The voxels of every node are sorted along the first principal component of their responses
        around the mean of the node, and split evenly. Images, targets and positions are not used.

        Parameters
        ----------
        responses_TV : Tensor
            Training trials.
        """
        centred_TV = responses_TV - responses_TV.mean(dim=0)
        standard_TV = centred_TV / centred_TV.std(dim=0).clamp_min(1e-6)
        nodes = [torch.arange(standard_TV.shape[1])]
        for factor, logits_EV in zip(self.factors, self.branch_logits):
            logits_EV.zero_()
            parts = [
                part
                for voxels_S in nodes
                for part in _cut_along_component(standard_TV, voxels_S, factor)
            ]
            for branch, voxels_S in enumerate(parts):
                logits_EV[branch, voxels_S] = START_LOGIT
            nodes = parts

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, factors={self.factors}"


def _cut_along_component(standard_TV: Tensor, voxels_S: Tensor, factor: int) -> list[Tensor]:
    """Split voxels evenly along their first principal component (power iteration, fixed start)."""
    inside_TS = standard_TV[:, voxels_S]
    inside_TS = inside_TS - inside_TS.mean(
        dim=1, keepdim=True
    )  # the shared response does not separate voxels
    component_S = torch.linspace(-1, 1, len(voxels_S), device=standard_TV.device)
    for _ in range(100):
        component_S = inside_TS.T @ (inside_TS @ component_S)
        component_S = component_S / component_S.norm().clamp_min(1e-12)
    order_S = component_S.sort(stable=True).indices
    return [voxels_S[part.sort().values] for part in order_S.tensor_split(factor)]
