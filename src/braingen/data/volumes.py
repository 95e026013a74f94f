"""A voxel's place in the head: voxel vectors to NIfTI volumes and back, bit for bit.

Betas hold the voxels inside a mask, one after the other. In which order, is a choice (C order: the
last axis of the volume runs fastest; F order: the first), which no betas file states. So it is
written down once, beside the volumes, in order.json::

    {"mask": "nsdgeneral.nii.gz", "rule": "value > 0", "flattening": "C", "voxels": 15724, "shape":
    [81, 104, 83],
     "mask_sha256": "...", "source": "where the mask and the order come from"}

where `mask_sha256` is the digest of the mask as bytes 0 and 1 in C order, so that a mask exchanged
later is noticed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import hashlib
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import h5py
import nibabel
import numpy as np

from braingen.data import nsd
from braingen.runtime.data_layout import Layout, subject_name
from braingen.runtime.errors import UserError, as_sentence
from braingen.runtime.files import refuse_stand_in, replaced_path, write_json
from braingen.runtime.text_files import read_json
from braingen.runtime.untrusted import path_below

_ORDERS: tuple[Literal["C"], Literal["F"]] = ("C", "F")
_RULE = "value > 0"
NSDGENERAL = "nsdgeneral.nii.gz"
"""NSD's mask of cortex that responds to pictures, the one betas are distributed in."""
ALIGNED, MNI = 2, 4
"""NIfTI's codes of where an affine leads: to some other image's coordinates, to those of MNI152."""


def load_nifti(path: Path) -> nibabel.Nifti1Image:
    """Open a NIfTI-1 or NIfTI-2 file.

    Raises
    ------
    UserError
        When it is missing, damaged or something else.
    """
    refuse_stand_in(path, nsd.WRITE_IT)
    with as_sentence(f"{path} is not a readable NIfTI file", nsd.WRITE_IT):
        image: Any = nibabel.load(path)
        if not isinstance(image, nibabel.Nifti1Image):  # NIfTI-2 is one of those
            raise ValueError(f"it is {type(image).__name__.removesuffix('Image')}, no volume")
        np.asanyarray(image.dataobj)  # read now: a cut file is only noticed while reading
    refuse_no_numbers(image, path)
    return image


def refuse_no_numbers(image: Any, path: Path) -> None:
    """Refuse colours and complex numbers, which would lose a part as real numbers.

    Raises
    ------
    UserError
        When the values are neither whole nor real numbers.
    """
    kind = image.get_data_dtype()
    if kind.kind not in "fiu":
        raise UserError(
            f"{path} holds {kind}, real numbers were expected; write one volume of real numbers, "
            "for instance the magnitude."
        )


def space_of(image: nibabel.Nifti1Image) -> int:
    """Return the NIfTI code of an image's space; `ALIGNED` where the header has none."""
    return int(image.header["sform_code"]) or int(image.header["qform_code"]) or ALIGNED


def save_nifti(path: Path, volume: np.ndarray, affine: np.ndarray, space: int = ALIGNED) -> None:
    """Write a volume atomically, without rescaling; equal volumes give equal files (no time in the
    gzip header).

    Parameters
    ----------
    path : Path
        Ends in .nii or .nii.gz.
    volume : np.ndarray
        (x, y, z, ...), kept in its dtype; bool becomes uint8 and int64 int32, which NIfTI readers
        know.
    affine : np.ndarray
        (4, 4) voxel indices to millimetres.
    space : int, optional
        NIfTI's code of where the affine leads.
    """
    if volume.dtype == bool:
        volume = volume.astype(np.uint8)
    elif volume.dtype == np.int64:
        volume = volume.astype(np.int32)
    image = nibabel.Nifti1Image(volume, affine)
    image.set_sform(affine, code=space)
    image.header.set_xyzt_units("mm")
    with replaced_path(path) as temporary:
        named = temporary.with_name(
            temporary.name + "".join(path.suffixes[-2:])
        )  # nibabel goes by the ending
        try:
            nibabel.save(image, named)
            named.replace(temporary)
        finally:
            named.unlink(missing_ok=True)


def _digest(mask: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(mask, dtype=np.uint8).tobytes()).hexdigest()


class ReadsMaps(Protocol):
    """Places that read a vector of all columns from a file."""

    def read(self, path: Path) -> np.ndarray:
        """The map of a file."""


