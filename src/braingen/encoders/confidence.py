"""How close a decoded embedding is to the true one: predicted for every image, and calibrated.

The angle between the two is predicted from what is known without the truth, by a regression on
held-out training images; how far true angles exceed the predicted ones there gives the angle that
a share of images stays below (split conformal prediction: Lei et al. 2018, JASA 113:1094). Both
depend on how many presentations are averaged, and are there for one to `MOST` of them.

B batch, R presentations, T tokens, D CLIP width, N held-out images, F features, Q levels.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from braingen.runtime.errors import UserError

MOST = 3
"""Presentations up to which there is a calibration."""
FEWEST = 20
"""Held-out images below which there is none."""
LEVELS = torch.arange(1, 100) / 100
FOLDS = 10
"""For excesses of images that the regression has not seen."""
PENALTY = 1.0
"""Of the regression, on standardised features."""
SMALL = 1e-4


class Closeness(NamedTuple):
    """Cosine of decoded and true embedding, around the training mean; NaN without calibration."""

    expected_B: Tensor
    """Half of the images are closer."""
    least_B: Tensor
    """The share of images that was asked for is closer."""


class ReadFeatures(NamedTuple):
    """What an image's decoding says about its error."""

    embedding_BTD: Tensor
    """Decoded embedding, standardised, by one call of the prior."""
    features_BF: Tensor
    """Logarithms of the length of the encoder's output, of how far the prior moves it, and of its
    standard error over presentations.
    """


def read_features(
    backbone_BRTD: Tensor, present_BR: Tensor, predicted: Callable[[Tensor], Tensor]
) -> ReadFeatures:
    """Average presentations, decode, and describe.

    Parameters
    ----------
    backbone_BRTD : Tensor
        Outputs of the encoder.
    present_BR : Tensor
        Which presentations there are.
    predicted : Callable[[Tensor], Tensor]
        :meth:`braingen.encoders.embedding_decoder.EmbeddingDecoder.predicted`.
    """
    rows_BRF, weight_BR1 = backbone_BRTD.flatten(2).float(), present_BR[..., None].float()
    times_B1 = weight_BR1.sum(1)
    mean_BF = (rows_BRF * weight_BR1).sum(1) / times_B1
    embedding_BTD = predicted(mean_BF.view_as(backbone_BRTD[:, 0])).float()
    variance_BF = ((rows_BRF - mean_BF[:, None]).square() * weight_BR1).sum(1) / (
        times_B1 - 1
    ).clamp_min(1)
    error_B = (variance_BF / times_B1).mean(1).sqrt()
    moved_B = (embedding_BTD.flatten(1) - mean_BF).norm(dim=1)
    features_BF = torch.stack([mean_BF.norm(dim=1), moved_B, error_B], 1)
    return ReadFeatures(embedding_BTD, features_BF.clamp_min(SMALL).log())


def angle(one_BTD: Tensor, other_BTD: Tensor) -> Tensor:
    """Angles between embeddings, B, in radians."""
    cosine_B = F.cosine_similarity(one_BTD.flatten(1).float(), other_BTD.flatten(1).float())
    return cosine_B.clamp(-1, 1).arccos()


class Confidence(nn.Module):
    """The regression and the quantiles of its errors, per number of presentations."""

    weight_RF: Tensor
    intercept_R: Tensor
    excess_RQ: Tensor
    images_R: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("weight_RF", torch.zeros(MOST, 3))
        self.register_buffer("intercept_R", torch.zeros(MOST))
        self.register_buffer("excess_RQ", torch.zeros(MOST, len(LEVELS)))
        self.register_buffer("images_R", torch.zeros(MOST))

    @torch.no_grad()
    def fit(self, times: int, features_NF: Tensor, angle_N: Tensor) -> None:
        """Calibrate for so many presentations; with fewer than `FEWEST` images there is none.

        Parameters
        ----------
        angle_N : Tensor
            Between decoded and true embeddings of images that were not trained on.
        """
        row = times - 1
        self.images_R[row] = len(angle_N)
        if len(angle_N) < FEWEST:
            return
        log_N, features_NF = angle_N.double().clamp_min(SMALL).log(), features_NF.double()
        fold_N = torch.arange(len(log_N), device=log_N.device) % FOLDS
        excess_N = torch.empty_like(log_N)
        for fold in range(FOLDS):
            out = fold_N == fold
            weight_F, intercept = _regression(features_NF[~out], log_N[~out])
            excess_N[out] = log_N[out] - features_NF[out] @ weight_F - intercept
        weight_F, intercept = _regression(features_NF, log_N)
        self.weight_RF[row], self.intercept_R[row] = weight_F.float(), intercept.float()
        rank_Q = (LEVELS.double() * (len(log_N) + 1)).ceil().long().clamp(max=len(log_N)) - 1
        self.excess_RQ[row] = excess_N.sort().values[rank_Q.to(excess_N.device)].float()

    def forward(self, features_BF: Tensor, times_B: Tensor, level: float = 0.9) -> Closeness:
        """How close embeddings are.

        Parameters
        ----------
        times_B : Tensor
            Presentations of every image.
        level : float, optional
            Share of images whose cosine is above ``least_B``: 0.01 to 0.99.

        Raises
        ------
        UserError
            For another level.
        """
        if not 0.01 <= level <= 0.99:
            raise UserError(f"level={level:g} is not possible: take one from 0.01 to 0.99.")
        row_B = times_B.clamp(1, MOST).long() - 1
        known_B = (times_B <= MOST) & (self.images_R[row_B] >= FEWEST)
        log_B = (features_BF * self.weight_RF[row_B]).sum(1) + self.intercept_R[row_B]

        def cosine(share: float) -> Tensor:
            found_B = log_B + self.excess_RQ[row_B, round(share * 100) - 1]
            return torch.where(known_B, found_B.exp().clamp(max=torch.pi).cos(), torch.nan)

        return Closeness(cosine(0.5), cosine(level))


def _regression(features_NF: Tensor, value_N: Tensor) -> tuple[Tensor, Tensor]:
    """Ridge regression on standardised features: weights for the features as they are."""
    mean_F, spread_F = features_NF.mean(0), features_NF.std(0).clamp_min(SMALL)
    x_NF = (features_NF - mean_F) / spread_F
    gram_FF = x_NF.T @ x_NF + PENALTY * torch.eye(x_NF.shape[1]).to(x_NF)
    weight_F = torch.linalg.solve(gram_FF, x_NF.T @ (value_N - value_N.mean())) / spread_F
    return weight_F, value_N.mean() - mean_F @ weight_F
