"""NSD-synthetic and NSD-imagery in the raw release: sealed test sets of one session each.

Betas are those of NSD's volumes (int16, 300 to the percent), in the space of the subject's masks.
All trials are test trials; responses are z-scored over the trials of the set itself. Paths, the
order of runs and the pictures of the cues are from public descriptions and code that reads these
files; docs/data.md says what was not compared with the real files.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
from scipy.io import loadmat

from braingen.data import nsd
from braingen.data.hdf5 import HDF5Rows
from braingen.data.pictures import fit_picture, load_picture
from braingen.data.places import Places
from braingen.data.raw_nsd.betas import GET_RAW, read_betas
from braingen.data.raw_nsd.release import RawNSD, picture_rows
from braingen.data.scans import ScanImages, behav_of
from braingen.data.sealed import SealedSet
from braingen.data.volumes import VoxelPlaces
from braingen.runtime.data_layout import subject_name
from braingen.runtime.errors import UserError, as_sentence
from braingen.runtime.files import refuse_stand_in


class _OneSession(RawNSD):
    """A set of one session, whose betas lie beside those of NSD."""

    format = 1
    sealed = True
    experiment_name: ClassVar[str]
    """nsdsynthetic or nsdimagery: part of the names of folders and files."""
    betas_trials: ClassVar[int]
    """Trials in the file of betas."""

    @property
    def experiment(self) -> Path:
        return self.root / "nsddata" / "experiments" / self.experiment_name

    def betas_folder(self, subject: int) -> Path:
        folder = super().betas_folder(subject)
        return folder.with_name(f"{self.experiment_name}{folder.name}")

    def session_files(self, subject: int, session: int) -> list[Path]:
        stem = self.betas_folder(subject) / f"betas_{self.experiment_name}"
        for path in (Path(f"{stem}.hdf5"), Path(f"{stem}.nii.gz")):
            if path.exists():
                return [refuse_stand_in(path, GET_RAW)]
        raise UserError(f"{stem}.hdf5 (or .nii.gz) is missing; {GET_RAW}.")

    @abstractmethod
    def _shown(self, subject: int) -> pd.DataFrame:
        """Trials in order: columns row (of the betas), image, run and trial (from 1)."""

    def trials(self, subject: int, num_sessions: int) -> np.ndarray:
        shown = self._shown(subject)
        values: dict[str, Any] = {name: shown[name] for name in ("image", "run", "trial")}
        values |= {"subject": subject, "session": 1, "is_shared1000": 1}
        return behav_of(len(shown), values)

    def responses(
        self, subject: int, session: int, trials: int, places: Places | None
    ) -> Iterator[np.ndarray]:
        assert isinstance(places, VoxelPlaces)
        row, first = self._shown(subject)["row"].to_numpy(), 0
        path = self.session_files(subject, session)[0]
        for block in read_betas(path, self.betas_trials, places):
            wanted = row[(row >= first) & (row < first + len(block))]
            if len(wanted):
                yield block[wanted - first]
            first += len(block)

    def captions(self) -> None:  # type: ignore[override]
        """Nobody has described these pictures."""

    def who(self, subject: int) -> dict[str, Any]:
        return super().who(subject) | {"test pictures": f"the sealed set {self.called}"}


class NSDSynthetic(_OneSession):
    """NSD-synthetic: 284 pictures in 744 trials; the last 64 are coloured for each subject.

    Image ids: 0 to 219 the shared pictures, then 64 for each of the eight subjects.
    """

    called = "NSD-synthetic"
    experiment_name = "nsdsynthetic"
    betas_trials = 744
    _RUNS, _COLOURED = 8, 64

    @property
    def stimuli(self) -> Path:
        folder = self.root / "nsddata_stimuli" / "stimuli" / "nsdsynthetic"
        return folder / "nsdsynthetic_stimuli.hdf5"

    @cached_property
    def _parts(self) -> list[HDF5Rows]:
        """Shared pictures, then those of every subject."""
        names = [f"nsdsynthetic_colorstimuli_{subject_name(s)}.hdf5" for s in nsd.SUBJECTS]
        coloured = [picture_rows(self.stimuli.with_name(name)) for name in names]
        for rows in coloured:
            if len(rows) != self._COLOURED:
                raise UserError(
                    f"{rows.path} has {len(rows)} pictures, {self._COLOURED} were expected; "
                    f"{GET_RAW}."
                )
        return [self._bricks, *coloured]

    @property
    def pictures(self) -> ScanImages:
        return ScanImages(sum(map(len, self._parts)), (self.stimuli,))

    def images(self, first: int, last: int, side: int) -> np.ndarray:
        starts = np.cumsum([0, *map(len, self._parts)])
        found = []
        for image in range(first, last):
            part = int(np.searchsorted(starts, image, side="right")) - 1
            picture = self._parts[part].take(np.array([image - starts[part]]))[0]
            found.append(fit_picture(picture, side))
        return np.stack(found)

    def _shown(self, subject: int) -> pd.DataFrame:
        path = refuse_stand_in(self.experiment / "nsdsynthetic_expdesign.mat", GET_RAW)
        with as_sentence(f"{path} cannot be read as the design of NSD-synthetic", GET_RAW):
            order = np.asarray(loadmat(path)["masterordering"]).ravel().astype(np.int64) - 1
        shared = len(self._bricks)
        if len(order) != self.betas_trials or order.min() < 0:
            raise UserError(
                f"{path} has {len(order)} trials of pictures from {order.min() + 1}, "
                f"{self.betas_trials} of pictures from 1 were expected; {GET_RAW}."
            )
        if order.max() >= shared + self._COLOURED:
            raise UserError(
                f"{path} names pictures up to {order.max() + 1}, there are {shared} in "
                f"{self.stimuli} and {self._COLOURED} of the subject; {GET_RAW}."
            )
        own = order >= shared
        row, per_run = np.arange(len(order)), self.betas_trials // self._RUNS
        image = order + own * (subject - 1) * self._COLOURED
        runs = {"run": row // per_run + 1, "trial": row % per_run + 1}
        return pd.DataFrame({"row": row, "image": image, **runs})


class NSDImagery(_OneSession):
    """NSD-imagery: the pictures of sets A (bars) and B (photographs), seen or imagined.

    Set C has words instead of pictures, and in the attention runs letters were detected; both are
    left out.
    """

    experiment_name = "nsdimagery"
    betas_trials = 720
    runs: ClassVar[tuple[str, ...]]
    """Runs of the set."""
    _ORDER = (
        "visA", "attA", "imgA_1", "visB", "attB", "imgB_1",
        "visC", "attC", "imgC_1", "imgA_2", "imgB_2", "imgC_2",
    )  # fmt: skip
    _PER_RUN = 48
    """Trials of a run; those of attention runs have two betas each."""
    _PICTURES: Mapping[str, str] = {
        "H": "bar_000.0deg_450L_43W.png",
        "R": "bar_045.0deg_450L_43W.png",
        "V": "bar_090.0deg_450L_43W.png",
        "L": "bar_135.0deg_450L_43W.png",
        "P": "crs_000.0deg_450L_43W.png",
        "E": "crs_045.0deg_450L_43W.png",
        "W": "shared0385_nsd28752.png",
        "K": "shared0413_nsd30857.png",
        "B": "shared0741_nsd53882.png",
        "C": "shared0842_nsd61178.png",
        "D": "shared0907_nsd65873.png",
        "T": "shared0000_nsd00000.png",
    }
    """Letter of the cue (column CONDITION) -> picture, in the order of image ids."""

    @property
    def stimuli(self) -> Path:
        return self.experiment / "rawtargetimages"

    @cached_property
    def _paths(self) -> tuple[Path, ...]:
        there = {path.name: path for path in sorted(self.stimuli.rglob("*.png"))}
        absent = [name for name in self._PICTURES.values() if name not in there]
        if absent:
            raise UserError(
                f"{self.stimuli} has no {absent[0]} ({len(absent)} such), the picture of a cue; "
                f"{GET_RAW}."
            )
        return tuple(there[name] for name in self._PICTURES.values())

    @property
    def pictures(self) -> ScanImages:
        return ScanImages(len(self._paths), self._paths)

    def images(self, first: int, last: int, side: int) -> np.ndarray:
        return np.stack([load_picture(p, side, GET_RAW) for p in self._paths[first:last]])

    def _shown(self, subject: int) -> pd.DataFrame:
        counts = [self._PER_RUN * (2 if name.startswith("att") else 1) for name in self._ORDER]
        first = dict(zip(self._ORDER, np.cumsum([0, *counts])))
        trial = np.arange(self._PER_RUN)
        parts = []
        for run, name in enumerate(self._ORDER, start=1):
            if name in self.runs:
                image, row = self._images_of_run(subject, name), first[name] + trial
                place = {"run": run, "trial": trial + 1}
                parts.append(pd.DataFrame({"row": row, "image": image, **place}))
        return pd.concat(parts, ignore_index=True)

    def _images_of_run(self, subject: int, run: str) -> Sequence[int]:
        folder = self.root / "nsddata" / "bdata" / "nsdimagery"
        path = folder / f"nsdimagery_{subject_name(subject)}_{run}.tsv"
        refuse_stand_in(path, GET_RAW)
        with as_sentence(f"{path} is not a table with a column CONDITION", GET_RAW):
            cues = pd.read_csv(path, sep="\t", dtype=str)["CONDITION"].str.strip().tolist()
        known = list(self._PICTURES)
        unknown = [cue for cue in cues if cue not in known]
        if unknown or len(cues) != self._PER_RUN:
            also = f", among them {unknown[0]!r}, which is no cue of a picture" if unknown else ""
            raise UserError(
                f"{path} has {len(cues)} trials{also}; {self._PER_RUN} with cues of "
                f"{', '.join(known)} were expected; {GET_RAW}."
            )
        return [known.index(cue) for cue in cues]


class NSDImageryVision(NSDImagery):
    """The runs in which pictures were seen."""

    called = "NSD-imagery (vision)"
    runs = ("visA", "visB")


class NSDImageryImagery(NSDImagery):
    """The runs in which pictures were imagined, cued by a letter."""

    called = "NSD-imagery (imagery)"
    runs = ("imgA_1", "imgB_1", "imgA_2", "imgB_2")


READERS: dict[SealedSet, type[_OneSession]] = {
    "nsdsynthetic": NSDSynthetic,
    "nsdimagery_vision": NSDImageryVision,
    "nsdimagery_imagery": NSDImageryImagery,
}
