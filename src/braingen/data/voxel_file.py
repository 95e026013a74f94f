"""Voxels somebody brings along: an array or a file of a known subject's responses, single trials or
repeats.

    .npy            V, N x V, or N x R x V (R presentations of each picture; a row of NaN is one
                    that there was not)
    .npz, .h5       the same under `voxels` (or `betas`), image ids under `ids` (or `image_ids`,
                    `image`)
    .nii, .nii.gz   x, y, z or x, y, z, N in the subject's functional space: the mask of the data
                    folder says which voxels
    other forms     those that `prepare` reads (GIFTI, FreeSurfer, CIFTI, GLMsingle's and bdpy's
                    output, x, y, z, N as .npy): see `response_files.py`

Beside a file without ids, `<name>_ids.npy` may lie. Rows with the same id are presentations of one
picture; without ids every row is a picture of its own.

N rows (trials), P pictures, R presentations, V voxels.
"""

from __future__ import annotations

from collections.abc import Mapping
import logging
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import nibabel
from nibabel.spatialimages import SpatialImage
import numpy as np
import pandas as pd

from braingen.data import nsd
from braingen.data.betas import Betas
from braingen.data.ingest.forms import ENDINGS, ending_of
from braingen.data.places import kept_columns
from braingen.data.response_files import is_of_a_lab, read_of_a_lab
from braingen.data.trials import Repeats, group_repeats
from braingen.data.volumes import load_places
from braingen.data.zscore import load_statistics
from braingen.data.zscore import zscored as in_deviations
from braingen.runtime.arrays import (
    read_dataset,
    read_npy,
    read_npz,
    refuse_more_than_memory,
    whole_numbers,
)
from braingen.runtime.data_layout import Layout
from braingen.runtime.errors import UserError, reason
from braingen.runtime.files import UNREADABLE_ARRAY, refuse_stand_in
from braingen.runtime.text_files import read_json
from braingen.types import Trials

logger = logging.getLogger(__name__)
_ROWS_LOOKED_AT, _ROWS_TO_TELL = 500, 20
VOXEL_KEYS = ("voxels", "betas", "data")
ID_KEYS = ("ids", "image_ids", "image")
SUFFIXES = ENDINGS


class Responses(NamedTuple):
    """Responses of one subject, one row per presentation; read like a betas file."""

    voxels_NV: np.ndarray
    """float32, z-scored as in a betas file."""
    image_N: np.ndarray
    """Image id of every row, int64."""

    @property
    def voxels(self) -> int:
        """Number of voxels."""
        return self.voxels_NV.shape[1]

    def rows(self, rows: np.ndarray) -> np.ndarray:
        """The given rows, float32."""
        return np.ascontiguousarray(self.voxels_NV[np.asarray(rows)], dtype=np.float32)

    def grouped(self) -> Repeats:
        """Rows by picture, pictures ascending by id, presentations in the order of the rows."""
        table = pd.DataFrame({"image": self.image_N, "trial": np.arange(len(self.image_N))})
        table["repeat"] = table.groupby("image").cumcount()
        return group_repeats(Trials(table, 0), max_repeats=len(table))


class Scale(NamedTuple):
    """Mean and standard deviation of what an encoder was trained on."""

    mean_V: np.ndarray
    sd_V: np.ndarray


def scale_of_training(layout: Layout, subject: int) -> Scale | None:
    """Scale of a subject's betas where they were not z-scored; None where they were."""
    try:
        rule = read_json(layout.prepared())["subjects"][str(subject)]["zscore"]
    except (UserError, OSError, ValueError, KeyError, TypeError):
        return None  # a distributed folder, z-scored
    if rule != "none":
        return None
    betas = Betas.of(layout, subject)
    some = betas.rows(_spread(betas.trials)).astype(np.float64)
    sd_V = some.std(axis=0)
    return Scale(some.mean(axis=0), np.where(sd_V > 0, sd_V, 1))


def _spread(rows: int) -> np.ndarray:
    """Some of so many rows, from the first to the last."""
    return np.linspace(0, rows - 1, min(rows, _ROWS_LOOKED_AT)).astype(np.int64)


