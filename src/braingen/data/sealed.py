"""Sealed test sets: responses that are scored at the end and never trained or chosen on.

A sealed set is a data folder of its own, `<data>/test_sets/<name>`, with test trials only. Encoders
are trained on `<data>`; what scores need of training trials is read there.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal, get_args

from braingen.data.nsd import Layout
from braingen.errors import UserError
from braingen.text_files import read_json

SealedSet = Literal["nsdsynthetic", "nsdimagery_vision", "nsdimagery_imagery"]
SEALED_SETS: tuple[SealedSet, ...] = get_args(SealedSet)
_FOLDER = "test_sets"


def sealed_root(root: Path, name: str) -> Path:
    """Data folder of a sealed set of a data folder."""
    return root / _FOLDER / name


def is_sealed(layout: Layout) -> bool:
    """Whether a data folder is a sealed set, by its manifest."""
    path = layout.prepared()
    return path.exists() and bool(read_json(path).get("sealed", False))


def training_root(root: Path) -> Path:
    """Data folder that encoders are trained on: that of a sealed set, or the folder itself."""
    return root.parents[1] if is_sealed(Layout.of(root)) else root


def refuse_sealed(layout: Layout) -> None:
    """Refuse training trials of a sealed set.

    Raises
    ------
    UserError
        When the data folder is one.
    """
    if is_sealed(layout):
        raise UserError(
            f"{layout.root} is a sealed test set: it is scored at the end, and nothing is trained "
            "or chosen on it. Train on another data folder, for instance --data_path "
            f"{training_root(layout.root)}."
        )
