"""What `prepare` asks of scans, wherever they come from: the raw release of NSD (`raw_nsd.py`) or
anybody's own (`ingest/`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np

from braingen.data.places import Places

Statistics = Literal["auto", "session", "subject", "none"]


class ScanImages(NamedTuple):
    """The pictures that were shown."""

    number: int
    """Image ids run from 0 to this number less 1."""
    sources: tuple[Path, ...]
    """Files they are read from."""


class Scans(Protocol):
    """Scans to be prepared. T trials of a subject in order of presentation, V voxels inside the
    mask, S side of a picture in pixels.
    """

    root: Path
    """The folder."""
    called: str
    """What tables call data made from them."""
    origin: str
    """Where they come from, for order.json and the manifest."""
    get_it: str
    """What a user does about a missing file; ends sentences."""
    format: int
    """Raised when the same scans and settings come to mean other data."""
    grows: bool
    """Whether subjects, sessions and pictures may come later, so that numbers are kept in tables of
    the data folder.
    """
    drops_voxels: bool
    """Whether voxels without a signal are left out; else they are refused."""
    statistics: Statistics
    """Over which trials responses are z-scored."""

    @property
    def pictures(self) -> ScanImages:
        """The pictures there are."""

    def subjects(self) -> tuple[int, ...]:
        """Numbers of the people there are."""

    def prepare_for(self, subjects: Sequence[int]) -> None:
        """Look at what the subjects that are asked for bring; called before anything else
        of them.
        """

    def trials(self, subject: int, num_sessions: int) -> np.ndarray:
        """T x 17, float64, columns `nsd.BEHAV_COLUMNS` of the first sessions (0: all); sessions
        count from 1, is_shared1000 marks tests.
        """

    def places(self, subject: int) -> Places | None:
        """Where the voxels inside the mask lie; None where nobody knows."""

    def candidates(self, subject: int) -> tuple[int, int]:
        """Voxels inside the mask (0 where only the files say), and voxels there are."""

    def regions(
        self, subject: int, places: Places | None, kept_V: np.ndarray
    ) -> dict[str, np.ndarray]:
        """Boolean vectors over the voxels that are kept, by name; `places` are theirs."""

    def volumes(self, subject: int) -> Mapping[str, Path]:
        """Further volumes to keep beside the mask: name in the layout -> file."""

    def session_files(self, subject: int, session: int) -> list[Path]:
        """Files that hold the responses of a session (from 1), in the order of trials; refused in a
        sentence where one is missing.
        """

    def responses(
        self, subject: int, session: int, trials: int, places: Places | None
    ) -> Iterator[np.ndarray]:
        """Responses of a session, a few trials at a time: (some trials) x V, float64, in the unit
        of the source.
        """

    def signs(self, subject: int) -> tuple[str, ...]:
        """What speaks for a time series in the headers of the files."""

    def is_array(self, subject: int) -> bool:
        """Whether responses are columns of an array, among which labels may hide."""

    def images(self, first: int, last: int, side: int) -> np.ndarray:
        """Pictures first..last-1: x 3 x S x S, uint8."""

    def exchanged(self) -> set[int]:
        """Images of the data folder whose pictures are other ones now."""

    def captions(self) -> dict[int, list[str]] | None:
        """Captions by image id; None where there are none."""

    def caption_file(self) -> Path | None:
        """The file they come from, where changes of it are to be noticed."""

    def sources(self, subject: int) -> list[Path]:
        """Files whose change is noticed by the next call; none for scans that are published and do
        not change.
        """

    def tables(self, root: Path) -> list[Path]:
        """Write the tables of who is who into the data folder; nothing for scans whose numbers are
        published.
        """

    def notes(self, subject: int) -> list[str]:
        """What was done and left out, for the summary."""

    def who(self, subject: int) -> dict[str, Any]:
        """label, sessions (number -> label), runs, left_out, form, test pictures, captions: for the
        summary.
        """
