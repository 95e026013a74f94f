"""The pictures that events name: files, or rows of an array; and what makes two of them the same
picture.

::

    pic01.png            a file in stimuli/, in the folder that prepare.stimuli names, or below the
                         scans
    pic01                the same, where one file of that name has an ending
    stimuli.hdf5#12      row 12 (from 0) of an array of pictures, .hdf5 or .npy
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
import hashlib
from pathlib import Path
from typing import NamedTuple

import h5py
import numpy as np
from PIL import Image, ImageColor

from braingen.data.ingest.forms.matlab import written_by_matlab
from braingen.data.ingest.names import GUIDE
from braingen.data.ingest.near_names import NearNames, is_of_another_machine
from braingen.data.pictures import fit_picture
from braingen.runtime.errors import UserError, as_sentence
from braingen.runtime.files import identity, refuse_stand_in
from braingen.runtime.untrusted import path_below

ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".gif", ".webp", ".ppm", ".pgm")
_ORIENTATION = 0x0112  # EXIF's tag
_ARRAYS = (".hdf5", ".h5", ".npy")
_BLOCK_BYTES = 2**26


class ShownStimulus(NamedTuple):
    """Where a picture is."""

    name: str
    """As the events name it."""
    path: Path
    row: int | None = None
    """Of an array; None for a file."""

    @property
    def where(self) -> tuple[Path, int | None]:
        """Its file, links followed, and its row: equal for two names of one picture."""
        return self.path.resolve(), self.row

    @property
    def stamp(self) -> str:
        """Size and time of its file: changes when the picture may have changed."""
        return identity(self.path)


class LoadedStimulus(NamedTuple):
    """A picture as it is kept."""

    picture_HW3: np.ndarray
    """uint8."""
    kind: str
    """'' for the usual, else what was done or left: 16-bit, transparent, several frames, turned,
    other colours."""


class OwnStimuli:
    """The pictures of a folder of scans.

    Parameters
    ----------
    root : Path
        Folder of the scans.
    folder : Path | None
        Where pictures are; None for root/stimuli.
    ground : str
        Colour that transparent pictures are laid on.
    """

    def __init__(self, root: Path, folder: Path | None, ground: str) -> None:
        self.root, self.folder = root, folder
        self.places = [folder] if folder is not None else [root / "stimuli", root]
        if folder is not None and not folder.is_dir():
            raise UserError(
                f"prepare.stimuli = {folder} is no folder; name the one that holds the pictures."
            )
        try:
            self.ground = ImageColor.getrgb(ground)[:3]
        except ValueError as error:
            raise UserError(
                f"prepare.ground = {ground!r} is no colour; give a name (grey) or #rrggbb."
            ) from error
        self.ground_name = ground
        self._names: NearNames | None = None
        self.other_names: dict[str, str] = {}
        """Names in the events -> names of the files, where they are written differently."""

    def names(self) -> list[str]:
        """Picture files there are, to offer columns of events; at most some thousands."""
        found: list[str] = []
        for place in self.places[:1]:
            if place.is_dir():
                found += [
                    path.relative_to(place).as_posix()
                    for path in place.rglob("*")
                    if path.suffix.lower() in ENDINGS
                ]
        return found

    def find(self, named_in: Mapping[str, Path]) -> list[ShownStimulus]:
        """Where pictures are.

        Parameters
        ----------
        named_in : Mapping[str, Path]
            Name -> the table that names it.

        Raises
        ------
        UserError
            When one is missing, its name fits several files or leads out of the folder of scans.
        """
        found, missing = [], []
        for name, table in named_in.items():
            shown = self._find(name, table)
            found += [shown] if shown else []
            missing += [] if shown else [name]
        if missing:
            where = self.places[0] / missing[0].partition("#")[0]
            raise UserError(
                f"{where} is missing ({len(missing)} of {len(named_in)} pictures are), but the"
                " events name it; name the folder of the pictures with prepare.stimuli=FOLDER;"
                f" {GUIDE}."
            )
        return found

    def locate(self, name: str, table: Path) -> ShownStimulus | None:
        """The picture that a name of a list means, shown or not; None for none."""
        before = dict(self.other_names)  # those are of the events
        try:
            return self._find(name, table)
        except UserError:
            return None
        finally:
            self.other_names = before

    def _below(self, place: Path, name: str, table: Path) -> Path:
        """A path in a folder of pictures, which may itself be a link; a file of it may be a link
        inside the scans, as datalad makes " "them.
        """
        try:
            return path_below(place, name, table)
        except UserError:
            if not place.is_relative_to(self.root):
                raise
            return path_below(
                self.root, (place.relative_to(self.root) / name).as_posix() if name else name, table
            )

    def _find(self, name: str, table: Path) -> ShownStimulus | None:
        file, mark, row = (
            name.rpartition("#")
            if "#" in name and name.rpartition("#")[2].isdecimal()
            else (name, "", "")
        )
        if is_of_another_machine(name):
            return self._near(name, table)
        whole = [self._below(place, name, table) for place in self.places]
        for place, path in zip(self.places, whole):
            if (
                mark
                and (array := self._below(place, file, table)).suffix in _ARRAYS
                and array.exists()
            ):
                return ShownStimulus(name, array, int(row))
            if path.is_symlink() or path.is_file():
                return ShownStimulus(name, path)
            if path.suffix.lower() not in ENDINGS:
                fitting = sorted(
                    p
                    for p in path.parent.glob(f"{_escaped(path.name)}.*")
                    if p.suffix.lower() in ENDINGS
                )
                if len(fitting) > 1:
                    raise UserError(
                        f"The picture {name} may be {fitting[0]} or {fitting[1]}; write its ending"
                        " into the events."
                    )
                if fitting:
                    return ShownStimulus(
                        name,
                        self._below(
                            place, f"{name}{fitting[0].name.removeprefix(path.name)}", table
                        ),
                    )
        return self._near(name, table)

    def _near(self, name: str, table: Path) -> ShownStimulus | None:
        """A picture whose name is written a little differently."""
        place = next((place for place in self.places if place.is_dir()), self.root)
        if self._names is None:
            self._names = NearNames(place, ENDINGS)
        if (found := self._names.find(name)) is None:
            return None
        self.other_names[name] = found
        return ShownStimulus(name, self._below(place, found, table))

    def load(self, shown: ShownStimulus) -> LoadedStimulus:
        """Read a picture.

        Raises
        ------
        UserError
            When it is damaged, or no picture.
        """
        if shown.row is not None:
            highest = _highest(shown.path, shown.stamp)
            return self._coloured(_row(shown), shown.path, highest)
        refuse_stand_in(shown.path, GUIDE)
        readable = as_sentence(f"{shown.path} is not a readable picture", GUIDE)
        with readable, Image.open(shown.path) as image:
            image.load()
            loaded = self._of_image(image, shown.path)
            if not loaded.kind and getattr(image, "n_frames", 1) > 1:
                return loaded._replace(kind="several frames")
            if not loaded.kind and image.getexif().get(_ORIENTATION, 1) != 1:
                return loaded._replace(kind="turned")
            return loaded

    def _of_image(self, image: Image.Image, path: Path) -> LoadedStimulus:
        if image.mode.startswith("I") or image.mode == "F":
            return self._coloured(np.asarray(image), path)
        if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
            return self._coloured(np.asarray(image.convert("RGBA")), path)
        other = image.mode if image.mode in ("CMYK", "LAB", "YCbCr", "HSV") else ""
        return LoadedStimulus(np.asarray(image.convert("RGB")), other and "other colours")

    def _coloured(
        self, array: np.ndarray, path: Path, highest: float | None = None
    ) -> LoadedStimulus:
        """H x W, H x W x 1, 3 or 4, or 3 x H x W, of any number type, as RGB of 8 bits.

        `highest` is the highest value of all pictures of an array, by which its range is known; a
        file that holds one picture is known by its own.
        """
        if array.ndim == 3 and array.shape[0] in (1, 3, 4) and array.shape[2] not in (1, 3, 4):
            array = array.transpose(1, 2, 0)
        array = array[..., None] if array.ndim == 2 else array
        if array.ndim != 3 or array.shape[2] not in (1, 3, 4) or array.dtype.kind not in "fiu":
            raise UserError(
                f"{path} holds {array.dtype} of shape {array.shape}, a picture of height x width x"
                " 3 was expected."
            )
        low, high = float(array.min()), float(array.max())
        kind, top = "", high if highest is None else highest
        if array.dtype != np.uint8:
            wide = array.dtype == np.uint16 and highest is None
            if not np.isfinite([low, high]).all() or low < 0:
                raise UserError(
                    f"{path} has values from {low:g} to {high:g}; pictures have 0 to 1, 255 or"
                    " 65535."
                )
            if array.dtype.kind == "f" and top <= 1:
                array = np.rint(array * 255.0)
            elif top > 255 or wide:
                array, kind = np.rint(array / 257.0), "16-bit"
            if array.max() > 255:
                raise UserError(
                    f"{path} has values up to {high:g}; pictures have 0 to 1, 255 or 65535."
                )
            array = np.rint(array).astype(np.uint8)
        if array.shape[2] == 4:
            alpha = array[..., 3:].astype(np.float32) / 255
            if (alpha < 1).any():
                kind = "transparent"
            laid = array[..., :3] * alpha + np.array(self.ground, np.float32) * (1 - alpha)
            array = np.rint(laid).astype(np.uint8)
        return LoadedStimulus(np.repeat(array, 3, axis=2) if array.shape[2] == 1 else array, kind)

    def fitted(self, shown: ShownStimulus, side: int) -> np.ndarray:
        """A picture cut and resized: 3 x side x side, uint8."""
        return fit_picture(self.load(shown).picture_HW3, side)


def pixels_of(picture_HW3: np.ndarray) -> str:
    """Digest of a picture's pixels: equal for equal pictures, whatever their names and endings."""
    return hashlib.sha256(
        repr(picture_HW3.shape).encode() + np.ascontiguousarray(picture_HW3).tobytes()
    ).hexdigest()[:32]