def odd_scale(voxels_NV: np.ndarray, name: str, trained: Scale | None = None) -> str:
    """A sentence where responses are not scaled as those that encoders are trained with, else
    nothing.

    Z-scored over trials, a voxel has mean 0 and standard deviation 1, and averages of trials less.
    Where there are enough rows voxels are looked at one by one, otherwise all values together; raw
    integers, percent signal change and zeros are noticed.

    Parameters
    ----------
    voxels_NV : np.ndarray
        Finite.
    name : str
        Of the array or file; begins the sentence.
    trained : Scale | None, optional
        Scale of the betas of the encoder, where they were not z-scored.
    """
    some = voxels_NV[_spread(len(voxels_NV))].astype(np.float64)
    if trained is not None:
        some = (some - trained.mean_V) / trained.sd_V
    enough = len(some) >= _ROWS_TO_TELL
    axis = 0 if enough else None
    mean, deviation = (
        float(np.median(np.abs(some.mean(axis=axis)))),
        float(np.median(some.std(axis=axis))),
    )
    silent = int((some == some[:, :1]).all(axis=1).sum()) if some.shape[1] > 1 else 0
    if mean <= 0.5 and 0.25 < deviation < 2.5 and not silent:
        return ""
    what = "a typical voxel has" if enough else "values have"
    rows = f"; {silent} of {len(some)} rows have the same value in every voxel" if silent else ""
    if trained is not None:
        return (
            f"{name}: in units of the betas the encoder was trained with, which were not z-scored,"
            f" {what} mean {mean:.3g} and standard deviation {deviation:.3g}{rows}; 0 and 1 were"
            " expected: give responses in the unit of those scans."
        )
    return (
        f"{name}: {what} mean {mean:.3g} and standard deviation {deviation:.3g}{rows}; responses"
        " z-scored over the trials of a session (0 and 1) were expected, as in the betas the"
        " encoder was trained with: z-score them as `braingen prepare` does (docs/data.md);"
        " `braingen decode` does with decode.zscore=folder."
    )


def responses(
    voxels: np.ndarray,
    subject: int,
    width: int,
    image_ids: np.ndarray | None = None,
    name: str = "voxels",
    zscored: bool = True,
    trained: Scale | None = None,
) -> Responses:
    """Responses from an array.

    Parameters
    ----------
    voxels : np.ndarray
        V, N x V or N x R x V.
    width : int
        Voxels that the subject has.
    image_ids : np.ndarray | None, optional
        One per picture (per row of the first axis); counted from 0 when left out.
    name : str, optional
        Of the array in messages.
    zscored : bool, optional
        Whether they should be; otherwise their scale is not checked.
    trained : Scale | None, optional
        Scale of the betas of the encoder, where they were not z-scored.

    Raises
    ------
    UserError
        When shape, width or number of ids do not fit, or values are not finite.

    Warns
    -----
    logging
        Where values are not scaled as z-scored responses are (`odd_scale`).
    """
    if (
        voxels.ndim not in (1, 2, 3)
        or not voxels.size
        or not np.issubdtype(voxels.dtype, np.number)
        or np.iscomplexobj(voxels)
    ):
        raise UserError(
            f"{name} is {voxels.dtype} of shape {tuple(voxels.shape)}; expected real numbers, V, B"
            " x V or B x R x V."
        )
    voxels = voxels[None] if voxels.ndim == 1 else voxels
    if voxels.shape[-1] != width:
        other = nsd.subject_of_width(voxels.shape[-1])
        hint = f" (so many has NSD subject {other})" if other else ""
        raise UserError(
            f"{name} has {voxels.shape[-1]} voxels{hint}, subject {subject} has {width}: give all"
            " voxels of that subject."
        )
    ids = (
        np.arange(len(voxels))
        if image_ids is None
        else whole_numbers(image_ids, name, "give integers")
    )
    if len(ids) != len(voxels):
        raise UserError(
            f"image_ids names {len(ids)} pictures, {name} is of {len(voxels)}; give one id for"
            " each."
        )
    repeats = voxels.shape[1] if voxels.ndim == 3 else 1
    rows_NV, image_N = voxels.reshape(-1, width), np.repeat(ids.astype(np.int64), repeats)
    if repeats > 1:
        present = ~np.isnan(rows_NV).all(axis=1)
        absent = sorted(set(image_N) - set(image_N[present]))
        if absent:
            raise UserError(
                f"{name} has no presentation of image {absent[0]} (all NaN); leave such images out."
            )
        rows_NV, image_N = rows_NV[present], image_N[present]
    with np.errstate(over="ignore"):  # reported in the next lines
        rows_NV = rows_NV.astype(np.float32, copy=False)
    if not np.isfinite(rows_NV).all():
        row, voxel = np.argwhere(~np.isfinite(rows_NV))[0]
        raise UserError(
            f"{name} has {rows_NV[row, voxel]} at row {row}, voxel {voxel}; only finite numbers are"
            " allowed."
        )
    if zscored and (warning := odd_scale(rows_NV, name, trained)):
        logger.warning(warning)
    return Responses(rows_NV, image_N)


def with_folders_statistics(given: Responses, layout: Layout, subject: int) -> Responses:
    """Responses in the unit of the scans, z-scored with the mean and spread of the training trials
    of a data folder, over its sessions.

    Raises
    ------
    UserError
        When the folder keeps none, or of other voxels.
    """
    statistics = load_statistics(layout, subject)
    if statistics.mean_SV.shape[1] != given.voxels:
        raise UserError(
            f"The responses have {given.voxels} voxels, {layout.root} keeps mean and spread of"
            f" {statistics.mean_SV.shape[1]} voxels of subject {subject}; name the folder the"
            " decoder was trained on with --data_path."
        )
    z_NV = in_deviations(
        given.voxels_NV, statistics.mean_SV.mean(axis=0), statistics.sd_SV.mean(axis=0)
    )
    return given._replace(voxels_NV=z_NV)


