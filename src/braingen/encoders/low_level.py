"""MindEye2's low-level branch: from the trunk to blurry latents of the image.

B batch, H width of the trunk's output.
"""

from __future__ import annotations

from diffusers.models.autoencoders.vae import Decoder
from torch import Tensor, nn

GRID = 7
"""Side of the grid of features that is decoded (MindEye2)."""
CHANNELS = 64
"""Features per grid position (MindEye2)."""
CONVNEXT = 512
"""Width of the ConvNext features the auxiliary output is compared with (MindEye2)."""


class LowLevelBranch(nn.Module):
    """A 7 x 7 feature map, decoded to 4 x 28 x 28 latents and projected to ConvNext features.

    Parameters
    ----------
    width : int
        H.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, CHANNELS * GRID * GRID)
        self.dropout = nn.Dropout(0.3)
        self.norm = nn.GroupNorm(1, CHANNELS)
        self.decoder = Decoder(
            in_channels=CHANNELS,
            out_channels=4,
            up_block_types=("UpDecoderBlock2D",) * 3,
            block_out_channels=(32, 64, 128),
            layers_per_block=1,
        )
        self.auxiliary = nn.Sequential(
            nn.Conv2d(CHANNELS, CONVNEXT, 1, bias=False), nn.GroupNorm(1, CONVNEXT), nn.ReLU(),
            nn.Conv2d(CONVNEXT, CONVNEXT, 1, bias=False), nn.GroupNorm(1, CONVNEXT), nn.ReLU(),
            nn.Conv2d(CONVNEXT, CONVNEXT, 1),
        )  # fmt: skip

    def forward(self, x_BH: Tensor) -> tuple[Tensor, Tensor]:
        """Return latents (B, 4, 28, 28) and ConvNext features (B, 49, 512)."""
        map_BCYX = self.norm(self.dropout(self.linear(x_BH)).view(-1, CHANNELS, GRID, GRID))
        return self.decoder(map_BCYX), self.auxiliary(map_BCYX).flatten(2).mT
