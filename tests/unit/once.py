"""What is printed once per process, which every test is to see anew."""

from __future__ import annotations

import sys

ONCE = (
    ("braingen.pretrained.tiny", "_warn"),
    ("braingen.runtime.device", "_note_without_tensorboard"),
    ("braingen.runtime.precision", "warn_slow"),
)
"""(module, function); `test_structure.py` finds one that is missing here."""


def forget_notes() -> None:
    for module, function in ONCE:
        if module in sys.modules:
            getattr(sys.modules[module], function).cache_clear()