def voxel_file(path: Path | str) -> tuple[Path, str]:
    """A file of responses and its ending, before anything is read of it.

    Raises
    ------
    UserError
        When its ending is none of :data:`SUFFIXES`, or it is missing or no file of data.
    """
    path = Path(path).expanduser()
    suffix = ending_of(path)
    if suffix not in SUFFIXES and suffix != ".mat":  # Matlab's is refused with a line of its own
        allowed = ", ".join(sorted(SUFFIXES))
        raise UserError(f"{path.name} ends in {suffix or 'nothing'!r}; allowed are {allowed}.")
    return refuse_stand_in(path, "give the path of a file of voxels"), suffix


def load_responses(
    path: Path | str, subject: int, width: int, layout: Layout | None = None, zscored: bool = True
) -> Responses:
    """Read a file of responses.

    Parameters
    ----------
    path : Path | str
        In a form that `prepare` reads, or an array of voxels.
    subject, width : int
        Whose voxels, and how many that subject has.
    layout : Layout | None, optional
        The data folder, which says where the subject's voxels lie; not needed for plain arrays.
    zscored : bool, optional
        Whether they should be.

    Raises
    ------
    UserError
        When the file is missing, damaged, holds no voxels, or those of somebody else.
    """
    path, suffix = voxel_file(path)
    ids = None
    if is_of_a_lab(path):
        voxels = read_of_a_lab(path, subject, layout)
    elif suffix in (".nii", ".nii.gz"):
        voxels = _from_volumes(path, subject, layout)
    else:
        arrays = _arrays(path, suffix)
        voxels, ids = _first(arrays, VOXEL_KEYS), _first(arrays, ID_KEYS)
        if voxels is None:
            held = (
                ", ".join(f"{name} {tuple(np.shape(value))}" for name, value in arrays.items())
                or "nothing"
            )
            raise UserError(
                f"{path} holds no voxels (an array under one of {', '.join(VOXEL_KEYS)}); it holds"
                f" {held}."
            )
        columns = np.shape(voxels)[-1] if np.ndim(voxels) else 0
        if columns != width and layout is not None:
            kept_V = kept_columns(layout, subject, columns)
            voxels = voxels if kept_V is None else np.asarray(voxels)[..., kept_V]
    beside = path.with_name(path.name.removesuffix(suffix) + "_ids.npy")
    if ids is None and beside.exists():
        ids = _arrays(beside, ".npy")[VOXEL_KEYS[0]]
    trained = None if layout is None else scale_of_training(layout, subject)
    return responses(np.asarray(voxels), subject, width, ids, str(path), zscored, trained)


def responses_of_image(
    image: SpatialImage, subject: int, width: int, layout: Layout | None = None
) -> Responses:
    """Responses of a NIfTI image of nibabel: x, y, z or x, y, z, N in the subject's space.

    Parameters
    ----------
    layout : Layout | None, optional
        The data folder, which says where the subject's voxels lie.

    Raises
    ------
    UserError
        When it is another kind of image, in another space, or no data folder is named.
    """
    name = f"The {type(image).__name__}"
    if not isinstance(image, nibabel.Nifti1Image):  # NIfTI-2 is one of those
        raise UserError(
            f"{name} is no NIfTI image; of nibabel's images NIfTI is taken: give the path of the"
            " file instead."
        )
    if layout is None:
        raise UserError(
            f"{name} is a volume: name the data folder with the subject's mask (data_root=), to"
            " know which of its voxels are meant."
        )
    vectors = load_places(layout, subject).vectors_of(image, name)
    voxels = np.moveaxis(vectors, 0, -1).astype(np.float32)
    trained = scale_of_training(layout, subject)
    return responses(voxels, subject, width, None, name, trained=trained)


def _from_volumes(path: Path, subject: int, layout: Layout | None) -> np.ndarray:
    if layout is None:
        raise UserError(
            f"{path} is a volume: name the data folder with the subject's mask, to know which of"
            " its voxels are meant."
        )
    vectors = load_places(layout, subject).read(path)  # V or V x N
    return np.moveaxis(vectors, 0, -1).astype(np.float32)


def _arrays(path: Path, suffix: str) -> Mapping[str, Any]:
    """Arrays of a file by name; that of a .npy is called as voxels are."""
    again = "write it again"
    if suffix == ".npy":
        array = read_npy(path, again)
        refuse_more_than_memory(array.nbytes, str(path), again)
        return {VOXEL_KEYS[0]: array}
    if suffix == ".npz":
        return read_npz(path, again)
    try:
        with h5py.File(path, "r") as file:
            wanted, found = {*VOXEL_KEYS, *ID_KEYS}, {}
            for name, value in file.items():
                if isinstance(value, h5py.Dataset):
                    found[name] = (
                        read_dataset(value, path, again) if name in wanted else value.shape
                    )
            return found
    except UserError:
        raise
    except UNREADABLE_ARRAY as error:
        raise UserError(
            f"{path} cannot be read as {suffix} ({reason(error)}); write it again."
        ) from error


def _first(arrays: Mapping[str, Any], names: tuple[str, ...]) -> Any:
    return next((arrays[name] for name in names if name in arrays), None)
