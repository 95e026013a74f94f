"""What a check of the data finds."""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np

from braingen.data.trials import listed

_NAMED = 5


class Finding(NamedTuple):
    """One thing that was checked."""

    level: Literal["ok", "note", "warning", "error"]
    """An error stops training; a warning is printed; a note is about something optional."""
    subject: int | None
    """Subject it is about; None for what all subjects share."""
    what: str
    """One word for tables: root, trials, test, betas, masks, volumes, images, captions."""
    sentence: str
    """What was found and, where something is wrong, what was expected and what to do."""


def some(numbers: np.ndarray) -> str:
    """The first few of many numbers."""
    shown = listed(numbers[:_NAMED].tolist())
    return f"{shown}, ..." if len(numbers) > _NAMED else shown
