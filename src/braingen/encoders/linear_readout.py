"""The best linear read-out inside an embedding decoder: ridge regression beside encoder and prior.

How much of either is used, from ridge regression alone to encoder and prior alone, is chosen on
held-out images. The read-out is there twice: fitted without the held-out images, to choose by, and
fitted to all training images, to be used.

B batch, V voxels, R rank of the read-out, T tokens, D CLIP width, L levels, E experts of a level,
N images.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.functional import cosine_similarity

from braingen.encoders.base import Encoder
from braingen.encoders.gated_readout import GatedReadout, GatedWeights
from braingen.encoders.ridge import LinearMap, Ridge
from braingen.encoders.subject_layer import Subjects, voxel_counts
from braingen.runtime.errors import UserError
from braingen.types import ExpertEmbeddings

RANK = 512
"""Most directions of the target that are read out; wider targets are reduced to their leading
principal components.
"""
BASIS_IMAGES = 2048
"""Most images that principal components are computed from, spread evenly over the table."""
ENCODER_WEIGHTS, PRIOR_WEIGHTS = (0.0, 0.25, 0.5, 0.75, 1.0), (0.0, 0.5, 1.0)
"""What held-out images choose from."""
STANDARD_ERRORS = 2.0
"""By how many standard errors of the paired difference a mixture must be better than ridge
regression alone to be used.
"""


class OutputWeights(NamedTuple):
    """How much of encoder and prior is used."""

    encoder: float = 1.0
    """Share of the encoder's output; the rest is ridge regression."""
    prior: float = 1.0
    """Share of the prior's output for that; the rest is what went into the prior."""


RIDGE_ALONE = OutputWeights(0.0, 0.0)


class FixedLinear(nn.Module):
    """A linear map that is not trained: zero at first.

    Parameters
    ----------
    voxels, rank : int
        V, R.
    """

    weight_RV: Tensor
    bias_R: Tensor

    def __init__(self, voxels: int, rank: int) -> None:
        super().__init__()
        self.register_buffer("weight_RV", torch.zeros(rank, voxels))
        self.register_buffer("bias_R", torch.zeros(rank))

    def forward(self, voxels_BV: Tensor) -> Tensor:
        """Map voxels, B x R."""
        return F.linear(voxels_BV, self.weight_RV, self.bias_R)