def _escaped(name: str) -> str:
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in name)


@lru_cache(maxsize=8)
def _array(path: Path, stamp: str) -> np.ndarray | h5py.Dataset:
    refuse_stand_in(path, GUIDE)
    with as_sentence(f"{path} is not a readable array of pictures", GUIDE):
        if path.suffix == ".npy":
            return np.load(path, mmap_mode="r", allow_pickle=False)
        file = h5py.File(path, "r")
    if written_by_matlab(file):
        raise UserError(
            f"{path} was written by Matlab, whose HDF5 has its axes in reverse: the pictures would "
            'lie on their side. Turn them round: python -c "import h5py, numpy as np; '
            f"np.save('{path.stem}.npy', h5py.File('{path.name}')['{next(iter(file))}'][()].T)\" "
            "(pictures come first, then height, width, colours)."
        )
    fitting = [
        item for item in file.values() if isinstance(item, h5py.Dataset) and item.ndim in (3, 4)
    ]
    if len(fitting) != 1:
        raise UserError(
            f"{path} has {len(fitting)} datasets that may be pictures ({', '.join(file)}); one was"
            " expected."
        )
    return fitting[0]


@lru_cache(maxsize=8)
def _highest(path: Path, stamp: str) -> float | None:
    """Highest value of all pictures of an array, read in blocks; None where it is not needed."""
    array = _array(path, stamp)
    if array.dtype == np.uint8 or array.dtype.kind not in "fiu":
        return None
    at_once = max(1, _BLOCK_BYTES // max(1, int(np.prod(array.shape[1:])) * array.dtype.itemsize))
    blocks = (array[first : first + at_once] for first in range(0, len(array), at_once))
    return max((float(np.fmax.reduce(block, axis=None)) for block in blocks), default=None)


def _row(shown: ShownStimulus) -> np.ndarray:
    array = _array(shown.path, shown.stamp)
    if shown.row is None or shown.row >= len(array):
        raise UserError(
            f"{shown.path} has {len(array)} pictures, the events name row {shown.row} (from 0);"
            " correct one of them."
        )
    return np.asarray(array[shown.row])
