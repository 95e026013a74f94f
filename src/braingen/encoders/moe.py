"""Mixtures of experts from voxels to CLIP space; the default encoder is BrainMoEMulti.

B batch, V voxels, H shared width, P parent experts, E experts of a level, L levels, U units of a
parent, K input units of an expert, D CLIP width, T tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from diffusers.configuration_utils import register_to_config
import torch
from torch import Tensor, nn

from braingen.encoders.base import Encoder, VoxelShares
from braingen.encoders.experts import ExpertHeads, Head, StackedLinear, Trunk, make_trunk
from braingen.encoders.feature_router import Routing, TokenOrder, make_router
from braingen.encoders.moe_parts import (
    Combine,
    EvenMix,
    ExpertLevel,
    ExpertMix,
    LevelOutput,
    MetaExpert,
    embeddings,
    start_gain,
)
from braingen.encoders.subject_layer import SubjectLayer, Subjects
from braingen.encoders.tracing import traced_shares
from braingen.runtime.errors import UserError
from braingen.types import ExpertEmbeddings, ExpertStack


class BrainMoEMulti(Encoder):
    """Levels of experts, coarse to fine: an expert passes its output units to its children.

    Parameters
    ----------
    subjects : Subjects
        Subject number -> voxel count.
    hidden_dim : int, optional
        H.
    n_blocks : int, optional
        Blocks of an expert of the first level; later ones have one block (published trunk: one
        linear map).
    clip_emb_dim, clip_seq_dim : int, optional
        D, T.
    num_exp_0 : int, optional
        Experts of the first level.
    exp_factor_list : Sequence[int], optional
        Children per expert, level by level.
    capacity_factor_0, cap_fac_list : float, optional
        Input units of an expert relative to an even share, first and later levels (1 by
        default).
    routing : Routing, optional
        'static' (the same units in every trial) or 'expert_choice' (published, by activation).
    activation_term : bool, optional
        Static routing only: the activation modulates the weight of a unit.
    token_order : TokenOrder, optional
        Expert-choice routing only: order of the units of an expert, see
        :func:`braingen.encoders.feature_router.most_probable`.
    trunk : Trunk, optional
        'residual' (residual blocks) or 'published' (mixer blocks that do nothing with one token).
    head : Head, optional
        Projection head of an expert, 'projector' or 'linear' (a fraction of the parameters).
    level_combine : Combine, optional
        Output of a level, 'sum' over its experts (published implementation) or 'mean' (paper).
    bottleneck_dim : int, optional
        Width of a bottleneck after the subject layer (BrainBits); 0 for none.
    dropout, voxel_dropout : float, optional
        Inside blocks, on voxels.
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
        capacity_factor_0: float = 1.0,
        cap_fac_list: Sequence[float] | None = None,
        routing: Routing = "static",
        activation_term: bool = False,
        token_order: TokenOrder = "index",
        trunk: Trunk = "residual",
        head: Head = "projector",
        level_combine: Combine = "sum",
        bottleneck_dim: int = 0,
        dropout: float = 0.15,
        voxel_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        factors = (num_exp_0, *exp_factor_list)
        capacities = (capacity_factor_0, *(cap_fac_list or [1.0] * len(exp_factor_list)))
        if len(capacities) != len(factors):
            raise UserError(
                f"cap_fac_list={cap_fac_list} does not fit exp_factor_list={exp_factor_list}: as"
                " many factors as levels after the first."
            )
        self.subject_layer = SubjectLayer(subjects, hidden_dim, voxel_dropout)
        self.bottleneck = nn.Linear(hidden_dim, bottleneck_dim) if bottleneck_dim else None
        self.mix = EvenMix(level_combine)
        self.levels = nn.ModuleList()
        parents, units = 1, bottleneck_dim or hidden_dim
        for depth, (factor, capacity) in enumerate(zip(factors, capacities)):
            router = make_router(
                routing, parents, units, factor, capacity, activation_term, token_order
            )
            parents, units = parents * factor, router.width
            body: nn.Module
            if depth and trunk == "published":
                body = StackedLinear(parents, units, units)
            else:
                body = make_trunk(trunk, parents, units, 1 if depth else n_blocks, dropout)
            gain = start_gain(parents, trunk, level_combine)
            heads = ExpertHeads(
                parents, units, clip_seq_dim, clip_emb_dim, head, 2 * clip_emb_dim, gain
            )
            self.levels.append(ExpertLevel(router, body, heads))

    def forward(
        self,
        voxels_BV: Tensor,
        subject: int,
        return_experts: bool = False,
        router_noise: Sequence[Tensor] | None = None,
    ) -> ExpertEmbeddings:
        """Encode the voxels of one subject.

        Parameters
        ----------
        return_experts : bool, optional
            Also return the outputs of every expert.
        router_noise : Sequence[Tensor] | None, optional
            Expert-choice routing only: noise per level, P x B x U x F; sampled in training by
            default.
        """
        x_BH = self.subject_layer(voxels_BV, subject)
        units_EBK = (x_BH if self.bottleneck is None else self.bottleneck(x_BH))[None]
        outputs: list[LevelOutput] = []
        for depth, level in enumerate(self.levels):
            outputs.append(
                level(units_EBK, router_noise[depth] if router_noise is not None else None)
            )
            units_EBK = outputs[-1].units_EBK
        return embeddings(outputs, [self.mix(output) for output in outputs], return_experts)

    def as_estimates(self, stack: ExpertStack) -> ExpertStack:
        """Experts as estimates of their level."""
        return self.mix.as_estimates(stack)

    def voxel_shares(self, voxels_BV: Tensor, subject: int) -> list[VoxelShares] | None:
        """Voxels traced through the subject layer and the routers; not through a bottleneck."""
        if self.bottleneck is not None:
            return None
        energy_HV = self.subject_layer.weight_HV(subject).float().square()
        routing = iter(self.eval()(voxels_BV, subject).routing)
        return traced_shares(self, energy_HV, routing, len(voxels_BV))


