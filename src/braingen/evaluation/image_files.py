"""Load reconstructions: a folder of PNGs, or an array in .pt, .npy, .npz, HDF5 or safetensors.

N images, S x S pixels. A file is opened, not loaded, where its format allows;
`braingen.evaluation.image_pairs` reads it one image at a time.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
import re
from typing import Any, NamedTuple

import numpy as np

from braingen.runtime.arrays import read_npy, read_npz, whole_numbers
from braingen.runtime.errors import UserError, reason
from braingen.runtime.files import refuse_stand_in

IMAGE_KEYS = ("images", "recons", "all_recons", "all_blurryrecons", "all_images", "reconstructions")
"""Names of the image array in a file with several arrays."""
ID_KEYS = ("ids", "image_ids", "image_id", "image", "all_image_ids")
SUFFIXES = (".pt", ".pth", ".npy", ".npz", ".h5", ".hdf5", ".safetensors")


class LoadedImages(NamedTuple):
    """Images with their ids, as `braingen.evaluation.image_pairs.match` takes them."""

    images: Any
    """N x 3 x S x S, sliceable."""
    image_N: np.ndarray


class _PngFolder:
    """Images of a folder, read on access."""

    def __init__(self, paths: list[Path]) -> None:
        self._paths = paths

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, row: int) -> np.ndarray:
        from PIL import Image

        try:
            with Image.open(self._paths[row]) as image:
                return np.asarray(image.convert("RGB")).transpose(2, 0, 1)
        except OSError as error:
            raise UserError(
                f"{self._paths[row]} cannot be read as an image ({error}); make it again."
            ) from error


class _ChannelsLast:
    """View of N x S x S x 3 images as N x 3 x S x S."""

    def __init__(self, source: Any) -> None:
        self._source = source

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, row: int) -> np.ndarray:
        return np.moveaxis(np.asarray(self._source[row]), -1, 0)


def load_images(path: Path | str, image_N: np.ndarray | None = None) -> LoadedImages:
    """Open a set of reconstructions.

    Parameters
    ----------
    path : Path | str
        A folder of PNGs named by image id (``000123.png``, ``image_123.png``: the number in the
        name), or a file with an array of images, N x 3 x S x S or N x S x S x 3, and their ids: in
        the file, or in ``<name>_ids.npy`` beside it.
    image_N : np.ndarray | None, optional
        Image ids in the order of the images, for files without ids such as MindEye2's
        ``*_all_recons.pt``, whose order is that of the test images by ascending id.

    Raises
    ------
    UserError
        When nothing is there, two PNGs name the same image, a file holds no images, or their ids
        are not known.
    """
    path = Path(path)
    if path.is_dir():
        return _folder(path)
    if not path.is_file():
        raise UserError(
            f"{path} does not exist; name a folder of PNGs or a file ending in"
            f" {', '.join(SUFFIXES)}."
        )
    if path.suffix not in SUFFIXES:
        raise UserError(
            f"{path.name} ends in {path.suffix!r}; allowed are a folder of PNGs and files ending in"
            f" {', '.join(SUFFIXES)}."
        )
    content = _open(path)
    arrays = dict(content) if isinstance(content, Mapping) else {"images": content}
    images = _first(arrays, IMAGE_KEYS)
    if images is None or np.ndim(images) != 4:
        held = ", ".join(f"{name} {tuple(np.shape(value))}" for name, value in arrays.items())
        raise UserError(
            f"{path} holds no images (N x 3 x S x S under one of {', '.join(IMAGE_KEYS)}); it"
            f" holds {held or 'nothing'}."
        )
    if np.shape(images)[1] != 3 and np.shape(images)[3] == 3:
        images = _ChannelsLast(images)
    beside = path.with_name(f"{path.stem}_ids.npy")
    ids = image_N if image_N is not None else _first(arrays, ID_KEYS)
    if ids is None and beside.exists():
        ids = read_npy(beside, "write the image ids as integers")
    if ids is None:
        raise UserError(
            f"{path} holds {len(images)} images without image ids; write the ids of the images"
            f" into {beside}."
        )
    return LoadedImages(
        images,
        whole_numbers(ids, beside if beside.exists() else path, "write the image ids as integers"),
    )


def _first(arrays: Mapping[str, Any], names: tuple[str, ...]) -> Any:
    return next((arrays[name] for name in names if name in arrays), None)


def _folder(path: Path) -> LoadedImages:
    paths = sorted(file for file in path.iterdir() if file.suffix.lower() == ".png")
    if not paths:
        raise UserError(f"{path} holds no PNGs; they are to be named by image id, e.g. 000123.png.")
    numbers = [re.findall(r"\d+", file.stem) for file in paths]
    unnamed = [file.name for file, found in zip(paths, numbers) if len(found) != 1]
    if unnamed:
        raise UserError(
            f"{len(unnamed)} PNGs in {path} are not named by one image id, e.g. {unnamed[0]};"
            " allowed is e.g. 000123.png."
        )
    ids = np.array([int(found[0]) for found in numbers])
    seen, times = np.unique(ids, return_counts=True)
    if (times > 1).any():
        twice = [file.name for file, i in zip(paths, ids) if i == seen[times > 1][0]]
        raise UserError(
            f"{path} holds image {seen[times > 1][0]} more than once ({', '.join(twice)}); keep"
            " one."
        )
    return LoadedImages(_PngFolder(paths), ids)


def _open(path: Path) -> Any:
    """Open the arrays of a file; large ones are mapped where the format allows it."""
    again = "write the images again"
    if path.suffix in (".pt", ".pth"):
        from braingen.runtime.weights import read_entries

        content = read_entries(path, again)
        if isinstance(content, Mapping):
            return {str(name): value for name, value in content.items() if hasattr(value, "shape")}
        return content
    if path.suffix == ".npy":
        return read_npy(path, again)
    if path.suffix == ".npz":
        return read_npz(path, again)
    refuse_stand_in(path, again)
    try:
        if path.suffix == ".safetensors":
            from safetensors.numpy import load_file

            return load_file(path)
        import h5py

        return {
            name: value
            for name, value in h5py.File(path, "r").items()
            if isinstance(value, h5py.Dataset)
        }
    except Exception as error:  # every decoder of files raises its own exceptions
        raise UserError(
            f"{path} cannot be read as {path.suffix} ({type(error).__name__}: {reason(error)})."
        ) from error
