"""Interpretability: which voxels feed which expert, when, for what (docs/interpret.md)."""

from braingen.runtime.extras import need

need("interpret", "braingen interpret")
