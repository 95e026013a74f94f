"""Records that travel between the stages: one NamedTuple per arrow of the flow.

    Trials -> VoxelBatch -> ExpertEmbeddings -> ExpertStack -> Conditioning -> images -> Scores

Axis letters: B batch, V voxels, H shared width, E experts of a level, L levels, D CLIP width, T
tokens, K units per expert.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:  # records are read by code that must start fast: no torch, no pandas at import
    from collections.abc import Callable, Sequence

    import pandas as pd
    from torch import Tensor


class Trials(NamedTuple):
    """Trials of a subject; one row per presentation of an image."""

    table: pd.DataFrame
    """Columns subject, session, trial (row of the betas file), image (id in the image file), repeat
    (0-based), split.
    """
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
    """Subject number."""


class ExpertStack(NamedTuple):
    """A decoded embedding with the estimates of its experts: from the encoder to the router."""

    output_BTD: Tensor
    """The embedding as a whole, the condition without a router."""
    experts_BETD: Tensor
    """Estimates of all experts, level by level; a level is the mean of its experts. Where single
    experts are not kept, the levels themselves.
    """
    counts: tuple[int, ...]
    """Experts of every level; 1 each where single experts are not kept."""

    @classmethod
    def of_experts(cls, experts_BETD: Tensor, counts: Sequence[int]) -> ExpertStack:
        """The stack whose output is the mean of its levels."""
        stack = cls(experts_BETD[:, 0], experts_BETD, tuple(counts))
        return stack._replace(output_BTD=stack.levels_BLTD.mean(dim=1))

    @classmethod
    def repeated(cls, embedding_BTD: Tensor, counts: Sequence[int]) -> ExpertStack:
        """One embedding for every expert: the condition of the oracle."""
        return cls.of_experts(embedding_BTD[:, None].expand(-1, sum(counts), -1, -1), counts)

    @property
    def by_level(self) -> tuple[Tensor, ...]:
        """Views of the experts of every level, B x E x T x D each."""
        return self.experts_BETD.split(list(self.counts), dim=1)

    @property
    def levels_BLTD(self) -> Tensor:
        """Embeddings of the levels."""
        import torch

        return torch.cat([x_BETD.mean(dim=1, keepdim=True) for x_BETD in self.by_level], dim=1)

    def spread(self, levels_BL: Tensor) -> Tensor:
        """Repeat values of the levels (B x L x ...) for every expert (B x E x ...)."""
        counts = levels_BL.new_tensor(self.counts).long()
        return levels_BL.repeat_interleave(counts, dim=1)

    def estimates(self, weights_ET: Tensor | None = None) -> ExpertStack:
        """Estimates of the embedding by experts whose sum is their level: outputs times number.

        An expert of a sum is a share of its level; times E it is an estimate, whose mean over the
        experts is the level.

        Parameters
        ----------
        weights_ET : Tensor | None, optional
            Weights of the sum, of all experts; 1 each by default.
        """
        counts_BL = self.experts_BETD.new_tensor(self.counts)[None]
        factors_BET1 = self.spread(counts_BL)[..., None, None]
        if weights_ET is not None:
            factors_BET1 = factors_BET1 * weights_ET[None, :, :, None]
        return self._replace(experts_BETD=self.experts_BETD * factors_BET1)

    def map(self, change: Callable[[Tensor], Tensor]) -> ExpertStack:
        """The stack with both tensors changed alike: rows chosen, averaged, moved to a device."""
        return self._replace(
            output_BTD=change(self.output_BTD), experts_BETD=change(self.experts_BETD)
        )


class UnitRouting(NamedTuple):
    """How the router of one level assigned units to its experts."""

    probabilities_BEH: Tensor
    """Soft probability of every expert for every unit, summing to 1 over E. B is 1 where routing
    does not depend on the trial.
    """
    chosen_BEK: Tensor
    """Indices of every expert's input units in their order, int64. B is 1 where routing does not
    depend on the trial.
    """
    weights_BEK: Tensor
    """Factors of the chosen units. B is 1 where they do not depend on the trial."""


class ExpertEmbeddings(NamedTuple):
    """Outputs of an encoder for a batch of voxels."""

    backbone_BTD: Tensor
    """Encoder output, input of the prior; the mean over levels for the multi-level model."""
    clip_BTD: Tensor
    """The same after the projection head; input of the contrastive loss."""
    level_backbone_BLTD: Tensor
    """Backbone output of every level. L is 1 for an encoder without levels."""
    level_clip_BLTD: Tensor
    """Projected output of every level."""
    expert_backbone: tuple[Tensor, ...]
    """Per level, backbone outputs of its experts, B x E x T x D each; empty by default."""
    expert_clip: tuple[Tensor, ...]
    """Per level, projected outputs of its experts, B x E x T x D each; empty by default."""
    routing: tuple[UnitRouting, ...]
    """Per router, in the order of levels; empty for a dense encoder."""
    balance_loss: Tensor
    """Load-balancing loss (scalar): zero only when experts are used evenly."""
    low_level: tuple[Tensor, ...] = ()
    """MindEye2's low-level branch (blurry latents, ConvNext features); empty without it."""
    intermediate_clip: tuple[Tensor, ...] = ()
    """Projected features of inner blocks, B x T x D each; only of some dense encoders."""
    pooled_BD: Tensor | None = None
    """Pooled text embedding; None unless the encoder predicts one."""

    @property
    def stack(self) -> ExpertStack:
        """The backbone outputs as one stack, of the levels where single experts are not kept.

        Outputs of experts may be shares of their level:
        :meth:`braingen.encoders.base.Encoder.as_estimates` makes them estimates.
        """
        import torch

        if not self.expert_backbone:
            levels = self.level_backbone_BLTD.shape[1]
            return ExpertStack(self.backbone_BTD, self.level_backbone_BLTD, (1,) * levels)
        counts = tuple(x_BETD.shape[1] for x_BETD in self.expert_backbone)
        return ExpertStack(self.backbone_BTD, torch.cat(self.expert_backbone, dim=1), counts)


