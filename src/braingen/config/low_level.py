"""Settings of the low-level path: voxels to VAE latents, the coarse image of a reconstruction."""

from __future__ import annotations

from braingen.config.values import NotNegative, Positive, Section, Share


class LowLevelConfig(Section):
    """The encoder of VAE latents (`braingen train low_level`, docs/low_level.md); `training` has
    its learning rate and batch size.
    """

    num_epochs: Positive = 30
    """Passes over the training trials."""
    hidden_dim: Positive = 1024
    """Width after the subject layer."""
    n_blocks: NotNegative = 2
    """Residual blocks after it."""
    features: Positive = 64
    """Features per position of the map from which latents are computed (MindEye2: 64)."""
    dropout: Share = 0.3
    """Dropout inside blocks."""
    voxel_dropout: Share = 0.3
    """Dropout on voxels."""
    resolution: NotNegative = 0
    """Side of the images whose latents are predicted, in pixels; 0 for the U-Net's own size."""
