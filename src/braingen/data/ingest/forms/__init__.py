"""Forms in which responses come: one reader per form, in one registry.

A new form is a module with a reader (`Named, Asked -> Source`) and a line below.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from braingen.data.ingest.forms.arrays import read_hdf5, read_npy, read_npz
from braingen.data.ingest.forms.base import Asked, Part, Reader, Source
from braingen.data.ingest.forms.surfaces import read_gifti, read_mgh
from braingen.data.ingest.forms.volumes import read_nifti
from braingen.data.ingest.names import Named
from braingen.errors import UserError


class Form(NamedTuple):
    """A form of responses."""

    title: str
    pattern: re.Pattern[str]
    """Names of its files."""
    reader: Reader


_RESPONSES = r"(_|^)(betas|statmap)"
FORMS: tuple[Form, ...] = (
    Form("GLMsingle", re.compile(r"^TYPE[BCD]_\w+\.hdf5$"), read_hdf5),
    Form("GLMsingle (pickled)", re.compile(r"^TYPE[BCD]_\w+\.npy$"), read_npy),
    Form("NIfTI or CIFTI", re.compile(_RESPONSES + r"(\.(dscalar|dtseries))?\.nii(\.gz)?$"), read_nifti),
    Form("GIFTI", re.compile(_RESPONSES + r"(\.(func|shape))?\.gii(\.gz)?$"), read_gifti),
    Form("FreeSurfer", re.compile(_RESPONSES + r"\.mg[hz]$"), read_mgh),
    Form("NumPy", re.compile(_RESPONSES + r"\.npy$"), read_npy),
    Form("NumPy, several arrays", re.compile(_RESPONSES + r"\.npz$"), read_npz),
    Form("HDF5 (bdpy's too)", re.compile(_RESPONSES + r"\.(hdf5|h5)$"), read_hdf5),
)
RESPONSES = re.compile("|".join(f"(?:{form.pattern.pattern})" for form in FORMS))
"""Names of all forms."""
MATLAB = re.compile(_RESPONSES + r"\.mat$|^TYPE[BCD]_\w+\.mat$")


def read(file: Named, asked: Asked) -> Source:
    """Open responses in the form of the file's name.

    Raises
    ------
    UserError
        When the file is damaged or holds something else.
    """
    form = next(form for form in FORMS if form.pattern.search(file.path.name))
    return form.reader(file, asked)


def refuse_matlab(file: Named) -> UserError:
    """The sentence about a .mat file, with the line that converts it."""
    path = file.path
    with open(path, "rb") as handle:
        start = handle.read(516)
    is_hdf5 = start.startswith((b"MATLAB 7.3", b"\x89HDF")) or start[512:516] == b"\x89HDF"
    if is_hdf5:
        line = f"import h5py, numpy as np; np.save('{path.stem}.npy', h5py.File('{path.name}')['betas'][()].T)"
        more = "v7.3 is HDF5 with the axes in reverse, hence .T: trials must come first (or x, y, z, trials)"
    else:
        line = f"import scipy.io, numpy as np; np.save('{path.stem}.npy', scipy.io.loadmat('{path.name}')['betas'])"
        more = "trials must come first (or x, y, z, trials)"
    return UserError(f'{path} is a Matlab file, which is not read; convert it beside itself with: python -c "{line}" ({more}).')


__all__ = ["FORMS", "MATLAB", "RESPONSES", "Asked", "Form", "Part", "Source", "read", "refuse_matlab"]
