"""Arrays that lie beside the responses in a file: an order of trials is compared with the events,
the others are named.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from braingen.data.ingest.forms.base import ScanSource

_PICTURES = ("stim_file", "stimulus", "stimuli", "image", "images", "image_id", "image_ids")
_CONDITIONS = ("stimorder", "condition", "conditions", "label", "labels")
_ORDERS = (*_PICTURES, *_CONDITIONS)
"""Names of vectors that say which picture a trial shows."""


def with_arrays_beside(source: ScanSource, arrays: Mapping[str, Any], name: str) -> ScanSource:
    """A source that knows the order of trials beside it, and notes arrays that are not used.

    Parameters
    ----------
    source : ScanSource
        The responses.
    arrays : mapping of str to array
        All arrays of their file: NumPy's, or HDF5 datasets.
    name : str
        The one that holds the responses.
    """
    if source.form == "GLMsingle":  # its other arrays are known: R2, HRFindex, noise pool
        return source
    others = {other: array for other, array in arrays.items() if other != name}
    fitting = [
        other
        for other, array in others.items()
        if _last(other) in _ORDERS and array.shape in _vectors(source.trials)
    ]
    order = fitting[0] if source.order_N is None and fitting else ""
    if order:
        values = np.asarray(others[order][()]).ravel()
        if values.dtype.kind in "OS":  # HDF5's text comes as bytes
            values = np.array([v.decode() if isinstance(v, bytes) else str(v) for v in values])
        source = source._replace(
            order_N=values,
            order_name=f"`{order}` of the file",
            names_pictures=_last(order) in _PICTURES,
        )
    unused = [other for other in others if other != order]
    if not unused:
        return source
    shown = ", ".join(unused[:4]) + (f" and {len(unused) - 4} more" if len(unused) > 4 else "")
    note = f"{source.files[0].name}: arrays beside `{name}` that are not used: {shown}"
    return source._replace(notes=(*source.notes, note))


def _last(name: str) -> str:
    return name.rpartition("/")[2].lower()


def _vectors(trials: int) -> tuple[tuple[int, ...], ...]:
    return (trials,), (trials, 1), (1, trials)
