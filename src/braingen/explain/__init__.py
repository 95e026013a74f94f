"""Looking inside: which voxels, through which expert, when, for what (docs/explain.md)."""
