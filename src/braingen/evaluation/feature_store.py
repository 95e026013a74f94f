"""Compute network features of many images in batches, and store large ones on disk.

N images, B of them at a time, F features. AlexNet(2) at 256 pixels has 184 512 features, 738 MB for
1000 images; they are written to a file batch by batch and read back in blocks by
`braingen.evaluation.identification`. With a folder, features of true images are kept between runs.
"""

from __future__ import annotations

from collections.abc import Callable
import os
from pathlib import Path
import tempfile
from weakref import WeakKeyDictionary

import numpy as np
import torch

from braingen.evaluation.features import Features
from braingen.evaluation.image_pairs import IN_MEMORY, ImageSource
from braingen.evaluation.pixel import ERROR_SIDE, resize
from braingen.runtime.arrays import new_npy, read_npy
from braingen.runtime.errors import UserError
from braingen.runtime.files import can_be_written, disk_errors_as_sentences

_IN_MEMORY = 64_000_000
"""Bytes; features up to this size are not written to the disk."""

Progress = Callable[[str, int, int], None]
"""Called with what is being computed, images done, and images in total."""


_SCORED: WeakKeyDictionary[ImageSource, dict[tuple[int, int], torch.Tensor]] = WeakKeyDictionary()
"""Resized batches of small image sets, cached as long as the set lives."""


def as_scored(images: ImageSource, part: slice) -> torch.Tensor:
    """Resize a slice of images to 256 pixels, as the published evaluation does first.

    Batches of small sets (`IN_MEMORY`) are cached, since every network uses the same ones; do not
    change them in place.
    """
    if not isinstance(images, ImageSource) or 4 * len(images) * 3 * ERROR_SIDE**2 > IN_MEMORY:
        return resize(torch.as_tensor(images[part]), ERROR_SIDE)
    batches = _SCORED.setdefault(images, {})
    start, stop, _ = part.indices(len(images))
    if (start, stop) not in batches:
        batches[start, stop] = resize(torch.as_tensor(images[part]), ERROR_SIDE)
    return batches[start, stop]


class FeatureStore:
    """Computes and stores features.

    Parameters
    ----------
    folder : Path | str | None, optional
        Where features are kept between runs, one file per network, weights and images. By default,
        or where it cannot be written, a temporary folder that is removed with this object.
    batch : int, optional
        Images per forward pass.
    progress : Progress | None, optional
        Called after every batch.
    """

    def __init__(
        self, folder: Path | str | None = None, batch: int = 32, progress: Progress | None = None
    ) -> None:
        self._temporary = (
            tempfile.TemporaryDirectory(prefix="braingen-features-") if folder is None else None
        )
        self.folder = Path(self._temporary.name if self._temporary else folder)  # type: ignore[arg-type]
        self.batch = batch
        self.progress = progress

    def __enter__(self) -> FeatureStore:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._temporary:
            self._temporary.cleanup()

    def features(self, network: Features, images: ImageSource, keep: bool = False) -> np.ndarray:
        """N x F features, float32: an array when small, else a read-only memory map.

        Parameters
        ----------
        network : Features
            Anything with ``name`` and ``features``; only one that also states its ``weights`` is
            found again by a later run.
        keep : bool, optional
            Leave the file in the folder for later calls (and later runs, unless the folder is
            temporary).
        """
        keep = keep and getattr(network, "weights", None) is not None
        of = (
            f"{getattr(network, 'weights', None)}-{images.digest}"
            if keep
            else f"now-{os.getpid()}-{id(images)}"
        )
        name = f"{network.name}-{of}.npy"
        path = self.folder / name
        if keep and path.exists():
            try:
                kept = read_npy(path, "it is computed again")
                if kept.ndim == 2 and len(kept) == len(images) and kept.dtype == np.float32:
                    return kept
            except UserError:
                pass  # damaged: computed again
        if self._temporary is None and not can_be_written(
            self.folder
        ):  # data folders are often read-only
            self._temporary = tempfile.TemporaryDirectory(prefix="braingen-features-")
        if self._temporary is not None:
            path = Path(self._temporary.name) / name
        with disk_errors_as_sentences(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            return self._computed(network, images, path, keep)

    def _computed(
        self, network: Features, images: ImageSource, path: Path, keep: bool
    ) -> np.ndarray:
        unfinished = path.with_name(f".{path.name}.{os.getpid()}")
        out_NF: np.ndarray | None = None
        for start in range(0, len(images), self.batch):
            part_BF = (
                network.features(as_scored(images, slice(start, start + self.batch)))
                .float()
                .cpu()
                .flatten(1)
                .numpy()
            )
            if out_NF is None:
                shape = (len(images), part_BF.shape[1])
                small = 4 * shape[0] * shape[1] <= _IN_MEMORY and not keep
                make = np.empty if small else lambda s, d: new_npy(unfinished, d, s)
                out_NF = make(shape, np.float32)
            out_NF[start : start + self.batch] = part_BF
            if self.progress is not None:
                self.progress(network.name, min(start + self.batch, len(images)), len(images))
        assert out_NF is not None  # Images are never empty
        if not isinstance(out_NF, np.memmap):
            return out_NF
        out_NF.flush()
        os.replace(unfinished, path)
        mapped = np.load(path, mmap_mode="r")
        if not keep:
            path.unlink()  # the map holds it as long as it is used
        return mapped
