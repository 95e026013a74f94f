"""What `prepare` found about the reliability of a subject's responses, read back.

V voxels.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from braingen.data.volumes import read_regions
from braingen.runtime.data_layout import Layout
from braingen.runtime.errors import UserError, as_sentence
from braingen.runtime.text_files import read_json, read_text

TABLE = "reliability.tsv"
_AGAIN = "write it again with `braingen prepare`"


class KnownReliability(NamedTuple):
    """Reliability of a subject's responses."""

    facts: dict[str, Any]
    """Medians and means of prepared.json; empty where fewer than four images repeat."""
    split_half_V: np.ndarray
    noise_ceiling_V: np.ndarray
    """Percent."""
    regions: dict[str, np.ndarray]
    """(V,) bool by name of region."""
    label: str
    """Label of the subject among the scans; empty where it has none."""


def load_reliability(layout: Layout, subject: int) -> KnownReliability | None:
    """Reliability of a subject; None for a folder that `prepare` did not write.

    Raises
    ------
    UserError
        When a file is damaged.
    """
    if not layout.prepared().exists():
        return None
    manifest = read_json(layout.prepared(), _AGAIN)
    entry = manifest.get("subjects", {}).get(str(subject), {}) if isinstance(manifest, dict) else {}
    if "reliability" not in entry:
        return None  # prepared by an earlier version
    label = _label(layout, subject)
    facts, path = entry["reliability"], layout.volumes(subject) / TABLE
    if not facts or not path.exists():
        return KnownReliability({}, np.zeros(0), np.zeros(0), {}, label)
    with as_sentence(f"{path} is not a table of voxel, split_half, noise_ceiling_percent", _AGAIN):
        rows = [line.split("\t") for line in read_text(path, _AGAIN).splitlines()[1:]]
        values_V3 = np.array(rows, dtype=np.float64).reshape(-1, 3)
    try:
        regions = read_regions(layout, subject)
    except UserError:
        regions = {}
    fitting = {name: row for name, row in regions.items() if len(row) == len(values_V3)}
    return KnownReliability(facts, values_V3[:, 1], values_V3[:, 2], fitting, label)


def _label(layout: Layout, subject: int) -> str:
    path = layout.root / "subjects.tsv"
    if not path.exists():
        return ""
    rows = [line.split("\t") for line in read_text(path, _AGAIN).splitlines()[1:]]
    return next((row[1] for row in rows if len(row) == 2 and row[0] == str(subject)), "")