class Routing(NamedTuple):
    """Mixing weights of levels and experts at one denoising step."""

    level_weights_BL: Tensor
    """Mixing weights of the levels."""
    level_probabilities_BL: Tensor
    """Soft probability of every level (equal to the weights unless a level is chosen hard); input
    of the guidance loss.
    """
    expert_weights: tuple[Tensor, ...]
    """Per level, weights of its experts by the space router (B x E), averaged over tokens
    (attention: summed).
    """
    levels_are_learned: bool = False
    """Whether a time router with weights gives the probabilities, so the guidance loss applies."""


class Conditioning(NamedTuple):
    """Condition of the U-Net at one denoising step."""

    tokens_BTC: Tensor
    """Cross-attention tokens (text)."""
    image_embeds_BTD: Tensor
    """Embeddings for the IP-Adapter."""
    pooled_BD: Tensor
    """Pooled text embedding (zeros in the published setting)."""
    image_routing: Routing | None = None
    """Mixing of the image embedding; None without a router."""
    text_routing: Routing | None = None
    """Mixing of the text embedding; None without a router."""


class Score(NamedTuple):
    """One score with its interval and baselines; None where a field does not apply."""

    value: float | None
    low: float | None
    """Lower end of the bootstrap 95 % interval over images."""
    high: float | None
    random: float | None
    """The same score of images generated from random voxels."""
    oracle: float | None
    """The same score of images generated from the true embeddings."""
    ridge: float | None
    """The same score of cross-validated ridge regression (decoder scores only)."""
    chance: float | None
    n: int
    """Number of test images."""
    pool: int | None
    """Number of candidates in a retrieval."""
    encoding_model: float | None = None
    """The same score of the encoding model (decoder scores, where one is trained)."""
    low_level: float | None = None
    """The same score of the coarse images of the low-level path alone (image scores)."""
