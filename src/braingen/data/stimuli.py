"""The pictures: rows of the image file, in any order, as float32 in [0, 1].

A simulated folder of the hard world has features of its scenes in the place of pictures.
"""

from __future__ import annotations

from functools import cached_property
import hashlib
from pathlib import Path

import numpy as np

from braingen.data import nsd
from braingen.data.hdf5 import HDF5Rows
from braingen.runtime.data_layout import Layout
from braingen.runtime.errors import UserError
from braingen.runtime.files import UNREADABLE_ARRAY, identity, replaced_file
from braingen.runtime.text_files import read_json


class Stimuli:
    """The images (N, 3, height, width) a data folder holds, by image id.

    Parameters
    ----------
    layout : Layout
        The data folder.

    Raises
    ------
    UserError
        When the image file is missing, damaged or of another shape.
    """

    def __init__(self, layout: Layout) -> None:
        self.has_pictures: bool = layout.images().exists() or not layout.features().exists()
        """Whether there are pictures; else there are features of simulated scenes."""
        self.rows = (
            HDF5Rows(layout.images(), nsd.IMAGES_DATASET, nsd.GET_IT)
            if self.has_pictures
            else HDF5Rows(layout.features(), nsd.EMBEDDING_DATASET, nsd.WRITE_IT)
        )
        self.path: Path = self.rows.path
        shape = self.rows.shape
        if self.has_pictures and (len(shape) != 4 or shape[1] != 3 or 0 in shape):
            raise UserError(
                f"{self.path}: `images` has shape {shape}, (images, 3, height, width) was expected;"
                f" {nsd.GET_IT}."
            )
        if self.rows.dtype.kind != "f":
            raise UserError(
                f"{self.path}: `images` is {self.rows.dtype}, floating point in [0, 1] was"
                f" expected; {nsd.GET_IT}."
            )
        self.simulated: bool = bool(self.rows.attributes.get(nsd.SIMULATED_ATTRIBUTE, False))
        """Whether these are scenes written by `braingen simulate`."""
        self._manifest = layout.prepared()
        self._digests_path = layout.cache() / "image_digests.npz"
        self._known: np.ndarray | None = None

    def __len__(self) -> int:
        """Number of images; ids run from 0 to this number less 1."""
        return self.rows.shape[0]

    @cached_property
    def data_name(self) -> str:
        """What tables call the data: simulated data, own scans, or NSD, as the folder says of
        itself; NSD where it says nothing.

        Raises
        ------
        UserError
            When the manifest of `braingen prepare` is damaged.
        """
        if self.simulated:
            return "simulated data"
        if not self._manifest.exists():
            return "NSD"
        try:
            return str(read_json(self._manifest).get("data", "NSD"))
        except (ValueError, AttributeError) as error:
            raise UserError(
                f"{self._manifest} is not a manifest of `braingen prepare`; {nsd.WRITE_IT}."
            ) from error

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels.

        Raises
        ------
        UserError
            When there are no pictures.
        """
        self._refuse_features()
        return self.rows.shape[2], self.rows.shape[3]

    def images(self, ids: np.ndarray) -> np.ndarray:
        """Pictures of the given ids (B, 3, height, width), float32 in [0, 1], in the given order;
        duplicates are allowed.

        Raises
        ------
        UserError
            When an id is outside the file, a picture has values that are not in [0, 1], or there
            are no pictures.
        """
        self._refuse_features()
        ids = np.asarray(ids, dtype=np.int64).ravel()
        return self._checked(ids, self.rows.take(ids).astype(np.float32, copy=False))

    def features(self, band: str, ids: np.ndarray) -> np.ndarray:
        """Features of simulated scenes without pictures (B, width), float32.

        Parameters
        ----------
        band : str
            ``embedding``, in the place of CLIP's image embedding, or a band of encoding models.

        Raises
        ------
        UserError
            When the folder has pictures, or no such features.
        """
        if self.has_pictures:
            raise UserError(f"{self.path} holds pictures, and no features of simulated scenes.")
        rows = (
            self.rows if band == nsd.EMBEDDING_DATASET else HDF5Rows(self.path, band, nsd.WRITE_IT)
        )
        return rows.take(ids).astype(np.float32, copy=False)

    def _refuse_features(self) -> None:
        if not self.has_pictures:
            raise UserError(
                f"{self.path} holds features of simulated scenes and no pictures"
                " (simulation.world=hard): encoders of images and encoding models can be trained"
                " and scored on it; whatever draws or shows pictures needs data with pictures,"
                " for instance --config simulated."
            )

    def _checked(self, ids: np.ndarray, pictures: np.ndarray) -> np.ndarray:
        if not len(pictures):
            return pictures
        low, high = pictures.min(axis=(1, 2, 3)), pictures.max(axis=(1, 2, 3))
        wrong = ~((low >= 0) & (high <= 1))  # NaN fails both
        if wrong.any():
            k = int(np.flatnonzero(wrong)[0])
            raise UserError(
                f"{self.path}: image {ids[k]} has values from {low[k]:g} to {high[k]:g}, [0, 1] was"
                f" expected; {nsd.GET_IT}."
            )
        return pictures

    def digests(self, ids: np.ndarray) -> np.ndarray:
        """A 64-bit digest of the stored bytes of every given image (B,), uint64, never 0.

        Digests are kept beside the data, by file size and time, so that an image is hashed once. A
        changed image, even under the same id, has another digest: what was computed from it is then
        known to be stale.
        """
        ids = self.rows.check(ids)
        key = identity(self.path)
        known = self._known_digests(key)
        new = np.unique(ids[known[ids] == 0])
        for start in range(0, len(new), 256):
            part = new[start : start + 256]
            for image, picture in zip(part, self.rows.take(part)):
                digest = hashlib.blake2b(picture.tobytes(), digest_size=8).digest()
                known[image] = int.from_bytes(digest, "little") or 1
        if len(new):
            try:
                with replaced_file(self._digests_path) as handle:
                    np.savez(handle, key=np.array(key), digests=known)
            except (UserError, OSError):
                pass  # a read-only data folder: hashed again by the next process
        return known[ids]

    def _known_digests(self, key: str) -> np.ndarray:
        """Digests of all images (N,), 0 where not hashed yet."""
        if self._known is None:
            self._known = np.zeros(len(self), dtype=np.uint64)
            try:
                with np.load(self._digests_path, allow_pickle=False) as stored:
                    if str(stored["key"]) == key:
                        known = stored["digests"]
                        if known.shape == self._known.shape and known.dtype == np.uint64:
                            self._known = known
            except UNREADABLE_ARRAY:
                pass  # nothing hashed yet, or another file since
        return self._known