class BrainMoE(Encoder):
    """One level of experts with separate backbones (first variant of MoRE-Brain).

    Parameters
    ----------
    num_exp : int, optional
        E.
    capacity_factor : float, optional
        Input units of an expert relative to an even share.
    meta : bool, optional
        Add an expert with all units as input; it counts as a level (an error in the published
        code).
    subjects, hidden_dim, n_blocks, clip_emb_dim, clip_seq_dim, routing, activation_term : optional
        See :class:`BrainMoEMulti`.
    token_order, trunk, head, level_combine, bottleneck_dim, dropout, voxel_dropout : optional
        See :class:`BrainMoEMulti`.
    """

    @register_to_config
    def __init__(
        self,
        subjects: Subjects,
        hidden_dim: int = 4096,
        n_blocks: int = 4,
        clip_emb_dim: int = 1280,
        clip_seq_dim: int = 1,
        num_exp: int = 16,
        capacity_factor: float = 1.0,
        meta: bool = False,
        routing: Routing = "static",
        activation_term: bool = False,
        token_order: TokenOrder = "index",
        trunk: Trunk = "residual",
        head: Head = "linear",
        level_combine: Combine = "sum",
        bottleneck_dim: int = 0,
        dropout: float = 0.15,
        voxel_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.subject_layer = SubjectLayer(subjects, hidden_dim, voxel_dropout)
        self.bottleneck = nn.Linear(hidden_dim, bottleneck_dim) if bottleneck_dim else None
        units = bottleneck_dim or hidden_dim
        router = make_router(
            routing, 1, units, num_exp, capacity_factor, activation_term, token_order
        )
        gain = start_gain(num_exp, trunk, level_combine)
        self.level = ExpertLevel(
            router,
            make_trunk(trunk, num_exp, router.width, n_blocks, dropout),
            ExpertHeads(
                num_exp, router.width, clip_seq_dim, clip_emb_dim, head, clip_emb_dim, gain
            ),
        )
        self.mix = EvenMix(level_combine)
        self.meta_expert = None
        if meta:
            self.meta_expert = MetaExpert(
                make_trunk(trunk, 1, units, n_blocks, dropout),
                ExpertHeads(1, units, clip_seq_dim, clip_emb_dim, head, clip_emb_dim),
            )

    def as_estimates(self, stack: ExpertStack) -> ExpertStack:
        """Experts as estimates of their level."""
        return self.mix.as_estimates(stack)

    def forward(
        self,
        voxels_BV: Tensor,
        subject: int,
        return_experts: bool = False,
        router_noise: Sequence[Tensor] | None = None,
    ) -> ExpertEmbeddings:
        """Encode the voxels of one subject; parameters as for :class:`BrainMoEMulti`."""
        x_BH = self.subject_layer(voxels_BV, subject)
        x_BH = x_BH if self.bottleneck is None else self.bottleneck(x_BH)
        output = self.level(x_BH[None], router_noise[0] if router_noise is not None else None)
        return embeddings(
            [output],
            [self.mix(output)],
            return_experts,
            self.meta_expert(x_BH) if self.meta_expert is not None else None,
        )


class BrainMoEHier(Encoder):
    """Parallel levels of experts with learned mixing weights (second variant of MoRE-Brain).

    Parameters
    ----------
    num_exps : Sequence[int], optional
        Experts, level by level.
    capacity_factors : Sequence[float] | None, optional
        Input units of an expert relative to an even share, level by level (1 by default).
    meta : bool, optional
        Add an expert with all units as input; it counts as a level.
    subjects, hidden_dim, n_blocks, clip_emb_dim, clip_seq_dim, routing, activation_term : optional
        See :class:`BrainMoEMulti`.
    token_order, trunk, head, bottleneck_dim, dropout, voxel_dropout : optional
        See :class:`BrainMoEMulti`.
    """

    @register_to_config
    def __init__(
        self,
        subjects: Subjects,
        hidden_dim: int = 4096,
        n_blocks: int = 4,
        clip_emb_dim: int = 1280,
        clip_seq_dim: int = 1,
        num_exps: Sequence[int] = (4, 8, 16, 32),
        capacity_factors: Sequence[float] | None = None,
        meta: bool = False,
        routing: Routing = "static",
        activation_term: bool = False,
        token_order: TokenOrder = "index",
        trunk: Trunk = "residual",
        head: Head = "linear",
        bottleneck_dim: int = 0,
        dropout: float = 0.15,
        voxel_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        capacities = tuple(capacity_factors or [1.0] * len(num_exps))
        if len(capacities) != len(num_exps):
            raise UserError(
                f"capacity_factors={capacity_factors} does not fit num_exps={num_exps}: as many"
                " factors as levels."
            )
        self.subject_layer = SubjectLayer(subjects, hidden_dim, voxel_dropout)
        self.bottleneck = nn.Linear(hidden_dim, bottleneck_dim) if bottleneck_dim else None
        units = bottleneck_dim or hidden_dim
        self.levels, self.mixes = nn.ModuleList(), nn.ModuleList()
        for experts, capacity in zip(num_exps, capacities):
            router = make_router(routing, 1, units, experts, capacity, activation_term, token_order)
            gain = start_gain(experts, trunk, "sum")
            heads = ExpertHeads(
                experts, router.width, clip_seq_dim, clip_emb_dim, head, clip_emb_dim, gain
            )
            self.levels.append(
                ExpertLevel(
                    router, make_trunk(trunk, experts, router.width, n_blocks, dropout), heads
                )
            )
            self.mixes.append(ExpertMix(experts, clip_seq_dim))
        self.meta_expert = None
        if meta:
            self.meta_expert = MetaExpert(
                make_trunk(trunk, 1, units, n_blocks, dropout),
                ExpertHeads(1, units, clip_seq_dim, clip_emb_dim, head, clip_emb_dim),
            )

    def as_estimates(self, stack: ExpertStack) -> ExpertStack:
        """Experts as estimates of their level, times their learned weights."""
        return stack.estimates(torch.cat([cast(ExpertMix, mix).backbone for mix in self.mixes]))

    def forward(
        self,
        voxels_BV: Tensor,
        subject: int,
        return_experts: bool = False,
        router_noise: Sequence[Tensor] | None = None,
    ) -> ExpertEmbeddings:
        """Encode the voxels of one subject; parameters as for :class:`BrainMoEMulti`."""
        x_BH = self.subject_layer(voxels_BV, subject)
        x_BH = x_BH if self.bottleneck is None else self.bottleneck(x_BH)
        outputs = [
            level(x_BH[None], router_noise[place] if router_noise is not None else None)
            for place, level in enumerate(self.levels)
        ]
        mixed = [mix(output) for mix, output in zip(self.mixes, outputs)]
        return embeddings(
            outputs,
            mixed,
            return_experts,
            self.meta_expert(x_BH) if self.meta_expert is not None else None,
        )
