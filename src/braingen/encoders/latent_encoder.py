"""Voxels to VAE latents: the coarse image that a reconstruction starts from.

MindEye2 decodes a blurry image in the same way, by a branch of its encoder
(:mod:`braingen.encoders.low_level`); here it is a model of its own, beside encoders of any kind.

B batch, V voxels, H shared width, F features per position, C latent channels, h w latent sides.
"""

from __future__ import annotations

from typing import Any

from diffusers import ModelMixin
from diffusers.configuration_utils import register_to_config
import numpy as np
import torch
from torch import Tensor, nn

from braingen.encoders.experts import make_trunk
from braingen.encoders.stored_model import ModelKind, StoredModel
from braingen.encoders.subject_layer import SubjectLayer, Subjects

LEAST_GRID = 7
"""Least side of the map of features from which latents are computed (MindEye2: 7)."""
AT_ONCE = 64
"""Images whose latents are read together for mean and spread."""


def grid_of(side: int) -> int:
    """Side of the first map of features: latents' side, halved while it stays large enough."""
    while side % 2 == 0 and side // 2 >= LEAST_GRID:
        side //= 2
    return side


# a pipeline finds out how a part is loaded by the ModelMixin in the part's module
class LatentEncoder(StoredModel, ModelMixin):
    """Predicts the VAE latents of the seen image, in units of their spread around their mean.

    Parameters
    ----------
    subjects : Subjects
        Subject number -> voxel count.
    channels, side : int
        C, and h = w.
    hidden_dim, n_blocks, features : int, optional
        H, residual blocks, F.
    dropout, voxel_dropout : float, optional
        Inside blocks, on voxels.
    """

    mean_Chw: Tensor
    spread: Tensor

    @register_to_config
    def __init__(
        self,
        subjects: Subjects,
        channels: int = 4,
        side: int = 64,
        hidden_dim: int = 1024,
        n_blocks: int = 2,
        features: int = 64,
        dropout: float = 0.3,
        voxel_dropout: float = 0.3,
    ) -> None:
        super().__init__()
        grid = grid_of(side)
        self.subject_layer = SubjectLayer(subjects, hidden_dim, voxel_dropout)
        self.trunk = make_trunk("residual", 1, hidden_dim, n_blocks, dropout)
        self.to_map = nn.Sequential(
            nn.Linear(hidden_dim, features * grid**2), nn.Unflatten(1, (features, grid, grid))
        )
        # convolutions on the small map, then sub-pixel upsampling (Shi et al. 2016): as good as
        # convolutions between upsamplings, in less time (docs/experiments/low_level.md)
        factor = side // grid
        self.decoder = nn.Sequential(
            nn.GroupNorm(1, features),
            nn.Conv2d(features, features, 3, padding=1),
            nn.GELU(),
            nn.Conv2d(features, features, 3, padding=1),
            nn.GELU(),
            nn.Conv2d(features, channels * factor**2, 3, padding=1),
            nn.PixelShuffle(factor),
        )
        self.register_buffer("mean_Chw", torch.zeros(channels, side, side))
        self.register_buffer("spread", torch.ones(()))

    def model_kind(self, stage: dict[str, Any]) -> ModelKind:
        """The low-level path."""
        return ModelKind("low-level path", type(self).__name__, dict(self.config.subjects), ())

    def set_scale(self, table_NChw: np.ndarray, rows_N: np.ndarray) -> None:
        """Set mean and spread from the latents of the training images, once, before training.

        Parameters
        ----------
        table_NChw : np.ndarray
            Latents of images, N x C x h x w; may be mapped from a file, a block is read at a time.
        rows_N : np.ndarray
            Rows of the training images.
        """
        starts = range(0, len(rows_N), AT_ONCE)
        blocks = [rows_N[start : start + AT_ONCE] for start in starts]
        shape = table_NChw.shape[1:]
        sum_Chw, squares = np.zeros(shape), 0.0
        for block in blocks:
            sum_Chw += table_NChw[block].sum(0, dtype=np.float64)
        mean_Chw = sum_Chw / len(rows_N)
        for block in blocks:
            squares += float(np.square(table_NChw[block] - mean_Chw).sum())
        self.mean_Chw.copy_(torch.from_numpy(mean_Chw))
        self.spread.fill_((squares / (len(rows_N) * mean_Chw.size - 1)) ** 0.5)

    def standardised(self, latents_BChw: Tensor) -> Tensor:
        """Latents in the units of the model."""
        return (latents_BChw - self.mean_Chw) / self.spread

    def forward(self, voxels_BV: Tensor, subject: int) -> Tensor:
        """Predict standardised latents, B x C x h x w."""
        x_BH = self.trunk(self.subject_layer(voxels_BV, subject)[None])[0]
        return self.decoder(self.to_map(x_BH))

    @torch.no_grad()
    def latents(self, voxels_BRV: Tensor, subject: int, present_BR: Tensor) -> Tensor:
        """Scaled latents of images from the mean response of their presentations.

        The mean response is decoded instead of the mean of decoded latents: it has less noise, and
        the latents come out sharper (docs/experiments/low_level.md).

        Parameters
        ----------
        present_BR : Tensor
            Which presentations there are.

        Returns
        -------
        Tensor
            B x C x h x w, as the U-Net and the VAE read them.
        """
        weight_BR1 = present_BR.to(voxels_BRV)[..., None]
        voxels_BV = (voxels_BRV.nan_to_num() * weight_BR1).sum(1) / weight_BR1.sum(1)
        return self.latents_of(voxels_BV, subject)

    @torch.no_grad()
    def latents_of(self, voxels_BV: Tensor, subject: int) -> Tensor:
        """Scaled latents from one response per image, B x C x h x w."""
        return self(voxels_BV, subject) * self.spread + self.mean_Chw
