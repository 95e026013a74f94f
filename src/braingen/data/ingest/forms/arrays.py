"""Arrays: .npy, .npz and HDF5, of trials x columns or x, y, z x trials; GLMsingle's and bdpy's
among them.

A pickle is never executed: :class:`_ArraysOnly` admits NumPy's arrays and plain values, nothing
else.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
import os
from pathlib import Path
import pickle
from typing import Any

import h5py
import numpy as np
from numpy.lib import format as npy

from braingen.data.ingest.forms.arrays_beside import with_arrays_beside
from braingen.data.ingest.forms.base import ReadRequest, ScanSource
from braingen.data.ingest.forms.matlab import largest, written_by_matlab
from braingen.data.ingest.forms.surfaces import VERTICES
from braingen.data.ingest.names import GUIDE, Named
from braingen.data.large_files import release
from braingen.data.nsd import BETAS_DATASET
from braingen.runtime import arrays
from braingen.runtime.errors import UserError, as_sentence, reason
from braingen.runtime.files import refuse_stand_in

GLMSINGLE = "betasmd"
_ADMITTED = {
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy.core.multiarray", "scalar"),
    ("numpy._core.multiarray", "scalar"),
    ("numpy._core.numeric", "_frombuffer"),
    ("numpy.core.numeric", "_frombuffer"),
    ("collections", "OrderedDict"),
    ("_codecs", "encode"),
}


class _ArraysOnly(pickle.Unpickler):
    """Refuses to call anything but what rebuilds an array."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ADMITTED:
            raise pickle.UnpicklingError(f"it wants to run {module}.{name}")
        return super().find_class(module, name)


def load_arrays_of_pickle(path: Path) -> Mapping[str, Any]:
    """The dictionary of arrays in a .npy file, as GLMsingle writes it; nothing in the file is
    executed.

    Raises
    ------
    UserError
        When it holds anything but a dictionary of arrays and plain values.
    """
    try:
        with open(path, "rb") as handle:
            version = npy.read_magic(handle)
            (npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0)(handle)
            found = _ArraysOnly(handle).load()
        found = found.item() if isinstance(found, np.ndarray) and found.ndim == 0 else found
        if isinstance(found, Mapping):
            return found
        why = "objects, no dictionary of arrays"
    except (
        pickle.UnpicklingError,
        ValueError,
        EOFError,
        OSError,
        AttributeError,
        ImportError,
        IndexError,
        KeyError,
        TypeError,
    ) as error:
        why = reason(error)
    raise UserError(
        f"{path} is not a readable array (it is a pickle: {why}); only dictionaries of arrays, as"
        f" GLMsingle writes them, are read. {GUIDE}."
    )


def _refused(path: Path, dtype: Any, shape: tuple[int, ...]) -> UserError:
    return UserError(
        f"{path} is {dtype} of shape {shape}, numbers of (trials, voxels) were expected, or of (x,"
        f" y, z, trials) in the shape of the mask; {GUIDE}."
    )


