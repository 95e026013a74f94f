"""The records that travel between the stages: one NamedTuple per arrow of the flow.

    Trials -> VoxelBatch -> ExpertEmbeddings -> Conditioning -> pictures -> Scores

Axis letters: B batch, V voxels, H shared width, E experts of a level, L levels, D CLIP width, T tokens, K units per expert.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:  # records are read by code that must start fast: no torch, no pandas at import
    import pandas as pd
    from torch import Tensor


class Trials(NamedTuple):
    """Which picture was shown when, to whom; one row per presentation."""

    table: pd.DataFrame
    """Columns subject, session, trial (row of the betas file), image (id in the image file), repeat (0-based), split."""
    subject: int
    """NSD subject number, 1-8 (simulated subjects are numbered alike)."""
    presentations: int = 3
    """Presentations of an image that are used together, at most."""


class VoxelBatch(NamedTuple):
    """A batch of presentations of one subject."""

    voxels_BV: Tensor
    """z-scored responses, float32, unit: standard deviations of the voxel within its session."""
    image_B: Tensor
    """Image ids, int64."""
    subject: int
    """Whose voxels these are."""


class UnitRouting(NamedTuple):
    """How one level's router shared out the units among its experts."""

    probabilities_BEH: Tensor
    """Soft probability of every expert for every unit, summing to 1 over E. (B is 1 where routing does not depend on the trial.)"""
    chosen_BEK: Tensor
    """Indices of the units every expert reads, in the order of its inputs, int64. (B is 1 where routing does not depend on the trial.)"""
    weights_BEK: Tensor
    """What the chosen units are multiplied with. (B is 1 where that does not depend on the trial.)"""


class ExpertEmbeddings(NamedTuple):
    """What an encoder read out of a batch of voxels."""

    backbone_BTD: Tensor
    """Encoder output, input of the prior: the mean over levels for the multi-level model."""
    clip_BTD: Tensor
    """The same through the projection head; compared with CLIP by the contrastive loss."""
    level_backbone_BLTD: Tensor
    """Backbone output of every level. L is 1 for an encoder without levels."""
    level_clip_BLTD: Tensor
    """Projected output of every level."""
    expert_backbone: tuple[Tensor, ...]
    """Per level, the backbone outputs of its experts, B x E x T x D each; empty when not asked for."""
    expert_clip: tuple[Tensor, ...]
    """Per level, the projected outputs of its experts, B x E x T x D each; empty when not asked for."""
    routing: tuple[UnitRouting, ...]
    """Per router, in the order of levels; empty for a dense encoder."""
    balance_loss: Tensor
    """Load-balancing loss (scalar): zero only when experts are used evenly."""
    low_level: tuple[Tensor, ...] = ()
    """MindEye2's low-level branch (blurry latents, ConvNext features); empty without it."""
    intermediate_clip: tuple[Tensor, ...] = ()
    """Projected features after inner blocks, B x T x D each; empty unless the dense encoder was built with them."""
    pooled_BD: Tensor | None = None
    """Pooled text embedding; None unless the encoder predicts one."""


class Routing(NamedTuple):
    """How levels and experts were mixed at one denoising step."""

    level_weights_BL: Tensor
    """Weights that the levels were mixed with."""
    level_probabilities_BL: Tensor
    """Soft probability of every level (the same unless a level is chosen hard): what the guidance loss acts on."""
    expert_weights: tuple[Tensor, ...]
    """Per level, B x E: use of its experts by the space router, averaged over tokens (attention: summed)."""
    levels_are_learned: bool = False
    """Whether the probabilities come from a time router with weights, which the guidance loss pulls on."""


class Conditioning(NamedTuple):
    """What the U-Net listens to at one denoising step."""

    tokens_BTC: Tensor
    """Cross-attention tokens (text)."""
    image_embeds_BTD: Tensor
    """Embeddings for the IP-Adapter."""
    pooled_BD: Tensor
    """Pooled text embedding (zeros in the published setting)."""
    image_routing: Routing | None = None
    """How the image embedding was mixed; None without a router."""
    text_routing: Routing | None = None
    """How the text embedding was mixed; None without a router."""


class Score(NamedTuple):
    """One figure with everything a reviewer asks for; None where a field has no meaning for the score."""

    value: float | None
    low: float | None
    """Lower end of the bootstrap 95 % interval over images."""
    high: float | None
    random: float | None
    """The same score of pictures decoded from random voxels."""
    ceiling: float | None
    """The same score of pictures made from the true embeddings."""
    ridge: float | None
    """The same score of cross-validated ridge regression (decoder scores only)."""
    chance: float | None
    n: int
    """Number of test images."""
    pool: int | None
    """Number of candidates in a retrieval."""
