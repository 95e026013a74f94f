"""Looking inside: which voxels, through which expert, when, for what (docs/explain.md)."""

from braingen.runtime.extras import need

need("explain", "braingen explain")