class LinearReadout(nn.Module):
    """Ridge regression per subject from voxels to the embedding, in standardised units; or what
    held-out images prefer to it.

    Parameters
    ----------
    subjects : Subjects
        Subject number -> voxel count.
    rank : int
        R; no more than T x D.
    clip_seq_dim, clip_emb_dim : int
        T, D.
    regions : int, optional
        Regions of the mixture that may take the place of ridge regression (:class:`GatedReadout`);
        0 for none.
    """

    basis_RTD: Tensor
    encoder_weight: Tensor
    prior_weight: Tensor

    def __init__(
        self, subjects: Subjects, rank: int, clip_seq_dim: int, clip_emb_dim: int, regions: int = 0
    ) -> None:
        super().__init__()
        counts = voxel_counts(subjects)
        self.linears, self.judged = (
            nn.ModuleDict({str(each): FixedLinear(count, rank) for each, count in counts.items()})
            for _ in range(2)
        )
        self.gated, self.gated_judged = (
            nn.ModuleDict(
                {
                    str(each): GatedReadout(count, rank, regions)
                    for each, count in counts.items()
                    if regions
                }
            )
            for _ in range(2)
        )
        self._without_held_out = False
        self.register_buffer("basis_RTD", torch.zeros(rank, clip_seq_dim, clip_emb_dim))
        self.register_buffer("encoder_weight", torch.ones(()))
        self.register_buffer("prior_weight", torch.ones(()))

    @property
    def weights(self) -> OutputWeights:
        """What was chosen."""
        return OutputWeights(float(self.encoder_weight), float(self.prior_weight))

    def choose(self, weights: OutputWeights) -> None:
        """Use so much of encoder and prior from now on."""
        self.encoder_weight.fill_(weights.encoder)
        self.prior_weight.fill_(weights.prior)

    @contextmanager
    def without_held_out(self) -> Iterator[None]:
        """Use the fit without the held-out images, wherever those are decoded."""
        self._without_held_out = True
        try:
            yield
        finally:
            self._without_held_out = False

    def drop_maps(self) -> None:
        """Give back the memory of what reads voxels; the chosen weights stay."""
        for maps in (self.linears, self.judged, self.gated, self.gated_judged):
            maps.to("meta")

    def expand(self, components_BR: Tensor) -> Tensor:
        """Coordinates along the basis as an embedding, B x T x D."""
        return torch.einsum("br,rtd->btd", components_BR, self.basis_RTD)

    def forward(self, voxels_BV: Tensor, subject: int) -> Tensor:
        """Read the embedding out of one subject's voxels, B x T x D.

        Raises
        ------
        UserError
            For a subject without a read-out.
        """
        if str(subject) not in self.linears:
            raise UserError(
                f"There is no linear read-out of subject {subject}; there are those of subjects"
                f" {', '.join(self.linears)}."
            )
        read = self._read_out_of(subject)
        device = voxels_BV.device.type
        if torch.amp.is_autocast_available(device):
            with torch.autocast(device, enabled=False):
                return self.expand(read(voxels_BV.float()))
        return self.expand(read(voxels_BV.float()))

    def _read_out_of(self, subject: int) -> nn.Module:
        """Ridge regression of a subject, or what was taken in its place."""
        maps = self.judged if self._without_held_out else self.linears
        gated = self.gated_judged if self._without_held_out else self.gated
        if str(subject) in gated and cast(GatedReadout, gated[str(subject)]).used:
            return gated[str(subject)]
        return maps[str(subject)]

    def router(self, subject: int) -> GatedReadout | None:
        """The mixture of regions of a subject; None where ridge regression, or another linear map,
        is used.
        """
        read = self._read_out_of(subject)
        return read if isinstance(read, GatedReadout) else None

    def set_basis(self, targets_ND: Tensor) -> None:
        """Take the axes of the target for a basis, or its principal components where it is wider
        than the rank.

        Parameters
        ----------
        targets_ND : Tensor
            Standardised embeddings of the training images: N x T x D.
        """
        rank, flat = len(self.basis_RTD), self.basis_RTD[0].numel()
        basis_RF = self.basis_RTD.new_zeros(rank, flat)
        if rank == flat:
            basis_RF.fill_diagonal_(1)
        else:
            rows_NF = targets_ND[:: -(-len(targets_ND) // BASIS_IMAGES)].flatten(1)
            _principal_components(rows_NF - rows_NF.mean(0), out_RF=basis_RF)
        self.basis_RTD.copy_(basis_RF.view_as(self.basis_RTD))

    def components(self, targets_NTD: Tensor) -> Tensor:
        """Coordinates of embeddings along the basis, N x R."""
        return torch.einsum("ntd,rtd->nr", targets_NTD, self.basis_RTD)

    @torch.no_grad()
    def take(
        self, subject: int, ridge: Ridge | LinearMap | GatedWeights, without_held_out: bool = False
    ) -> None:
        """Take over a fitted ridge regression, another linear map, or a mixture of regions, from
        voxels to components.
        """
        gated = self.gated_judged if without_held_out else self.gated
        if isinstance(ridge, GatedWeights):
            cast(GatedReadout, gated[str(subject)]).take(ridge)
            return
        if str(subject) in gated:
            cast(GatedReadout, gated[str(subject)]).used.fill_(False)
        maps = self.judged if without_held_out else self.linears
        linear = cast(FixedLinear, maps[str(subject)])
        linear.weight_RV.copy_(torch.from_numpy(ridge.coefficients_VD).T)
        bias_R = ridge.target_mean_D - ridge.voxel_mean_V @ ridge.coefficients_VD
        linear.bias_R.copy_(torch.from_numpy(bias_R))

    def mixed(
        self, out: ExpertEmbeddings, ridge_BTD: Tensor, shares: Sequence[Tensor] = ()
    ) -> ExpertEmbeddings:
        """An encoder's outputs, mixed with what ridge regression predicts.

        Parameters
        ----------
        shares : Sequence[Tensor], optional
            Of :func:`expert_shares`, where the outputs of experts are there.
        """

        def mix(x: Tensor, part: Tensor) -> Tensor:
            return torch.lerp(part.expand_as(x), x.float(), self.encoder_weight)

        def experts(levels: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            parts = (share_ETD * ridge_BTD[:, None] for share_ETD in shares)
            return tuple(mix(x_BETD, part) for x_BETD, part in zip(levels, parts, strict=True))

        return out._replace(
            backbone_BTD=mix(out.backbone_BTD, ridge_BTD),
            clip_BTD=mix(out.clip_BTD, ridge_BTD),
            level_backbone_BLTD=mix(out.level_backbone_BLTD, ridge_BTD[:, None]),
            level_clip_BLTD=mix(out.level_clip_BLTD, ridge_BTD[:, None]),
            expert_backbone=experts(out.expert_backbone),
            expert_clip=experts(out.expert_clip),
        )


def expert_shares(encoder: Encoder, out: ExpertEmbeddings) -> tuple[Tensor, ...]:
    """What every expert has of a part that all experts of a level have in common, so that their
    level has the whole of it: E x T x D per level.

    An encoder makes outputs estimates by factors f (:meth:`Encoder.as_estimates`), and a level is
    the mean of its E estimates. The smallest shares with that mean are E f / sum(f^2).

    Parameters
    ----------
    out : ExpertEmbeddings
        Any output of the encoder with the outputs of its experts.
    """
    if not out.expert_backbone:
        return ()
    ones = out.stack.map(lambda x: torch.ones_like(x[:1], dtype=torch.float32))
    return tuple(
        factors_ETD * len(factors_ETD) / factors_ETD.square().sum(0).clamp_min(1e-12)
        for (factors_ETD,) in encoder.as_estimates(ones).by_level
    )


def _principal_components(centred_NF: Tensor, out_RF: Tensor) -> None:
    """Write leading principal components, as many as there are up to R; the other rows stay.

    By the rows' Gram matrix, a block of columns at a time: patch tokens are 425 984 wide.
    """
    gram_NN = centred_NF.new_zeros(len(centred_NF), len(centred_NF), dtype=torch.float64)
    blocks = range(0, centred_NF.shape[1], BASIS_IMAGES)
    for first in blocks:
        block = centred_NF[:, first : first + BASIS_IMAGES].double()
        gram_NN += block @ block.T
    values_N, vectors_NN = torch.linalg.eigh(gram_NN)
    kept = min(len(out_RF), int((values_N > values_N[-1] * 1e-10).sum()))
    scaled_RN = (vectors_NN / values_N.clamp_min(1e-30).sqrt()).T.flip(0)[:kept]
    for first in blocks:
        block = centred_NF[:, first : first + BASIS_IMAGES].double()
        out_RF[:kept, first : first + BASIS_IMAGES] = (scaled_RN @ block).to(out_RF)


def choose_weights(
    ridge_NTD: Tensor,
    encoder_NTD: Tensor,
    truth_NTD: Tensor,
    through_prior: Callable[[Tensor], Tensor] | None,
) -> tuple[OutputWeights, dict[str, float]]:
    """Choose how much of encoder and prior is used, by the cosine of held-out images.

    Parameters
    ----------
    ridge_NTD : Tensor
        Predictions of ridge regression fitted without these images, standardised.
    encoder_NTD : Tensor
        The encoder's outputs.
    truth_NTD : Tensor
        Standardised embeddings.
    through_prior : Callable[[Tensor], Tensor] | None
        The prior; None without one.

    Returns
    -------
    tuple[OutputWeights, dict[str, float]]
        The choice, and the mean cosine of every choice (keys of :func:`grid_key`).
    """
    found: dict[OutputWeights, np.ndarray] = {}
    for encoder in ENCODER_WEIGHTS:
        mixed_NTD = ridge_NTD + encoder * (encoder_NTD - ridge_NTD)
        after_NTD = None if through_prior is None else through_prior(mixed_NTD)
        for prior in PRIOR_WEIGHTS if after_NTD is not None else (0.0,):
            out_NTD = mixed_NTD if after_NTD is None else mixed_NTD.lerp(after_NTD, prior)
            cosine_N = cosine_similarity(out_NTD.flatten(1).float(), truth_NTD.flatten(1))
            found[OutputWeights(encoder, prior)] = cosine_N.double().cpu().numpy()
    return best_weights(found), {
        grid_key(weights): round(float(cosine_N.mean()), 6) for weights, cosine_N in found.items()
    }


def best_weights(cosine: Mapping[OutputWeights, np.ndarray]) -> OutputWeights:
    """The weights with the highest mean, if they are better than ridge regression alone by more
    than `STANDARD_ERRORS` of the paired difference; else ridge regression alone.

    Parameters
    ----------
    cosine : Mapping[OutputWeights, np.ndarray]
        Cosines of the same images, or of the same folds, under all weights.
    """
    best = max(cosine, key=lambda weights: float(cosine[weights].mean()))
    gain_N = cosine[best] - cosine[RIDGE_ALONE]
    error = gain_N.std(ddof=1) / len(gain_N) ** 0.5 if len(gain_N) > 1 else np.inf
    return best if gain_N.mean() > STANDARD_ERRORS * error else RIDGE_ALONE


def all_weights() -> list[OutputWeights]:
    """Every choice that there is."""
    return [OutputWeights(e, p) for e in ENCODER_WEIGHTS for p in PRIOR_WEIGHTS]


def grid_key(weights: OutputWeights) -> str:
    """Name of the cosine under some weights in a run's metrics."""
    return f"validation/cosine_encoder_{weights.encoder:g}_prior_{weights.prior:g}"
