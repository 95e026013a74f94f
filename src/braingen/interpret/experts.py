"""Voxel selectivity, outputs and category evidence of experts.

B trials, V voxels, H shared width, E experts of a level, P parents, F experts a parent splits into,
K units of an expert, C classes, N images, F numbers of an embedding where a tensor says so.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple, Protocol

import numpy as np
import pandas as pd
from scipy.stats import false_discovery_control
import torch
from torch import Tensor

from braingen.encoders.embedding_decoder import EmbeddingDecoder
from braingen.runtime.errors import UserError


class Selectivity(NamedTuple):
    """Share of every voxel that each expert receives, from the weights alone."""

    share_EV: np.ndarray
    """Share of a voxel's squared weights that goes to every expert; sums to 1 over the experts of a
    level (0 for a voxel that no expert receives).
    """
    exact: bool
    """Whether the inputs of an expert are a fixed set of identifiable units.

    False if routing depends on the activation or linear maps lie between levels: units are then
    tracked by position.
    """

    @property
    def chosen_V(self) -> np.ndarray:
        """The expert with the largest share of every voxel."""
        return self.share_EV.argmax(axis=0)


@torch.no_grad()
def voxel_selectivity(
    embedding_decoder: EmbeddingDecoder, subject: int, voxels_BV: Tensor
) -> list[Selectivity]:
    """Trace every voxel through the subject layer and the routers to the experts, level by level.

    A unit keeps its position along the residual path of an expert. Contributions of the blocks,
    from other units of the same expert, are not traced; attributions
    (:mod:`braingen.interpret.attribution`) include them.

    Parameters
    ----------
    voxels_BV : Tensor
        Trials over which trial-dependent routing is averaged.

    Raises
    ------
    UserError
        For an encoder without hierarchical routing of units.
    """
    encoder = embedding_decoder.encoder
    levels = encoder.voxel_shares(voxels_BV, subject)
    if levels is None:
        raise UserError(
            "Voxel selectivity of experts is defined for BrainMoEMulti without a bottleneck and"
            f" for BrainMoEVoxel, not for {type(encoder).__name__}; attributions work for it"
            " (--parts)."
        )
    return [Selectivity(level.share_EV.cpu().numpy(), level.exact) for level in levels]


@torch.no_grad()
def evidence(output: Tensor, direction_CF: Tensor) -> np.ndarray:
    """Projection of outputs on class directions: N x C, or N x E x C for outputs N x E x F."""
    return (output @ direction_CF.T.to(output)).float().cpu().numpy()


def profile(
    evidence_NEC: np.ndarray, member_NC: np.ndarray, permutations: int = 2000, seed: int = 0
) -> pd.DataFrame:
    """Category profile of every expert: mean evidence on images of a class minus all others.

    The p value is two-sided, from permuting images (with all their classes); q is its false
    discovery rate (Benjamini and Hochberg) over all experts and classes of the table.

    Parameters
    ----------
    evidence_NEC : np.ndarray
        See :func:`evidence`.
    member_NC : np.ndarray
        Bool, which image has which class; a class that no image or every image has gets no row.
    permutations : int, optional
        Of the images.

    Returns
    -------
    pd.DataFrame
        Columns expert, class (its number), images, difference, standardised (difference / sd of its
        permutations), p, q.
    """
    usable_C = np.flatnonzero(member_NC.any(axis=0) & ~member_NC.all(axis=0))
    member_NC, evidence_NEC = (
        member_NC[:, usable_C].astype(np.float64),
        evidence_NEC[:, :, usable_C].astype(np.float64),
    )
    inside_C, outside_C = member_NC.sum(axis=0), (1 - member_NC).sum(axis=0)
    weight_NC = member_NC / inside_C - (1 - member_NC) / outside_C

    def differences(order_N: np.ndarray) -> np.ndarray:
        return np.einsum("nc,nec->ec", weight_NC[order_N], evidence_NEC)

    rng = np.random.default_rng(seed)
    found_EC = differences(np.arange(len(member_NC)))
    permuted_REC = np.stack(
        [differences(rng.permutation(len(member_NC))) for _ in range(permutations)]
    )
    p_EC = (1 + (np.abs(permuted_REC) >= np.abs(found_EC) - 1e-12).sum(axis=0)) / (1 + permutations)
    q_EC = false_discovery_control(p_EC.ravel()).reshape(p_EC.shape) if p_EC.size else p_EC
    sd_EC = np.maximum(permuted_REC.std(axis=0), 1e-12)
    experts, classes = np.indices(found_EC.shape).reshape(2, -1)
    return pd.DataFrame(
        {
            "expert": experts,
            "class": usable_C[classes],
            "images": inside_C[classes].astype(int),
            "difference": found_EC.ravel(),
            "standardised": (found_EC / sd_EC).ravel(),
            "p": p_EC.ravel(),
            "q": q_EC.ravel(),
        }
    )


class VoxelRows(Protocol):
    """Responses, N x V, read in slices of rows: an array, or an object that computes slices."""

    def __len__(self) -> int:
        """N."""

    def __getitem__(self, rows: slice, /) -> Any:
        """Some of them, B x V."""


class ExpertOutputs(NamedTuple):
    """Outputs of levels and experts for some images, around the training mean, before the prior."""

    levels_NLF: Tensor
    experts: tuple[Tensor, ...]
    """Per level, N x E x F."""
    whole_NF: Tensor
    """Decoded embedding, after the prior."""
    clip_NF: Tensor
    """The projected output that retrieval uses."""


@torch.no_grad()
def expert_outputs_of(
    embedding_decoder: EmbeddingDecoder, voxels_NV: VoxelRows, subject: int, batch_size: int = 64
) -> Iterator[ExpertOutputs]:
    """Yield outputs of all parts of a decoder in batches, because together they exceed memory."""
    device = next(embedding_decoder.parameters()).device
    for first in range(0, len(voxels_NV), batch_size):
        voxels_BV = torch.as_tensor(voxels_NV[first : first + batch_size], device=device)
        out = embedding_decoder.eval()(voxels_BV, subject, return_experts=True)
        decoded_BTD = embedding_decoder.predicted(out.backbone_BTD)
        yield ExpertOutputs(
            out.level_backbone_BLTD.flatten(2).cpu(),
            tuple(each.flatten(2).cpu() for each in out.expert_backbone),
            decoded_BTD.flatten(1).cpu(),
            out.clip_BTD.flatten(1).cpu(),
        )


def all_expert_outputs(batches: Iterable[ExpertOutputs]) -> ExpertOutputs:
    """Concatenate batches of outputs."""
    levels, experts, whole, clip = zip(*batches)
    return ExpertOutputs(
        torch.cat(levels),
        tuple(torch.cat(each) for each in zip(*experts)),
        torch.cat(whole),
        torch.cat(clip),
    )
