"""What an encoder is: voxels of one subject to an embedding, as a whole and level by level.

The encoders there are stand in :mod:`braingen.config.encoders`, with their settings. B batch, V
voxels, E experts of a level.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, NamedTuple

from diffusers import ConfigMixin, ModelMixin
from torch import Tensor

from braingen.config.encoders import ENCODER_CONFIGS
from braingen.runtime.kinds import load_kind
from braingen.types import ExpertEmbeddings, ExpertStack


class VoxelShares(NamedTuple):
    """Which experts of a level receive each voxel, from the weights alone."""

    share_EV: Tensor
    """Share of a voxel's squared weights that goes to every expert; sums to 1 over the experts of a
    level (0 for a voxel that no expert receives).
    """
    exact: bool
    """Whether the inputs of an expert are a fixed set of identifiable units.

    False if routing depends on the activation or linear maps lie between levels: units are then
    tracked by position.
    """


class VoxelTuning(NamedTuple):
    """What drives the voxels of a person."""

    weight_VK: Tensor
    """Weights of coordinates of unit variance in the space that all people share."""
    precision_V: Tensor
    """1 / variance of a single response that the weights do not explain."""


class Encoder(ModelMixin, ConfigMixin, ABC):
    """Maps the voxels of one subject to CLIP space.

    Its constructor takes ``subjects`` (subject number -> voxel count), ``clip_seq_dim`` (T) and
    ``clip_emb_dim`` (D) of the target, and what ``arguments`` of its settings returns, and is
    decorated with diffusers' ``register_to_config``. What a subject owns lies in a part called
    ``subject_layer`` (:class:`braingen.encoders.subject_layer.SubjectLayer`), by which a new
    subject is added to trained weights. No attribute may have the name of a constructor's argument:
    diffusers answers with the argument.
    """

    @abstractmethod
    def forward(
        self, voxels_BV: Tensor, subject: int, return_experts: bool = False
    ) -> ExpertEmbeddings:
        """Encode the voxels of one subject.

        Parameters
        ----------
        voxels_BV : Tensor
            z-scored responses.
        return_experts : bool, optional
            Also return the outputs of every expert.
        """

    def as_estimates(self, stack: ExpertStack) -> ExpertStack:
        """The stack with every expert as an estimate of its level, the mean of its experts.

        For an encoder whose levels are the sums of their experts, as it is here; another one
        overrides it.

        Parameters
        ----------
        stack : ExpertStack
            Of an output with the outputs of every expert.
        """
        return stack.estimates()

    def init_from(self, responses: dict[int, Tensor]) -> None:
        """Initialise from training trials; called where its settings say
        ``starts_from_responses``.

        Parameters
        ----------
        responses : dict[int, Tensor]
            Subject -> training trials x voxels.
        """
        raise NotImplementedError(f"{type(self).__name__} does not start from responses")

    def init_from_tuning(self, tuning: Mapping[int, VoxelTuning], seed: int = 0) -> None:
        """Initialise from encoding models of the training trials; called where its settings give a
        ``tuning_width``.

        Parameters
        ----------
        tuning : Mapping[int, VoxelTuning]
            Subject -> what drives its voxels.
        seed : int, optional
            Of what is drawn.
        """
        raise NotImplementedError(f"{type(self).__name__} does not start from voxels' tuning")

    def voxel_shares(self, voxels_BV: Tensor, subject: int) -> list[VoxelShares] | None:
        """Share of every voxel that each expert receives, level by level; None where that is not
        defined.

        Parameters
        ----------
        voxels_BV : Tensor
            Trials over which trial-dependent routing is averaged.
        """
        return None


def without_experts(backbone_BTD: Tensor, clip_BTD: Tensor) -> ExpertEmbeddings:
    """The outputs of an encoder without experts: one level, nothing routed.

    Parameters
    ----------
    backbone_BTD : Tensor
        Encoder output, input of the prior.
    clip_BTD : Tensor
        The same after a projection head; input of the contrastive loss.
    """
    return ExpertEmbeddings(
        backbone_BTD=backbone_BTD,
        clip_BTD=clip_BTD,
        level_backbone_BLTD=backbone_BTD[:, None],
        level_clip_BLTD=clip_BTD[:, None],
        expert_backbone=(),
        expert_clip=(),
        routing=(),
        balance_loss=backbone_BTD.new_zeros(()),
    )


def encoder_class(name: str) -> type[Encoder]:
    """The class of an encoder by the name that stands in ``encoder.model``.

    Raises
    ------
    UserError
        For an unknown name, or when the settings name a class that is no encoder.
    """
    found: type[Any] | None = load_kind(ENCODER_CONFIGS, name, Encoder, "encoder.model")
    assert found is not None
    return found
