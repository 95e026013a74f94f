"""NIfTI-1 and -2 volumes, four axes a file or one file per trial, and CIFTI files, which have the
same ending.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel
import numpy as np

from braingen.data.ingest.forms.base import ReadRequest, ScanPart, ScanSource
from braingen.data.ingest.grids import Grid, misfit
from braingen.data.ingest.names import GUIDE, Named
from braingen.data.volumes import refuse_no_numbers
from braingen.runtime.errors import UserError, as_sentence
from braingen.runtime.files import refuse_stand_in

_SECONDS = {"sec": 1.0, "msec": 1e-3, "usec": 1e-6}
_CORTEX = {"CIFTI_STRUCTURE_CORTEX_LEFT": "L", "CIFTI_STRUCTURE_CORTEX_RIGHT": "R"}


def open_nifti(path: Path) -> Any:
    """Open a NIfTI-1, NIfTI-2 or CIFTI file.

    Raises
    ------
    UserError
        When it is missing, damaged or something else.
    """
    refuse_stand_in(path, GUIDE)
    with as_sentence(f"{path} is not a readable NIfTI file", GUIDE):
        image: Any = nibabel.load(path, keep_file_open=True)
    refuse_no_numbers(image, path)
    return image


def read_nifti(file: Named, asked: ReadRequest) -> ScanSource:
    """A series of responses x, y, z, trials; or CIFTI, trials x grayordinates."""
    image = open_nifti(file.path)
    if isinstance(image, nibabel.Cifti2Image):
        return _cifti(file, image)
    shape = image.shape
    if len(shape) == 5 and shape[3] == 1:
        shape = (*shape[:3], shape[4])
    trials = shape[3] if len(shape) > 3 else 1
    if len(shape) not in (3, 4):
        raise UserError(
            f"{file.path} has shape {image.shape}, (x, y, z, trials) was expected; {GUIDE}."
        )

    def take(first: int, last: int) -> np.ndarray:
        with as_sentence(f"{file.path} is not a readable NIfTI file", GUIDE):
            block = np.asarray(
                image.dataobj[..., first:last] if len(image.shape) > 3 else image.dataobj
            )
        return block.reshape(-1, last - first).T

    header = image.header
    space = int(header["sform_code"]) or int(header["qform_code"])
    return ScanSource(
        (file.path,),
        "NIfTI",
        trials,
        shape[:3],
        take,
        image.affine,
        space,
        signs=_time_series(image),
        notes=_two_spaces(file, header),
    )


def _two_spaces(file: Named, header: Any) -> tuple[str, ...]:
    """Note on a header whose qform and sform lead to different places: programs differ in which
    they take.
    """
    if not (int(header["qform_code"]) and int(header["sform_code"])):
        return ()
    shape = tuple(header.get_data_shape()[:3])
    grids = (Grid(shape, header.get_sform()), Grid(shape, header.get_qform()))
    if not (apart := misfit(*grids)):
        return ()
    where = apart.partition("affines that lead ")[2]
    return (
        f"{file.path.name}: its sform is taken; its qform, which other programs take, leads to "
        f"other places, {where}",
    )


def _affine(source: ScanSource) -> np.ndarray:
    return np.eye(4) if source.affine is None else source.affine


def read_single_maps(files: Sequence[Named], asked: ReadRequest) -> ScanSource:
    """One file per trial, in the given order."""
    sources = [read_nifti(file, asked) for file in files]
    first = sources[0]
    for source in sources:
        if (
            source.trials != 1
            or source.grid != first.grid
            or not np.allclose(_affine(source), _affine(first), atol=1e-3)
        ):
            raise UserError(
                f"{source.name} has shape {source.grid} and {source.trials} trials; one map like"
                f" {first.name} was expected."
            )

    def take(begin: int, end: int) -> np.ndarray:
        return np.concatenate([source.read(0, 1) for source in sources[begin:end]])

    note = (
        f"{len(files)} files of one trial each, in the order of their names ({files[0].path.name}"
        f" ... {files[-1].path.name})"
    )
    paths = tuple(file.path for file in files)
    return ScanSource(
        paths,
        "one file per trial",
        len(files),
        first.grid,
        take,
        first.affine,
        first.space,
        notes=(note,),
    )


def _time_series(image: Any) -> tuple[str, ...]:
    header = image.header
    signs = []
    unit = header.get_xyzt_units()[1]
    if (
        len(image.shape) > 3
        and unit in _SECONDS
        and 0.1 < float(header["pixdim"][4]) * _SECONDS[unit] < 20
    ):
        signs.append(
            f"its header has a repetition time of {float(header['pixdim'][4]) * _SECONDS[unit]:g} s"
        )
    if (
        image.get_data_dtype().kind in "iu"
        and image.dataobj.slope in (None, 1)
        and not image.dataobj.inter
    ):
        signs.append("it holds whole numbers")
    return tuple(signs)


def _cifti(file: Named, image: nibabel.Cifti2Image) -> ScanSource:
    rows, brain = (image.header.get_axis(axis) for axis in (0, 1))
    if not isinstance(brain, nibabel.cifti2.BrainModelAxis) or len(image.shape) != 2:
        raise UserError(
            f"{file.path} is CIFTI of {type(brain).__name__}, trials x grayordinates (dscalar,"
            " dtseries) were expected."
        )
    signs: tuple[str, ...] = ()
    if isinstance(rows, nibabel.cifti2.SeriesAxis) and rows.unit == "SECOND":
        signs = (f"it is a dtseries with a step of {rows.step:g} s",)
    parts = []
    for name, where, model in brain.iter_structures():
        if name in _CORTEX and model.nvertices:
            parts.append(
                ScanPart(_CORTEX[name], int(model.nvertices[name]), np.asarray(brain[where].vertex))
            )

    def take(first: int, last: int) -> np.ndarray:
        return np.asarray(image.dataobj[first:last])

    surface = file.of("space") or "fsLR"
    return ScanSource(
        (file.path,),
        "CIFTI",
        image.shape[0],
        (image.shape[1],),
        take,
        parts=tuple(parts),
        surface=surface,
        grayordinates=brain,
        signs=signs,
    )
