"""A training step as both training stages know it: its losses, and seeds of what chance decides in it."""

from __future__ import annotations

import hashlib
from typing import NamedTuple

import torch
from torch import Tensor


class StepLosses(NamedTuple):
    """Terms of the objective, weighted, and their sum."""

    total: Tensor
    terms: dict[str, Tensor]

    @classmethod
    def of(cls, terms: dict[str, Tensor]) -> StepLosses:
        """The losses of some weighted terms."""
        return cls(torch.stack(list(terms.values())).sum(), terms)

    def add_to(self, sums: dict[str, float]) -> None:
        """Add every term to the sum of its name."""
        for name, term in self.terms.items():
            sums[name] = sums.get(name, 0.0) + term.item()


def hash_seed(seed: int, purpose: str, number: int) -> int:
    """A seed for one purpose and one number, unrelated to its neighbours."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{purpose}/{number}".encode()).digest()[:7], "little")
