"""An independent scene classifier: object, background, position and colour of an image.

The CLIP that conditions the diffusion model rates even coloured blobs as similar. The classifier is
trained independently of it, and its early and late features stand for AlexNet's and Inception's at
full size.
"""

from __future__ import annotations

from typing import NamedTuple

from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate


class ScenePrediction(NamedTuple):
    """Predictions for a batch of images."""

    object_BC: Tensor
    """Logits over object classes."""
    background_BC: Tensor
    colour_BC: Tensor
    position_BC: Tensor
    early_BF: Tensor
    """Flattened features of the first block."""
    late_BF: Tensor
    """Pooled features of the last block."""


class SceneClassifier(ModelMixin, ConfigMixin):
    """Four strided convolution blocks and four linear heads.

    Parameters
    ----------
    objects, backgrounds, colours, positions : int
        Numbers of classes.
    widths : tuple[int, ...], optional
        Channels of the blocks.
    side : int, optional
        Side to which images are resized, in pixels.
    """

    @register_to_config
    def __init__(
        self,
        objects: int,
        backgrounds: int,
        colours: int,
        positions: int = 3,
        widths: tuple[int, ...] = (24, 48, 96, 128),
        side: int = 64,
    ) -> None:
        super().__init__()
        ins = (3, *widths[:-1])
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(before, width, 3, padding=1), nn.GroupNorm(8, width), nn.GELU(),
                nn.Conv2d(width, width, 3, stride=2, padding=1), nn.GroupNorm(8, width), nn.GELU(),
            )
            for before, width in zip(ins, widths)
        )  # fmt: skip
        self.heads = nn.ModuleDict(
            {
                name: nn.Linear(widths[-1] if name != "position" else 16 * widths[-1], count)
                for name, count in (
                    ("object", objects),
                    ("background", backgrounds),
                    ("colour", colours),
                    ("position", positions),
                )
            }
        )

    def forward(self, images_B3HW: Tensor) -> ScenePrediction:
        """Predict images in [0, 1] of any size."""
        side = self.config.side
        x = interpolate(images_B3HW, size=(side, side), mode="bilinear", antialias=True) * 2 - 1
        features = []
        for block in self.blocks:
            x = block(x)
            features.append(x)
        pooled = x.mean((2, 3))
        return ScenePrediction(
            object_BC=self.heads["object"](pooled),
            background_BC=self.heads["background"](pooled),
            colour_BC=self.heads["colour"](pooled),
            position_BC=self.heads["position"](nn.functional.adaptive_avg_pool2d(x, 4).flatten(1)),
            early_BF=features[0].flatten(1),
            late_BF=pooled,
        )


@torch.inference_mode()
def predictions(
    classifier: SceneClassifier, images_N3HW: Tensor, batch: int = 64
) -> ScenePrediction:
    """Predict many images, a batch at a time."""
    parts = [classifier(part) for part in images_N3HW.split(batch)]
    return ScenePrediction(*(torch.cat(columns) for columns in zip(*parts)))
