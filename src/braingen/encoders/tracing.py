"""Voxels traced through the subject layer and routers of units to the experts.

B trials, V voxels, H shared width, E experts of a level, P parents, K units of an expert.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from braingen.encoders.base import VoxelShares
from braingen.encoders.feature_router import ExpertChoiceRouter
from braingen.types import UnitRouting

if TYPE_CHECKING:
    from braingen.encoders.moe import BrainMoEMulti


@torch.no_grad()
def traced_shares(
    encoder: BrainMoEMulti, energy_HV: Tensor, routing: Iterator[UnitRouting], trials: int
) -> list[VoxelShares]:
    """Follow every unit down the levels of experts.

    A unit keeps its position along the residual path of an expert. Contributions of the blocks,
    from other units of the same expert, are not traced; attributions
    (:mod:`braingen.interpret.attribution`) include them.

    Parameters
    ----------
    energy_HV : Tensor
        Squared weights of the subject layer.
    routing : Iterator[UnitRouting]
        Of every parent, level by level.
    trials : int
        B.
    """
    units_PBK = torch.arange(len(energy_HV), device=energy_HV.device).expand(1, trials, -1)
    gain_PBK = torch.ones_like(units_PBK, dtype=torch.float32)
    exact, levels = True, []
    for depth, level in enumerate(encoder.levels):
        exact = exact and not isinstance(level.router, ExpertChoiceRouter)
        if depth > 1 and encoder.config["trunk"] == "published":
            exact = False
        records = [next(routing) for _ in range(len(units_PBK))]
        chosen, gains = [], []
        for units_BK, gain_BK, record in zip(units_PBK, gain_PBK, records):
            for expert in range(record.chosen_BEK.shape[1]):
                index_BK = record.chosen_BEK[:, expert].expand(trials, -1)
                chosen.append(units_BK.gather(1, index_BK))
                gains.append(gain_BK.gather(1, index_BK) * record.weights_BEK[:, expert].float())
        units_PBK, gain_PBK = torch.stack(chosen), torch.stack(gains)
        read_EBH = torch.zeros(*units_PBK.shape[:2], len(energy_HV), device=energy_HV.device)
        read_EBH.scatter_add_(2, units_PBK, gain_PBK.square())
        energy_EV = read_EBH.mean(dim=1) @ energy_HV
        levels.append(VoxelShares(energy_EV / energy_EV.sum(dim=0).clamp_min(1e-20), exact))
    return levels
