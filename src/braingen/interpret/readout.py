"""The explained value: a scalar of the embedding of the whole decoder, a level or an expert.

B batch, V voxels, F = T x D numbers of an embedding, C classes, N images.
"""

from __future__ import annotations

import re
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from braingen.encoders.embedding_decoder import EmbeddingDecoder
from braingen.runtime.errors import UserError


class DecoderPart(NamedTuple):
    """The whole decoder, a level of it, or one expert; both count from 0."""

    level: int | None = None
    expert: int | None = None

    @property
    def name(self) -> str:
        """``whole``, ``level-1`` or ``level-1-expert-3``: for file names and settings."""
        if self.level is None:
            return "whole"
        return f"level-{self.level}" + ("" if self.expert is None else f"-expert-{self.expert}")

    @property
    def title(self) -> str:
        """Name for display."""
        return self.name.replace("-", " ").replace(" expert", ", expert")

    @classmethod
    def parse(cls, name: str) -> DecoderPart:
        """Read a part's name.

        Raises
        ------
        UserError
            For anything else.
        """
        found = re.fullmatch(r"whole|level-(\d+)(?:-expert-(\d+))?", name)
        if found is None:
            raise UserError(
                f"There is no part '{name}': write whole, level-0 or level-0-expert-1 (levels and"
                " experts count from 0)."
            )
        return cls(*(None if number is None else int(number) for number in found.groups()))


WHOLE = DecoderPart()


@torch.no_grad()
def experts_per_level(embedding_decoder: EmbeddingDecoder, voxels: int, subject: int) -> list[int]:
    """Number of experts per level; empty for a dense encoder."""
    device = next(embedding_decoder.parameters()).device
    outputs = embedding_decoder(torch.zeros(1, voxels, device=device), subject, return_experts=True)
    return [expert_BETD.shape[1] for expert_BETD in outputs.expert_backbone]


def parts_of(experts: list[int]) -> list[DecoderPart]:
    """The whole decoder, its levels, and their experts, in this order."""
    levels = [DecoderPart(level) for level in range(len(experts))]
    return [
        WHOLE,
        *levels,
        *(
            DecoderPart(level, expert)
            for level, count in enumerate(experts)
            for expert in range(count)
        ),
    ]


def decode(
    embedding_decoder: EmbeddingDecoder, voxels_BV: Tensor, subject: int, part: DecoderPart = WHOLE
) -> Tensor:
    """Output of a part, around the training mean; differentiable.

    The embedding of the whole decoder includes the prior (one call of its network, for any
    ``prior.use``), as in decoding. Levels and experts are taken before the prior, which was trained
    on the mean of the levels only. Before the prior, the whole is therefore the mean of its levels
    and a level is the sum of its experts (their mean with ``level_combine: mean``).

    Returns
    -------
    Tensor
        embedding_BF.
    """
    out = embedding_decoder(voxels_BV, subject, return_experts=part.expert is not None)
    if part.level is None:
        return embedding_decoder.predicted(out.backbone_BTD).flatten(1)
    levels = out.level_backbone_BLTD.shape[1]
    if part.level >= levels or (part.expert is not None and part.level >= len(out.expert_backbone)):
        raise UserError(
            f"This encoder has {levels} levels and experts on {len(out.expert_backbone)} of them;"
            f" there is no {part.name}."
        )
    if part.expert is None:
        return out.level_backbone_BLTD[:, part.level].flatten(1)
    experts_BETD = out.expert_backbone[part.level]
    if part.expert >= experts_BETD.shape[1]:
        raise UserError(
            f"Level {part.level} has {experts_BETD.shape[1]} experts, counted from 0; there is no"
            f" {part.name}."
        )
    return experts_BETD[:, part.expert].flatten(1)


class Readout(nn.Module):
    """One value per trial: projection of the output of a part on a direction.

    Parameters
    ----------
    embedding_decoder : EmbeddingDecoder
        Frozen here.
    subject : int
        Number of the subject.
    part : DecoderPart, optional
        The explained part.
    cosine : bool, optional
        Divide by the length of the output, so that the value is the cosine with the direction.
        Without it the value is linear in the embedding, and levels and experts add up.
    """

    def __init__(
        self,
        embedding_decoder: EmbeddingDecoder,
        subject: int,
        part: DecoderPart = WHOLE,
        cosine: bool = False,
    ) -> None:
        super().__init__()
        self.embedding_decoder, self.subject, self.part, self.cosine = (
            embedding_decoder.eval().requires_grad_(False),
            subject,
            part,
            cosine,
        )

    def forward(self, voxels_BV: Tensor, direction_BF: Tensor) -> Tensor:
        """value_B, for directions of length 1."""
        output_BF = decode(self.embedding_decoder, voxels_BV, self.subject, self.part)
        if self.cosine:
            output_BF = normalize(output_BF, dim=1)
        return (output_BF * direction_BF).sum(dim=1)


def class_directions(embedding_NF: Tensor, member_NC: np.ndarray) -> Tensor:
    """Direction of every class: mean embedding of its images minus that of all others, length 1.

    Parameters
    ----------
    embedding_NF : Tensor
        True embeddings of *training* images, around their mean.
    member_NC : np.ndarray
        Bool, which image belongs to which class.

    Returns
    -------
    direction_CF : Tensor
        Zeros for a class with no image, or with all.
    """
    member_NC_ = torch.from_numpy(np.asarray(member_NC, dtype=np.float32)).to(embedding_NF)
    inside_C, outside_C = member_NC_.sum(0), (1 - member_NC_).sum(0)
    inside_CF = member_NC_.T @ embedding_NF / inside_C.clamp_min(1)[:, None]
    outside_CF = (1 - member_NC_).T @ embedding_NF / outside_C.clamp_min(1)[:, None]
    usable_C1 = ((inside_C > 0) & (outside_C > 0)).float()[:, None]
    return normalize(inside_CF - outside_CF, dim=1) * usable_C1
