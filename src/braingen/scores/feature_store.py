"""Features of many pictures, computed a batch at a time and held on the disk when they are large.

N images, B of them at a time, F features. AlexNet(2) at 256 pixels has 184 512 features, 738 MB for 1000 pictures; they are written to a
file as they come and read back in blocks by `scores.identify`. Those of true pictures are kept between runs when a folder is given.
"""

from __future__ import annotations

from collections.abc import Callable
import os
from pathlib import Path
import tempfile
from weakref import WeakKeyDictionary

import numpy as np
import torch

from braingen.arrays import new_npy, read_npy
from braingen.errors import UserError
from braingen.files import can_be_written, disk_errors_as_sentences
from braingen.scores.features import Features
from braingen.scores.pairs import IN_MEMORY, Pictures
from braingen.scores.pixel import ERROR_SIDE, resize

_IN_MEMORY = 64_000_000
"""Bytes; features up to this size are not written to the disk."""

Progress = Callable[[str, int, int], None]
"""Called with what is being computed, pictures done, and pictures in all."""


_SCORED: WeakKeyDictionary[Pictures, dict[tuple[int, int], torch.Tensor]] = WeakKeyDictionary()
"""Batches of pictures as they are scored, kept for as long as the pictures where they are few."""


def as_scored(pictures: Pictures, part: slice) -> torch.Tensor:
    """Pictures of a slice at 256 pixels, to which the published evaluation brings every picture first.

    Every network asks for the same batches; those of small sets (`IN_MEMORY`) are made once, and are not to be changed.
    """
    if not isinstance(pictures, Pictures) or 4 * len(pictures) * 3 * ERROR_SIDE**2 > IN_MEMORY:
        return resize(torch.as_tensor(pictures[part]), ERROR_SIDE)
    batches = _SCORED.setdefault(pictures, {})
    start, stop, _ = part.indices(len(pictures))
    if (start, stop) not in batches:
        batches[start, stop] = resize(torch.as_tensor(pictures[part]), ERROR_SIDE)
    return batches[start, stop]


class FeatureStore:
    """Where features are put.

    Parameters
    ----------
    folder : kept between runs, one file per network, weights and pictures; without it, or where it cannot be written, a
        temporary folder that goes with this object
    batch : pictures that go through a network at once
    progress : told after every batch
    """

    def __init__(self, folder: Path | str | None = None, batch: int = 32, progress: Progress | None = None) -> None:
        self._temporary = tempfile.TemporaryDirectory(prefix="braingen-features-") if folder is None else None
        self.folder = Path(self._temporary.name if self._temporary else folder)  # type: ignore[arg-type]
        self.batch = batch
        self.progress = progress

    def __enter__(self) -> FeatureStore:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._temporary:
            self._temporary.cleanup()

    def features(self, network: Features, pictures: Pictures, keep: bool = False) -> np.ndarray:
        """N x F features, float32: an array when small, else a read-only memory map.

        Parameters
        ----------
        network : anything with ``name`` and ``features``; only one that also states its ``weights`` is found again by a later run
        keep : leave the file in the folder for later calls (and later runs, unless the folder is temporary)
        """
        keep = keep and getattr(network, "weights", None) is not None
        of = f"{getattr(network, 'weights', None)}-{pictures.digest}" if keep else f"now-{os.getpid()}-{id(pictures)}"
        name = f"{network.name}-{of}.npy"
        path = self.folder / name
        if keep and path.exists():
            try:
                kept = read_npy(path, "it is computed again")
                if kept.ndim == 2 and len(kept) == len(pictures) and kept.dtype == np.float32:
                    return kept
            except UserError:
                pass  # damaged: computed again
        if self._temporary is None and not can_be_written(self.folder):  # data folders are often read-only
            self._temporary = tempfile.TemporaryDirectory(prefix="braingen-features-")
        if self._temporary is not None:
            path = Path(self._temporary.name) / name
        with disk_errors_as_sentences(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            return self._computed(network, pictures, path, keep)

    def _computed(self, network: Features, pictures: Pictures, path: Path, keep: bool) -> np.ndarray:
        unfinished = path.with_name(f".{path.name}.{os.getpid()}")
        out_NF: np.ndarray | None = None
        for start in range(0, len(pictures), self.batch):
            part_BF = network.features(as_scored(pictures, slice(start, start + self.batch))).float().cpu().flatten(1).numpy()
            if out_NF is None:
                shape = (len(pictures), part_BF.shape[1])
                small = 4 * shape[0] * shape[1] <= _IN_MEMORY and not keep
                make = np.empty if small else lambda s, d: new_npy(unfinished, d, s)
                out_NF = make(shape, np.float32)
            out_NF[start : start + self.batch] = part_BF
            if self.progress is not None:
                self.progress(network.name, min(start + self.batch, len(pictures)), len(pictures))
        assert out_NF is not None  # Pictures are never empty
        if not isinstance(out_NF, np.memmap):
            return out_NF
        out_NF.flush()
        os.replace(unfinished, path)
        mapped = np.load(path, mmap_mode="r")
        if not keep:
            path.unlink()  # the map holds it as long as it is used
        return mapped
