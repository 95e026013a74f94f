"""Seeds for every purpose, derived from the run's seed."""

from __future__ import annotations

import hashlib


def hash_seed(seed: int, purpose: str, number: int) -> int:
    """Derive an independent seed for a purpose and a number."""
    return int.from_bytes(
        hashlib.sha256(f"{seed}/{purpose}/{number}".encode()).digest()[:7], "little"
    )
