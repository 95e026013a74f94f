"""BrainMoEVoxel: a mixture whose experts are parcels of cortex.

B batch, V voxels, H shared width, E experts of a level, K input units of an expert, P parcels,
D CLIP width, T tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
import math
from typing import Any, cast

from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from braingen.encoders.base import Encoder, VoxelShares
from braingen.encoders.experts import ExpertHeads, Head, Trunk, make_trunk
from braingen.encoders.feature_router import balance_loss
from braingen.encoders.moe_parts import Combine, EvenMix, LevelOutput, embeddings, start_gain
from braingen.encoders.parcels import ParcelMap
from braingen.encoders.subject_layer import SubjectLayer, Subjects
from braingen.types import ExpertEmbeddings, ExpertStack


class SubtreeLevel(nn.Module):
    """Experts with the units of their own subtree as input; the parcels replace a router.

    Parameters
    ----------
    trunk, heads : nn.Module
        Of all experts of the level.
    """

    def __init__(self, trunk: nn.Module, heads: ExpertHeads) -> None:
        super().__init__()
        self.trunk, self.heads = trunk, heads

    def forward(self, x_BH: Tensor, balance: Tensor) -> LevelOutput:
        experts = self.heads.backbone.weight.shape[0]
        units_EBK = self.trunk(x_BH.unflatten(1, (experts, -1)).transpose(0, 1))
        backbone_EBTD, clip_EBTD = self.heads(units_EBK)
        return LevelOutput(units_EBK, backbone_EBTD, clip_EBTD, (), balance)


class BrainMoEVoxel(Encoder):
    """Routing of voxels: softly assigned to a tree of parcels, one expert per subtree.

    Levels have as many experts, and experts as many units, as in
    :class:`braingen.encoders.moe.BrainMoEMulti`, but levels are parallel: the input of an expert is
    its parcels, not the output of other experts, so that its voxels are those of its parcels.

    Parameters
    ----------
    num_exp_0, exp_factor_list : int, optional
        Branches of the tree, level by level.
    subjects, hidden_dim, n_blocks, clip_emb_dim, clip_seq_dim, trunk : optional
        See :class:`braingen.encoders.moe.BrainMoEMulti`.
    head, level_combine, dropout, voxel_dropout : optional
        See :class:`braingen.encoders.moe.BrainMoEMulti`.
    """

    @register_to_config
    def __init__(
        self,
        subjects: Subjects,
        hidden_dim: int = 4096,
        n_blocks: int = 4,
        clip_emb_dim: int = 1280,
        clip_seq_dim: int = 1,
        num_exp_0: int = 2,
        exp_factor_list: Sequence[int] = (2, 2, 2),
        trunk: Trunk = "residual",
        head: Head = "projector",
        level_combine: Combine = "sum",
        dropout: float = 0.15,
        voxel_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        factors = (num_exp_0, *exp_factor_list)
        self.subject_layer = SubjectLayer(
            subjects, hidden_dim, voxel_dropout, partial(ParcelMap, factors=factors)
        )
        self.mix = EvenMix(level_combine)
        self.levels = nn.ModuleList()
        for depth in range(len(factors)):
            experts = math.prod(factors[: depth + 1])
            units = hidden_dim // experts
            body = make_trunk(trunk, experts, units, 1 if depth else n_blocks, dropout)
            gain = start_gain(experts, trunk, level_combine)
            heads = ExpertHeads(
                experts, units, clip_seq_dim, clip_emb_dim, head, 2 * clip_emb_dim, gain
            )
            self.levels.append(SubtreeLevel(body, heads))

    def parcels(self, subject: int) -> ParcelMap:
        """Parcels of a subject."""
        return cast(ParcelMap, self.subject_layer.linears[str(subject)])

    def init_from(self, responses: dict[int, Tensor]) -> None:
        """Initialise parcels with voxels of similar responses.

        Parameters
        ----------
        responses : dict[int, Tensor]
            Subject -> training trials x voxels.
        """
        for subject, responses_TV in responses.items():
            self.parcels(subject).init_from(responses_TV)

    def as_estimates(self, stack: ExpertStack) -> ExpertStack:
        """Experts as estimates of their level."""
        return self.mix.as_estimates(stack)

    def voxel_shares(self, voxels_BV: Tensor, subject: int) -> list[VoxelShares]:
        """Shares of the parcels of every expert."""
        return [VoxelShares(share_EV, True) for share_EV in self.parcels(subject).shares()]

    def forward(
        self,
        voxels_BV: Tensor,
        subject: int,
        return_experts: bool = False,
        router_noise: Any = None,
    ) -> ExpertEmbeddings:
        """Encode the voxels of one subject.

        Parameters
        ----------
        return_experts : bool, optional
            Also return the outputs of every expert.
        router_noise : Any, optional
            Unused, as the parcels are the routing.
        """
        x_BH = self.subject_layer(voxels_BV, subject)
        shares = self.parcels(subject).shares()
        outputs = [
            level(x_BH, balance_loss(share_EV[None]))
            for level, share_EV in zip(self.levels, shares)
        ]
        return embeddings(outputs, [self.mix(output) for output in outputs], return_experts)