class VoxelPlaces(NamedTuple):
    """Where the voxels of one subject lie. V voxels; x, y, z axes of the volume."""

    mask: np.ndarray
    """(x, y, z) bool: the voxels the betas hold."""
    order: Literal["C", "F"]
    """"C" or "F": how they are flattened."""
    affine: np.ndarray
    """(4, 4) voxel indices to millimetres."""
    source: str
    """Where mask and order come from."""
    space: int = ALIGNED
    """NIfTI's code of where the affine leads, as the mask's header has it: `MNI`, or
    anything else.
    """

    @property
    def voxels(self) -> int:
        """Length of a voxel vector."""
        return int(self.mask.sum())

    @property
    def indices_V3(self) -> np.ndarray:
        """(V, 3) int64: volume indices of every voxel."""
        flat = np.flatnonzero(self.mask.ravel(order=self.order))
        return np.stack(np.unravel_index(flat, self.mask.shape, order=self.order), axis=1).astype(
            np.int64
        )

    @property
    def millimetres_V3(self) -> np.ndarray:
        """(V, 3) float64: position of every voxel's centre in the subject's functional space."""
        return self.indices_V3 @ self.affine[:3, :3].T + self.affine[:3, 3]

    def restricted(self, kept_V: np.ndarray) -> VoxelPlaces:
        """The places of some of the voxels, in the same order."""
        return self._replace(mask=self.to_volume(np.asarray(kept_V, dtype=bool)))

    def to_volume(self, values: np.ndarray, fill: float = 0) -> np.ndarray:
        """Put voxel vectors (V,) or (V, ...) into a volume (x, y, z, ...) of the same dtype, `fill`
        outside the mask.

        Raises
        ------
        UserError
            When the vector has another length.
        """
        values = np.asarray(values)
        if values.shape[:1] != (self.voxels,):
            whose = nsd.subject_of_width(values.shape[0]) if values.ndim else None
            hint = f", which is the width of NSD subject {whose}" if whose else ""
            raise UserError(
                f"A voxel vector of shape {values.shape} was given{hint}; this subject's mask has"
                f" {self.voxels} voxels ({self.source})."
            )
        volume = np.full((*self.mask.shape, *values.shape[1:]), fill, dtype=values.dtype)
        volume[tuple(self.indices_V3.T)] = values
        return volume

    def to_vector(self, volume: np.ndarray) -> np.ndarray:
        """Take the voxels out of a volume (x, y, z, ...): (V, ...), of the same dtype.

        Raises
        ------
        UserError
            When the volume has another shape.
        """
        volume = np.asarray(volume)
        if volume.shape[:3] != self.mask.shape:
            raise UserError(
                f"A volume of shape {volume.shape} was given, {self.mask.shape} was expected: it is"
                " not in this subject's functional space."
            )
        return volume[tuple(self.indices_V3.T)]

    def write(self, path: Path, values: np.ndarray, fill: float = 0) -> None:
        """Write a voxel vector as NIfTI."""
        save_nifti(Path(path), self.to_volume(values, fill), self.affine, self.space)

    def read(self, path: Path) -> np.ndarray:
        """Read a voxel vector from a NIfTI in this space; what `write` wrote comes back bit for
        bit.
        """
        return self.vectors_of(load_nifti(Path(path)), str(path))

    def vectors_of(self, image: nibabel.Nifti1Image, name: str) -> np.ndarray:
        """Voxel vectors (V,) or (V, ...) of an image in this space; `name` begins the messages."""
        if not np.allclose(image.affine, self.affine, atol=1e-4):
            raise UserError(
                f"{name} has another affine than the mask ({self.source}): it is in another space;"
                " resample it to func1pt8mm."
            )
        return self.to_vector(np.asanyarray(image.dataobj))


def save_places(layout: Layout, subject: int, places: VoxelPlaces, mask: str = NSDGENERAL) -> None:
    """Write the mask, under a name, and order.json of a subject."""
    folder = layout.volumes(subject)
    save_nifti(folder / mask, places.mask, places.affine, places.space)
    save_order(layout, subject, places, mask)


def save_order(layout: Layout, subject: int, places: VoxelPlaces, mask: str = NSDGENERAL) -> None:
    """Write order.json beside a mask that is already there."""
    write_json(
        layout.volumes(subject) / "order.json",
        {
            "mask": mask,
            "rule": _RULE,
            "flattening": places.order,
            "voxels": places.voxels,
            "shape": list(places.mask.shape),
            "mask_sha256": _digest(places.mask),
            "source": places.source,
        },
    )


def load_places(layout: Layout, subject: int) -> VoxelPlaces:
    """Places of a subject's voxels, by order.json; without one, by `find_order`.

    Raises
    ------
    UserError
        When mask or order are missing, do not belong together, or are unknown.
    """
    folder = layout.volumes(subject)
    path = folder / "order.json"
    if not path.exists():
        return find_order(layout, subject)
    order = read_json(path, nsd.WRITE_IT)
    if isinstance(order, dict) and ("surface" in order or "columns" in order):
        where = (
            f"on the surface {order['surface']}"
            if "surface" in order
            else "columns without a place"
        )
        raise UserError(
            f"The responses of subject {subject} are {where}, not voxels of a volume ({path})."
        )
    try:
        name, rule, flattening, source, digest = (
            order[key] for key in ("mask", "rule", "flattening", "source", "mask_sha256")
        )
    except (KeyError, TypeError) as error:
        raise UserError(
            f"{path} is not an order of voxels (mask, rule, flattening, mask_sha256, source);"
            f" {nsd.WRITE_IT}."
        ) from error
    if flattening not in _ORDERS or rule != _RULE:
        raise UserError(
            f'{path}: flattening "{flattening}" of "{rule}" is not known, "C" or "F" of "{_RULE}"'
            f" was expected; {nsd.WRITE_IT}."
        )
    image = load_nifti(path_below(folder, name, path))
    mask = np.asanyarray(image.dataobj) > 0
    if _digest(mask) != digest:
        raise UserError(
            f"{folder / name} is not the mask {path} was written for ({int(mask.sum())} voxels,"
            f" other places); {nsd.WRITE_IT}."
        )
    return VoxelPlaces(mask, flattening, image.affine, source, space_of(image))


