"""Every setting of the project: one typed, frozen tree, with the field's own names.

A run is configured by a YAML file of this shape plus overrides (``encoder.hidden_dim=512`` or
``--hidden_dim 512``). The line below a field says what it is, in which unit, and where its default
comes from. Sizes of backbones are never here: they are read from the loaded models.
"""

from __future__ import annotations

from braingen.config.load import load_config, with_settings
from braingen.config.tree import Config

__all__ = ["Config", "load_config", "with_settings"]
