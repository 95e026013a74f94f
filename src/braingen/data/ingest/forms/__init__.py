"""Forms in which responses come: one reader per form, in one registry.

A new form is a module with a reader (`Named, ReadRequest -> ScanSource`) and a line in `FORMS`;
`prepare`, `decode` and `doctor` read the registry (docs/extending.md).
"""

from __future__ import annotations

import importlib
from pathlib import Path
import re
from typing import NamedTuple

from braingen.data.ingest.forms import matlab
from braingen.data.ingest.forms.base import Reader, ReadRequest, ScanPart, ScanSource
from braingen.data.ingest.names import Named
from braingen.runtime.errors import UserError

_RESPONSES = r"(_|^)(betas|statmap)"
_GLMSINGLE = r"^TYPE[BCD]_\w+"
_HERE = "braingen.data.ingest.forms"


class Form(NamedTuple):
    """A form of responses."""

    endings: tuple[str, ...]
    """Of its files, from the first dot that belongs to the form: .func.gii."""
    where: str
    """Its reader, ``module:function``."""
    names: str = _RESPONSES
    """Pattern of what stands before the ending."""

    @property
    def pattern(self) -> str:
        """Pattern of the names of its files."""
        return f"{self.names}({'|'.join(map(re.escape, self.endings))})$"


FORMS: dict[str, Form] = {
    "GLMsingle": Form((".hdf5",), f"{_HERE}.arrays:read_hdf5", _GLMSINGLE),
    "GLMsingle (pickled)": Form((".npy",), f"{_HERE}.arrays:read_npy", _GLMSINGLE),
    "NIfTI": Form((".nii", ".nii.gz"), f"{_HERE}.volumes:read_nifti"),
    "CIFTI": Form((".dscalar.nii", ".dtseries.nii"), f"{_HERE}.volumes:read_nifti"),
    "GIFTI": Form(
        tuple(f"{kind}.gii{gz}" for kind in (".func", ".shape", "") for gz in (".gz", "")),
        f"{_HERE}.surfaces:read_gifti",
    ),
    "FreeSurfer": Form((".mgh", ".mgz"), f"{_HERE}.surfaces:read_mgh"),
    "NumPy": Form((".npy",), f"{_HERE}.arrays:read_npy"),
    "NumPy, several arrays": Form((".npz",), f"{_HERE}.arrays:read_npz"),
    "HDF5 (bdpy's too)": Form((".hdf5", ".h5"), f"{_HERE}.arrays:read_hdf5"),
}
"""By title."""
RESPONSES = re.compile("|".join(f"(?:{form.pattern})" for form in FORMS.values()))
"""Names of all forms."""
MATLAB = re.compile(_RESPONSES + r"\.mat$|^TYPE[BCD]_\w+\.mat$")
UNREAD = re.compile(_RESPONSES + r"(\+\w+)?(\.[A-Za-z]\w*)+$")
"""Names of responses, whatever their ending."""
ENDINGS = tuple(
    sorted(
        {ending for form in FORMS.values() for ending in form.endings},
        key=lambda ending: (-len(ending), ending),
    )
)
"""Endings of all forms, longer ones first."""


def ending_of(path: Path) -> str:
    """The ending that a form has, or the file's own."""
    return next((ending for ending in ENDINGS if path.name.endswith(ending)), path.suffix)


def form_of(path: Path) -> str:
    """Title of the form of a file, by its name, or by its ending alone; empty for none."""
    for name in (path.name, f"betas{ending_of(path)}"):
        for title, form in FORMS.items():
            if re.search(form.pattern, name):
                return title
    return ""


def reader_of(title: str) -> Reader:
    """The function that opens files of a form.

    Raises
    ------
    UserError
        When the line of the form names a function that does not exist.
    """
    module, _, function = FORMS[title].where.partition(":")
    try:
        found: Reader = getattr(importlib.import_module(module), function)
    except (ModuleNotFoundError, AttributeError) as error:
        if isinstance(error, ModuleNotFoundError) and error.name != module:
            raise
        raise UserError(
            f"The line of the form '{title}' names {FORMS[title].where}, which does not exist: "
            f"correct the line, or add {module.replace('.', '/')}.py with {function}."
        ) from error
    return found


def read(file: Named, asked: ReadRequest) -> ScanSource:
    """Open responses in the form of the file's name.

    Raises
    ------
    UserError
        When the file is damaged or holds something else.
    """
    return reader_of(form_of(file.path))(file, asked)


def refuse_matlab(file: Named) -> UserError:
    """The sentence about a .mat file, with the line that converts it."""
    path = file.path
    name, is_hdf5 = matlab.variable_of(path)
    if is_hdf5:
        line = (
            f"import h5py, numpy as np; np.save('{path.stem}.npy',"
            f" h5py.File('{path.name}')['{name}'][()].T)"
        )
        more = (
            "v7.3 is HDF5 with the axes in reverse, hence .T: trials must come first (or x, y, z,"
            " trials)"
        )
    else:
        line = (
            f"import scipy.io, numpy as np; np.save('{path.stem}.npy',"
            f" scipy.io.loadmat('{path.name}')['{name}'])"
        )
        more = "trials must come first (or x, y, z, trials)"
    return UserError(
        f"{path} is a Matlab file, which is not read; convert it beside itself with: python -c"
        f' "{line}" ({more}).'
    )


__all__ = [
    "ENDINGS",
    "FORMS",
    "MATLAB",
    "RESPONSES",
    "UNREAD",
    "Form",
    "ReadRequest",
    "ScanPart",
    "ScanSource",
    "ending_of",
    "form_of",
    "read",
    "reader_of",
    "refuse_matlab",
]
