"""What `prepare` asks of scans, wherever they come from: the raw release of NSD (`raw_nsd.py`) or anybody's own (`own_scans.py`)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np

from braingen.data.volumes import VoxelPlaces


class Pictures(NamedTuple):
    """The pictures that were shown."""

    number: int
    """Image ids run from 0 to this number less 1."""
    sources: tuple[Path, ...]
    """Files they are read from."""


class Scans(Protocol):
    """Scans to be prepared. T trials of a subject in order of presentation, V voxels, S side of a picture in pixels."""

    called: str
    """What tables call data made from them."""
    origin: str
    """Where they come from, for order.json and the manifest."""
    get_it: str
    """What a user does about a missing file; ends sentences."""

    @property
    def pictures(self) -> Pictures:
        """The pictures there are."""

    def subjects(self) -> tuple[int, ...]:
        """Numbers of the people there are."""

    def trials(self, subject: int, num_sessions: int) -> np.ndarray:
        """T x 17, float64, columns `nsd.BEHAV_COLUMNS` of the first sessions (0: all); sessions count from 1, is_shared1000 marks tests."""

    def places(self, subject: int) -> VoxelPlaces | None:
        """Where the voxels lie; None where nobody knows."""

    def regions(self, subject: int, places: VoxelPlaces | None, voxels: int) -> dict[str, np.ndarray]:
        """Boolean vectors (V,) by name."""

    def volumes(self, subject: int) -> Mapping[str, Path]:
        """Further volumes to keep beside the mask: name in the layout -> file."""

    def session_files(self, subject: int, session: int) -> list[Path]:
        """Files that hold the responses of a session (from 1), in the order of trials; refused in a sentence where one is missing."""

    def responses(self, subject: int, session: int, trials: int, places: VoxelPlaces | None) -> Iterator[np.ndarray]:
        """Responses of a session, a few trials at a time: (some trials) x V, float64, in the unit of the source."""

    def images(self, first: int, last: int, side: int) -> np.ndarray:
        """Pictures first..last-1: x 3 x S x S, uint8."""

    def captions(self) -> dict[int, list[str]] | None:
        """Captions by image id; None where there are none."""