def _source(
    file: Named,
    form: str,
    array: Any,
    take: Callable[..., np.ndarray],
    asked: ReadRequest,
    **more: Any,
) -> ScanSource:
    """A source of an array that is indexed by `take`."""
    shape, dtype = tuple(array.shape), array.dtype
    if dtype.kind not in "fiu" or len(shape) not in (2, 4) or 0 in shape:
        raise _refused(file.path, dtype, shape)
    signs = ("it holds whole numbers",) if dtype.kind in "iu" else ()
    if len(shape) == 4 and shape[:2] == (
        1,
        1,
    ):  # GLMsingle's form of vertices: (1, 1, vertices, trials) or (vertices, 1, 1, trials)
        shape_, squeeze = (shape[2], shape[3]), True
    elif len(shape) == 4 and shape[1:3] == (1, 1):
        shape_, squeeze = (shape[0], shape[3]), True
    else:
        shape_, squeeze = shape, False
    if squeeze or (
        len(shape) == 2 and form.startswith("GLMsingle") and shape[1] == asked.trials != shape[0]
    ):
        columns, trials = shape_

        def columns_first(first: int, last: int) -> np.ndarray:
            return np.asarray(take((..., slice(first, last)))).reshape(columns, last - first).T

        return ScanSource(
            (file.path,),
            form,
            trials,
            (columns,),
            columns_first,
            signs=signs,
            surface=_surface(file, columns),
            **more,
        )
    if len(shape) == 2:
        return ScanSource(
            (file.path,),
            form,
            shape[0],
            (shape[1],),
            lambda first, last: np.asarray(take(slice(first, last))),
            signs=signs,
            surface=_surface(file, shape[1]),
            **more,
        )
    if asked.grid and shape[:3] != asked.grid and shape[1:] == asked.grid:
        return ScanSource(
            (file.path,),
            form,
            shape[0],
            shape[1:],
            lambda first, last: np.asarray(take(slice(first, last))).reshape(last - first, -1),
            signs=signs,
            notes=(f"{file.path.name}: axes run trials, x, y, z, by the shape of the mask",),
            **more,
        )
    return ScanSource(
        (file.path,),
        form,
        shape[3],
        shape[:3],
        lambda first, last: np.asarray(take((..., slice(first, last)))).reshape(-1, last - first).T,
        signs=signs,
        **more,
    )


def _surface(file: Named, columns: int) -> str:
    return (
        file.of("space")
        if file.of("hemi")
        else file.of("space")
        if columns // 2 in VERTICES and columns % 2 == 0
        else ""
    )


def read_npy(file: Named, asked: ReadRequest) -> ScanSource:
    """A .npy file, memory-mapped; a pickled dictionary as GLMsingle writes it is read without
    executing it.
    """
    refuse_stand_in(file.path, GUIDE)
    try:
        array = arrays.read_npy(file.path, GUIDE)
    except UserError as error:
        if "Python objects" not in str(error):
            raise
        return _glmsingle(file, load_arrays_of_pickle(file.path), asked)

    def take(index: Any) -> np.ndarray:
        block = np.array(array[index])
        release(array)
        return block

    return _source(file, "NumPy", array, take, asked)


def _glmsingle(file: Named, found: Mapping[str, Any], asked: ReadRequest) -> ScanSource:
    betas = found.get(GLMSINGLE)
    if not isinstance(betas, np.ndarray):
        raise UserError(
            f"{file.path} is not a readable array: a dictionary of"
            f" {', '.join(map(str, found)) or 'nothing'}, GLMsingle's has betasmd."
        )
    source = _source(file, "GLMsingle", betas, betas.__getitem__, asked)
    return source._replace(
        order_N=design_order(file.path), notes=(*source.notes, *_type_note(file.path))
    )


def _type_note(path: Path) -> tuple[str, ...]:
    return (
        ()
        if path.name.startswith("TYPED") or not path.name.startswith("TYPE")
        else (f"{path.name} is not GLMsingle's TYPED",)
    )


def design_order(path: Path) -> np.ndarray | None:
    """Condition of every trial by GLMsingle's DESIGNINFO beside a file; None where there is
    none.
    """
    for name in ("DESIGNINFO.hdf5", "DESIGNINFO.npy"):
        beside = path.with_name(name)
        if not beside.exists():
            continue
        if beside.suffix == ".npy":
            order = load_arrays_of_pickle(beside).get("stimorder")
        else:
            with h5py.File(beside, "r") as opened:
                order = opened["stimorder"][()] if "stimorder" in opened else None
        return None if order is None else np.asarray(order).ravel().astype(np.int64)
    return None


def read_npz(file: Named, asked: ReadRequest) -> ScanSource:
    """A .npz file; the array that is asked for, `betas`, or the only one that fits."""
    shapes = arrays.read_npz(file.path, GUIDE)
    name, notes = _pick(file.path, shapes, asked)
    array = shapes[name]
    source = _source(file, "NumPy", array, array.__getitem__, asked)
    return with_arrays_beside(source._replace(notes=(*source.notes, *notes)), shapes, name)