def find_order(layout: Layout, subject: int) -> VoxelPlaces:
    """Tell the flattening order of betas that came without one, by their region masks.

    brain_region_masks.hdf5 says which entry of the vector is in V1-V4, prf-visualrois.nii.gz where
    in the volume V1-V4 are. Only in the right order do the two agree.

    Raises
    ------
    UserError
        When a file is missing, or neither order or both agree.
    """
    folder = layout.volumes(subject)
    image = load_nifti(folder / "nsdgeneral.nii.gz")
    mask = np.asanyarray(image.dataobj) > 0
    areas = np.asanyarray(load_nifti(folder / "prf-visualrois.nii.gz").dataobj)
    regions = read_regions(layout, subject)
    agreement = {}
    for order in _ORDERS:
        labels = VoxelPlaces(mask, order, image.affine, "").to_vector(areas)
        in_volume = {
            name: np.isin(labels, labels_of) for name, labels_of in nsd.VISUAL_ROI_LABELS.items()
        }
        if len(labels) != len(regions["V1"]):
            raise UserError(
                f"{folder / 'nsdgeneral.nii.gz'} has {len(labels)} voxels, {layout.masks()} has"
                f" {len(regions['V1'])} for subject {subject}: they do not belong together; take"
                " both from the same release."
            )
        agreement[order] = float(
            np.mean([np.array_equal(in_volume[name], regions[name]) for name in in_volume])
        )
    matching = [order for order, share in agreement.items() if share == 1]
    if len(matching) != 1:
        raise UserError(
            f"The order of subject {subject}'s voxels is not known: V1-V4 of {layout.masks()}"
            f" agree with {folder / 'prf-visualrois.nii.gz'} in"
            f" {'both orders' if matching else 'neither order'}; write {folder / 'order.json'} as"
            " docs/data.md describes."
        )
    source = f"found by comparing {layout.masks().name} with prf-visualrois.nii.gz"
    return VoxelPlaces(mask, matching[0], image.affine, source, space_of(image))


def read_regions(
    layout: Layout, subject: int, names: Sequence[str] | None = None
) -> dict[str, np.ndarray]:
    """Boolean region vectors (V,) of a subject from brain_region_masks.hdf5, by name.

    Raises
    ------
    UserError
        When the file, the subject or a region is missing, or is not a boolean vector.
    """
    path = refuse_stand_in(layout.masks(), nsd.GET_IT)
    group = subject_name(subject)
    try:
        with h5py.File(path, "r") as file:
            if group not in file:
                raise UserError(
                    f"{path} has no group {group}, only {', '.join(file) or 'nothing'};"
                    f" {nsd.GET_IT}."
                )
            wanted = list(file[group]) if names is None else list(names)
            missing = [name for name in wanted if name not in file[group]]
            if missing:
                raise UserError(
                    f"{path} has no region {', '.join(missing)} for {group}, only"
                    f" {', '.join(file[group])}; {nsd.GET_IT}."
                )
            regions = {name: np.asarray(file[group][name]) for name in wanted}
    except OSError as error:
        raise UserError(f"{path} cannot be opened as HDF5 ({error}); {nsd.GET_IT}.") from error
    for name, region in regions.items():
        if region.ndim != 1 or not np.isin(region, (0, 1)).all():
            raise UserError(
                f"{path}: {group}/{name} has shape {region.shape} and is {region.dtype}, a boolean"
                f" vector was expected; {nsd.GET_IT}."
            )
    return {name: region.astype(bool) for name, region in regions.items()}


def with_joined_areas(regions: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Regions, with early_vis (V1 to V4) and higher_vis (the rest of nsd_general) where V1 to V4
    are known.
    """
    areas = [regions[name] for name in nsd.VISUAL_ROI_LABELS if name in regions]
    if not areas:
        return dict(regions)
    early = np.any(areas, axis=0)
    return {**regions, "early_vis": early, "higher_vis": regions["nsd_general"] & ~early}


def write_regions(layout: Layout, subjects: Mapping[int, Mapping[str, np.ndarray]]) -> None:
    """Write brain_region_masks.hdf5: one group per subject of boolean vectors by name."""
    with replaced_path(layout.masks()) as temporary, h5py.File(temporary, "w") as file:
        for subject, regions in subjects.items():
            group = file.create_group(subject_name(subject))
            for name, region in regions.items():
                group.create_dataset(name, data=region)


def load_label_vector(
    layout: Layout, subject: int, name: str, places: ReadsMaps | None = None
) -> np.ndarray:
    """Labels or values (V,) of a region or pRF volume of the data folder, such as "floc-faces" or
    "prf_size".
    """
    places = load_places(layout, subject) if places is None else places
    return places.read(layout.volumes(subject) / f"{name}.nii.gz")
