"""Writing trials as NSD's tars: one sample per trial, its own row of the table with the rows around
it.

Equal input gives equal bytes: no times, no names of machines or processes.
"""

from __future__ import annotations

import io
from pathlib import Path
import tarfile

import numpy as np

from braingen.data import nsd
from braingen.runtime.files import replaced_file

NO_TRIALS = "no_training_trials"
"""Member of the tar of a session in which test pictures only were shown."""


def write_tar(path: Path, behav_T17: np.ndarray, trials: np.ndarray) -> None:
    """Write the samples of some trials as a tar in NSD's form.

    Parameters
    ----------
    path : Path
        Of the tar.
    behav_T17 : np.ndarray
        The subject's whole table, in order of presentation.
    trials : np.ndarray
        Rows of it that become samples.
    """
    if not len(trials):
        _write_empty(path)
        return
    session, image = (
        behav_T17[:, nsd.BEHAV_COLUMNS.index("session")],
        behav_T17[:, nsd.BEHAV_COLUMNS.index("image")],
    )
    by_image = np.argsort(image, kind="stable")
    first = np.searchsorted(image[by_image], image[trials], side="left")
    last = np.searchsorted(image[by_image], image[trials], side="right")
    with (
        replaced_file(path) as handle,
        tarfile.open(fileobj=handle, mode="w", format=tarfile.USTAR_FORMAT) as tar,
    ):
        for trial, low, high in zip(trials, first, last):
            begin, end = (
                np.searchsorted(session, session[trial], "left"),
                np.searchsorted(session, session[trial], "right"),
            )
            others = [other for other in by_image[low:high] if other != trial]
            arrays = {  # past and future stay inside the session
                "behav": behav_T17[[trial]],
                "past_behav": _padded(
                    behav_T17[max(begin, trial - nsd.PAST) : trial][::-1], nsd.PAST
                ),
                "future_behav": _padded(
                    behav_T17[trial + 1 : min(end, trial + 1 + nsd.FUTURE)], nsd.FUTURE
                ),
                "olds_behav": _padded(behav_T17[others[: nsd.OLDS]], nsd.OLDS),
            }
            for name, array in arrays.items():
                buffer = io.BytesIO()
                np.save(buffer, np.ascontiguousarray(array))
                member = tarfile.TarInfo(f"sample{trial:09d}.{name}.npy")
                member.size = buffer.tell()
                buffer.seek(0)
                tar.addfile(member, buffer)


def _write_empty(path: Path) -> None:
    """A tar of a session without training trials, which says so: a tar without samples may as well
    be damaged.
    """
    with (
        replaced_file(path) as handle,
        tarfile.open(fileobj=handle, mode="w", format=tarfile.USTAR_FORMAT) as tar,
    ):
        tar.addfile(tarfile.TarInfo(NO_TRIALS))


def _padded(rows: np.ndarray, length: int) -> np.ndarray:
    """Rows, nearest trial first, filled up with -1."""
    out = np.full((length, len(nsd.BEHAV_COLUMNS)), -1.0)
    out[: len(rows)] = rows
    return out