def _pick(path: Path, shapes: Mapping[str, Any], asked: ReadRequest) -> tuple[str, tuple[str, ...]]:
    """Name of the dataset that holds the responses."""
    there = ", ".join(f"`{name}`" for name in shapes) or "nothing"
    if asked.dataset:
        if asked.dataset not in shapes:
            raise UserError(
                f"{path} has no dataset `{asked.dataset}` (it has {there}); name one with"
                " prepare.dataset=NAME."
            )
        return asked.dataset, ()
    for usual in (BETAS_DATASET, GLMSINGLE):
        if usual in shapes:
            return usual, ()
        nested = [name for name in shapes if name.endswith(f"/{usual}")]
        if len(nested) == 1:
            return nested[0], ()
    fitting = [
        name
        for name, found in shapes.items()
        if len(found.shape) in (2, 4) and found.dtype.kind in "fiu" and min(found.shape) > 0
    ]
    counted = (
        [
            name
            for name in fitting
            if asked.trials in (shapes[name].shape[0], shapes[name].shape[-1])
        ]
        if asked.trials
        else []
    )
    several = counted or fitting
    if len(several) != 1:
        raise UserError(
            f"{path} has no dataset `{BETAS_DATASET}` (it has {there}); name the responses with"
            " prepare.dataset=NAME."
        )
    return several[0], (
        f"{path.name}: the dataset `{several[0]}` is taken, the only one that fits",
    )


def read_hdf5(file: Named, asked: ReadRequest) -> ScanSource:
    """An HDF5 file: the dataset that is asked for, `betas`, GLMsingle's `betasmd`, bdpy's form, or
    the only dataset that fits.
    """
    refuse_stand_in(file.path, GUIDE)
    with as_sentence(f"{file.path} cannot be opened as HDF5", GUIDE):
        opened = h5py.File(file.path, "r")
    if written_by_matlab(opened):
        name = largest({key: i.shape for key, i in _datasets(opened).items()})
        raise UserError(
            f"{file.path} was written by Matlab, whose HDF5 has its axes in reverse; turn them"
            ' round: python -c "import h5py, numpy as np; '
            f"np.save('{file.path.stem}.npy', h5py.File('{file.path.name}')['{name}'][()].T)\"."
        )
    if {"dataset", "metadata"} <= set(opened) and not asked.dataset:
        from braingen.data.ingest.forms.bdpy import read_bdpy

        return read_bdpy(file, opened)
    shapes = {name: item for name, item in _datasets(opened).items() if item.ndim}
    name, notes = _pick(file.path, shapes, asked)
    dataset = shapes[name]
    _refuse_cut(file.path, dataset)

    def take(index: Any) -> np.ndarray:
        with as_sentence(f"{file.path} is damaged: `{name}` cannot be read", GUIDE):
            return dataset[index]

    form = "GLMsingle" if name == GLMSINGLE else "HDF5"
    source = _source(file, form, dataset, take, asked)
    if form == "GLMsingle":
        source = source._replace(
            order_N=design_order(file.path), notes=(*source.notes, *_type_note(file.path))
        )
    return with_arrays_beside(source._replace(notes=(*source.notes, *notes)), shapes, name)


def _datasets(opened: h5py.File) -> dict[str, h5py.Dataset]:
    found: dict[str, h5py.Dataset] = {}
    opened.visititems(
        lambda name, item: found.update({name: item}) if isinstance(item, h5py.Dataset) else None
    )
    return found


def _refuse_cut(path: Path, dataset: h5py.Dataset) -> None:
    offset = dataset.id.get_offset()
    if (
        dataset.chunks is None
        and offset is not None
        and os.path.getsize(path) < offset + dataset.dtype.itemsize * dataset.size
    ):
        raise UserError(f"{path} is cut short; copy it again.")
