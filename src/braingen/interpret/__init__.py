"""Interpretability: which voxels feed which expert, when, for what (docs/explain.md)."""

from braingen.runtime.extras import need

need("explain", "braingen explain")
