"""Digests of files and texts, which identify cached results and runs."""

from __future__ import annotations

from collections.abc import Iterable
import hashlib
from pathlib import Path

import numpy as np


def digest_of_texts(texts: Iterable[Iterable[str]]) -> np.ndarray:
    """A 64-bit digest, never 0, of every group of texts."""
    digests = [
        int.from_bytes(hashlib.blake2b("\0".join(group).encode(), digest_size=8).digest(), "little")
        or 1
        for group in texts
    ]
    return np.array(digests, dtype=np.uint64)


def _of_card(path: Path) -> bool:
    return path.suffix == ".md" or path.name == "facts.json"


def fingerprint_of_files(folder: str | Path, sample: int = 1 << 20) -> str:
    """Return a key that changes with the weights: names, sizes and ``sample`` bytes of either end.

    A hub name is its own key. Model cards (``.md``, ``facts.json``) are ignored.
    """
    root = Path(folder)
    digest = hashlib.sha256(b"" if root.exists() else str(folder).encode())
    files = (
        [root]
        if root.is_file()
        else sorted(path for path in root.rglob("*") if path.is_file() and not _of_card(path))
    )
    for path in files:
        size = path.stat().st_size
        digest.update(f"{path.name}/{size}".encode())
        with path.open("rb") as file:
            digest.update(file.read(sample))
            file.seek(max(0, size - sample))
            digest.update(file.read(sample))
    return digest.hexdigest()[:16]
