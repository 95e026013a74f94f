"""Experts that are groups of voxels with the same tuning, the same groups in every person.

A voxel is described by what drives it, its weights in an encoding model (`VoxelTuning`), in a space
that all people share. Groups are found there, over the voxels of everybody, and joined into a tree
of levels. Every group turns its voxels' responses into one estimate in the shared space,

    m = (1 + t J)^-1 t h,    h = sum_v s_v p_v r_v w_v,    J = sum_v s_v p_v w_v w_v'

(s share of voxel v in the group, p its precision, r its response, w its tuning): the posterior mean
under independent noise, tempered by t. It is comparable between people with any number of voxels.
Everything after it is shared by all of them; a person owns a tuning and a precision per voxel.
Tuning and precision are trained; which group a voxel belongs to stays as the encoding models have
it, since training moves voxels away from their areas (docs/experiments/regions.md).

B batch, V voxels, K dimensions of the shared space, G groups of the finest level, E experts of a
level, N experts of all levels and the one that reads all voxels, C width of an expert, M heads, T
tokens, D CLIP width, L levels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import math
from typing import cast

from diffusers.configuration_utils import register_to_config
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from braingen.encoders.base import Encoder, VoxelShares, VoxelTuning
from braingen.encoders.experts import StackedLinear
from braingen.encoders.region_groups import joined_levels, spherical_groups
from braingen.encoders.subject_layer import SubjectLayer, Subjects
from braingen.runtime.errors import UserError
from braingen.types import ExpertEmbeddings

SHARPNESS = 8.0
"""Sharpness of the assignment of voxels to groups, per unit of the cosine."""
TEMPER = 0.25
"""Initial temper: the noise of voxels is not independent."""


class TunedVoxels(nn.Linear):
    """The voxels of a person: tuning (``weight``, K x V) and precision of each, and the direction
    of the tuning by which they belong to groups. Called, it weighs responses by precision.
    """

    direction_KV: Tensor

    def __init__(self, voxels: int, width: int) -> None:
        super().__init__(voxels, width, bias=False)
        with torch.no_grad():
            self.weight.mul_(1 / math.sqrt(width))
        self.log_precision = nn.Parameter(torch.zeros(voxels))
        self.register_buffer("direction_KV", F.normalize(self.weight.detach(), dim=0))

    def forward(self, voxels_BV: Tensor) -> Tensor:
        """Responses times precision, B x V."""
        return voxels_BV * self.log_precision.exp()

    @torch.no_grad()
    def take(self, tuning: VoxelTuning) -> None:
        """Start from an encoding model."""
        self.weight.copy_(tuning.weight_VK.T)
        self.direction_KV.copy_(F.normalize(tuning.weight_VK.T, dim=0))
        self.log_precision.copy_(tuning.precision_V.log())


class RegionAttention(nn.Module):
    """Output tokens attend to the experts of a level; outputs of experts add up to the level's.

    Parameters
    ----------
    width, heads : int
        C, M.
    clip_seq_dim, clip_emb_dim : int
        T, D.
    """

    def __init__(self, width: int, heads: int, clip_seq_dim: int, clip_emb_dim: int) -> None:
        super().__init__()
        self.heads = heads
        self.queries = nn.Parameter(torch.randn(clip_seq_dim, width) / math.sqrt(width))
        self.key, self.value = nn.Linear(width, width), nn.Linear(width, width)
        self.out = nn.Linear(width, clip_emb_dim)

    def forward(self, x_BEC: Tensor) -> Tensor:
        """Outputs of the experts, B x E x T x D."""
        key_BEMc, value_BEMc = (
            part(x_BEC).unflatten(-1, (self.heads, -1)) for part in (self.key, self.value)
        )
        query_TMc = self.queries.unflatten(-1, (self.heads, -1))
        score_BTME = torch.einsum("tmc,bemc->btme", query_TMc, key_BEMc)
        share_BTME = (score_BTME / math.sqrt(query_TMc.shape[-1])).softmax(-1)
        read_BETC = torch.einsum("btme,bemc->betmc", share_BTME, value_BEMc).flatten(3)
        return self.out(read_BETC) - self.out.bias * (1 - 1 / x_BEC.shape[1])


class BrainMoERegions(Encoder):
    """Experts that are groups of voxels, shared by all people.

    Parameters
    ----------
    subjects : Subjects
        Subject number -> voxel count.
    hidden_dim : int, optional
        C, width of an expert.
    n_blocks : int, optional
        Blocks of attention among experts.
    heads : int, optional
        M.
    clip_emb_dim, clip_seq_dim : int, optional
        D, T.
    groups : Sequence[int], optional
        Experts level by level, coarse to fine; those of coarser levels are unions of the finest.
    tuning_dim : int, optional
        K.
    dropout, voxel_dropout : float, optional
        Inside blocks, on voxels.
    """

    membership_NG: Tensor
    centres_GK: Tensor

    @register_to_config
    def __init__(
        self,
        subjects: Subjects,
        hidden_dim: int = 256,
        n_blocks: int = 2,
        heads: int = 8,
        clip_emb_dim: int = 1280,
        clip_seq_dim: int = 1,
        groups: Sequence[int] = (2, 4, 8, 16),
        tuning_dim: int = 64,
        dropout: float = 0.15,
        voxel_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if hidden_dim % heads:
            raise UserError(
                f"hidden_dim={hidden_dim} cannot be shared by {heads} heads: take a multiple of"
                f" {heads}."
            )
        finest, experts = max(groups), 1 + sum(groups)
        self.subject_layer = SubjectLayer(subjects, tuning_dim, voxel_dropout, TunedVoxels)
        self.register_buffer("centres_GK", F.normalize(torch.randn(finest, tuning_dim), dim=1))
        self.log_temper = nn.Parameter(torch.full((experts,), math.log(TEMPER)))
        self.register_buffer("membership_NG", torch.zeros(experts, finest))
        self.set_levels([torch.arange(finest) * count // finest for count in groups])
        self.into = StackedLinear(experts, tuning_dim, hidden_dim)
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(
                hidden_dim,
                heads,
                2 * hidden_dim,
                dropout,
                "gelu",
                batch_first=True,
                norm_first=True,
            )
            for _ in range(n_blocks)
        )
        self.norm = nn.LayerNorm(hidden_dim)
        self.levels = nn.ModuleList(
            RegionAttention(hidden_dim, heads, clip_seq_dim, clip_emb_dim) for _ in groups
        )
        self.project = nn.Linear(clip_emb_dim, clip_emb_dim, bias=False)
        nn.init.eye_(self.project.weight)

    def set_levels(self, group_of_leaf: Sequence[Tensor]) -> None:
        """Set which groups of the finest level an expert reads.

        Parameters
        ----------
        group_of_leaf : Sequence[Tensor]
            Per level, the expert that every finest group belongs to.
        """
        rows = [torch.ones(1, self.membership_NG.shape[1])]
        for count, group_G in zip(self.config.groups, group_of_leaf):
            rows.append(F.one_hot(group_G, count).T.float())
        self.membership_NG.copy_(torch.cat(rows))

    def voxels(self, subject: int) -> TunedVoxels:
        """Tuning and precision of a subject's voxels."""
        return cast(TunedVoxels, self.subject_layer.linears[str(subject)])

    @torch.no_grad()
    def init_from_tuning(self, tuning: Mapping[int, VoxelTuning], seed: int = 0) -> None:
        """Start people's voxels from their encoding models, and groups from all voxels."""
        for subject, each in tuning.items():
            self.voxels(subject).take(each)
        directions_VK = torch.cat([F.normalize(each.weight_VK, dim=1) for each in tuning.values()])
        weight_V = torch.cat(
            [each.weight_VK.square().sum(1) * each.precision_V for each in tuning.values()]
        )
        centres_GK = spherical_groups(directions_VK, weight_V, max(self.config.groups), seed)
        self.centres_GK.copy_(centres_GK)
        self.set_levels(joined_levels(centres_GK, self.config.groups))

    def leaf_shares(self, subject: int) -> Tensor:
        """Share of every voxel in the groups of the finest level, G x V."""
        cosine_GV = self.centres_GK.float() @ self.voxels(subject).direction_KV.float()
        return (SHARPNESS * cosine_GV).softmax(0)

    def voxel_shares(self, voxels_BV: Tensor, subject: int) -> list[VoxelShares]:
        """Shares of every expert, level by level."""
        share_NV = self.membership_NG @ self.leaf_shares(subject)
        return [VoxelShares(share, True) for share in share_NV[1:].split(list(self.config.groups))]

    def estimates(self, voxels_BV: Tensor, subject: int) -> Tensor:
        """What every expert's voxels say in the shared space, B x N x K."""
        weighted_BV = self.subject_layer(voxels_BV, subject).float()
        mine = self.voxels(subject)
        tuning_KV, share_GV = mine.weight.float(), self.leaf_shares(subject)
        reading_GKV = share_GV[:, None] * tuning_KV
        evidence_BGK = torch.einsum("bv,gkv->bgk", weighted_BV, reading_GKV)
        information_GKK = torch.einsum(
            "gkv,lv->gkl", reading_GKV * mine.log_precision.float().exp(), tuning_KV
        )
        evidence_BNK = torch.einsum("ng,bgk->bnk", self.membership_NG, evidence_BGK)
        information_NKK = torch.einsum("ng,gkl->nkl", self.membership_NG, information_GKK)
        temper_N = self.log_temper.exp()
        precision_NKK = temper_N[:, None, None] * information_NKK + torch.eye(
            information_NKK.shape[-1], device=information_NKK.device
        )
        solved_NKB = torch.linalg.solve(
            precision_NKK, temper_N[:, None, None] * evidence_BNK.permute(1, 2, 0)
        )
        return solved_NKB.permute(2, 0, 1)

    def forward(
        self, voxels_BV: Tensor, subject: int, return_experts: bool = False
    ) -> ExpertEmbeddings:
        """Encode the voxels of one subject.

        Parameters
        ----------
        return_experts : bool, optional
            Also return the outputs of every expert.
        """
        device = voxels_BV.device.type
        with torch.autocast(device, enabled=False):
            estimate_BNK = self.estimates(voxels_BV.float(), subject)
        x_BNC = self.into(estimate_BNK.transpose(0, 1)).transpose(0, 1)
        for block in self.blocks:
            x_BNC = block(x_BNC)
        x_BNC = self.norm(x_BNC)
        experts = [
            level(x_BEC)
            for level, x_BEC in zip(self.levels, x_BNC[:, 1:].split(list(self.config.groups), 1))
        ]
        projected = [self.project(x_BETD) for x_BETD in experts]
        level_BLTD = torch.stack([x.sum(1) for x in experts], 1)
        level_clip_BLTD = torch.stack([x.sum(1) for x in projected], 1)
        return ExpertEmbeddings(
            backbone_BTD=level_BLTD.mean(1),
            clip_BTD=level_clip_BLTD.mean(1),
            level_backbone_BLTD=level_BLTD,
            level_clip_BLTD=level_clip_BLTD,
            expert_backbone=tuple(experts) if return_experts else (),
            expert_clip=tuple(projected) if return_experts else (),
            routing=(),
            balance_loss=level_BLTD.new_zeros(()),
        )
