"""Seeds for every purpose, derived from the seed of a run."""

from __future__ import annotations

import hashlib


def hash_seed(seed: int, purpose: str, number: int) -> int:
    """A seed for one purpose and one number, unrelated to its neighbours."""
    return int.from_bytes(
        hashlib.sha256(f"{seed}/{purpose}/{number}".encode()).digest()[:7], "little"
    )
