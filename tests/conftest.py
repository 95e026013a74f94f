"""Tests import braingen before diffusers and transformers: on CPU-only machines it prepares
torchvision for them.
"""

from __future__ import annotations

import braingen  # noqa: F401
