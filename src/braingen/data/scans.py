"""What `prepare` needs of scans: of the raw release of NSD (`raw_nsd.py`), or of own scans."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from braingen.data import nsd
from braingen.data.places import Places

Statistics = Literal["auto", "session", "subject", "none"]


class ScanImages(NamedTuple):
    """The pictures that were shown."""

    number: int
    """Image ids run from 0 to this number less 1."""
    sources: tuple[Path, ...]
    """Files they are read from."""


def behav_of(trials: int, columns: Mapping[str, Any]) -> np.ndarray:
    """(T, 17) float64: some columns of `nsd.BEHAV_COLUMNS`, rows of the betas, -1 elsewhere."""
    behav = np.full((trials, len(nsd.BEHAV_COLUMNS)), -1.0)
    for name, values in {**columns, "global_trial": np.arange(trials)}.items():
        behav[:, nsd.BEHAV_COLUMNS.index(name)] = values
    return behav


class Scans(ABC):
    """Scans to be prepared.

    T trials of a subject in order of presentation, V voxels inside the mask, K of them kept, S
    side of a picture in pixels.
    """

    root: Path
    """The folder."""
    called: str
    """Name of the kind of data, for tables."""
    origin: str
    """Where the scans come from, for order.json and the manifest."""
    get_it: str
    """What a user does about a missing file; ends sentences."""
    format: int
    """Raised when the same scans and settings come to mean other data."""
    grows: bool
    """Whether subjects, sessions and pictures may come later, with numbers kept in tables."""
    drops_voxels: bool
    """Whether voxels without a signal are left out; else they are refused."""
    sealed: bool = False
    """Whether all trials are test trials, z-scored over themselves (`data/sealed.py`)."""
    statistics: Statistics
    """Over which trials responses are z-scored."""

    @property
    @abstractmethod
    def pictures(self) -> ScanImages:
        """The pictures there are."""

    @abstractmethod
    def subjects(self) -> tuple[int, ...]:
        """Numbers of the subjects."""

    @abstractmethod
    def prepare_for(self, subjects: Sequence[int]) -> None:
        """Read the tables of the subjects; called before anything else of them."""

    @abstractmethod
    def trials(self, subject: int, num_sessions: int) -> np.ndarray:
        """(T, 17) float64, columns `nsd.BEHAV_COLUMNS`, of the first sessions (0: all).

        Sessions count from 1; is_shared1000 marks test trials.
        """

    @abstractmethod
    def places(self, subject: int) -> Places | None:
        """Places of the voxels inside the mask; None where not known."""

    @abstractmethod
    def candidates(self, subject: int) -> tuple[int, int]:
        """Number of voxels inside the mask, and of all voxels."""

    def columns(self, subject: int) -> np.ndarray | None:
        """(V,) columns of the arrays that hold the voxels; None for volumes."""
        return None

    @abstractmethod
    def regions(
        self, subject: int, places: Places | None, kept_V: np.ndarray
    ) -> dict[str, np.ndarray]:
        """(K,) bool by name of region; `places` are those of the kept voxels."""

    @abstractmethod
    def session_files(self, subject: int, session: int) -> list[Path]:
        """Files with the responses of a session (from 1), in the order of trials.

        Raises
        ------
        UserError
            When one is missing.
        """

    @abstractmethod
    def responses(
        self, subject: int, session: int, trials: int, places: Places | None
    ) -> Iterator[np.ndarray]:
        """Responses of a session in blocks of trials: (B, V) float64, in the unit of the source."""

    @abstractmethod
    def images(self, first: int, last: int, side: int) -> np.ndarray:
        """Pictures first to last - 1: (N, 3, S, S) uint8."""

    @abstractmethod
    def captions(self) -> dict[int, list[str]] | None:
        """Captions by image id; None where there are none."""

    @abstractmethod
    def notes(self, subject: int) -> list[str]:
        """What was done and left out, for the summary."""

    @abstractmethod
    def who(self, subject: int) -> dict[str, Any]:
        """Facts for the summary.

        Keys label, sessions (number -> label), runs, left_out, form, test pictures, captions.
        """

    def volumes(self, subject: int) -> Mapping[str, Path]:
        """Further volumes to keep beside the mask: name in the layout -> file."""
        return {}

    def signs(self, subject: int) -> tuple[str, ...]:
        """Evidence in the headers of the files that they hold a time series."""
        return ()

    def is_array(self, subject: int) -> bool:
        """Whether responses are columns of an array, some of which may be labels."""
        return False

    def exchanged(self) -> set[int]:
        """Images of the data folder whose pictures have changed."""
        return set()

    def caption_file(self) -> Path | None:
        """File of captions whose changes are noticed."""
        return None

    def sources(self, subject: int) -> list[Path]:
        """Files whose changes are noticed; none for published scans, which do not change."""
        return []

    def response_files(self, subject: int) -> list[Path]:
        """Files of responses among the sources."""
        return []

    def tables(self, root: Path) -> list[Path]:
        """Write the tables of numbers into the data folder; none for published numbers."""
        return []
