"""Anybody's own scans, found by BIDS-style names: responses per trial, tables of events, pictures, a mask.

    sub-01_ses-02[_run-03]..._events.tsv      a line per trial in the order of the responses; column stim_file, as BIDS has it
    sub-01_ses-02[_run-03]..._betas.nii.gz    x, y, z, trials; or .npy, .hdf5 (dataset `betas`): trials, voxels
    sub-01..._mask.nii.gz                     which voxels are kept (needed for NIfTI betas)
    sub-01..._label-V1_mask.nii.gz            regions (optional)
    stimuli/                                  the pictures
    captions.json                             {stim_file: [captions]} (optional)

anywhere below one folder. Sessions and runs are taken in the order of their labels.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property
import hashlib
import math
from pathlib import Path
import re
from typing import Any, NamedTuple

import nibabel
import numpy as np
import pandas as pd

from braingen.arrays import read_npy
from braingen.data import nsd
from braingen.data.hdf5 import Rows
from braingen.data.large_files import blocks
from braingen.data.pictures import load_picture
from braingen.data.scans import Pictures
from braingen.data.volumes import VoxelPlaces, load_nifti, space_of, trials_in_nifti
from braingen.errors import UserError
from braingen.files import refuse_stand_in
from braingen.text_files import read_json
from braingen.untrusted import path_below

GUIDE = "docs/data.md describes the files under 'Your own scans'"
BETAS = re.compile(r"_(betas|statmap)\.(nii|nii\.gz|npy|hdf5|h5)$")
EVENTS = re.compile(r"_events\.(tsv|csv)$")
MASK = re.compile(r"_mask\.(nii|nii\.gz)$")
TRIALS_AT_ONCE = 50
_NIFTI = (".nii", ".gz")
_TEST = ("test", "shared", "validation")


class Named(NamedTuple):
    """A file with the entities of its name."""

    path: Path
    entities: dict[str, str]

    def of(self, entity: str) -> str:
        """Value of an entity, empty where the name has none."""
        return self.entities.get(entity, "")


class Session(NamedTuple):
    """A session of a subject."""

    label: str
    events: list[Named]
    """By run."""
    betas: list[Named]


def entities_of(path: Path) -> dict[str, str]:
    """The ``key-value`` parts of a BIDS-style name, those of its folders included."""
    parts = [part for name in (*path.parts[:-1], path.name.partition(".")[0]) for part in name.split("_")]
    return dict(part.split("-", 1) for part in parts if re.fullmatch(r"[a-z]+-[A-Za-z0-9]+", part))


def _natural(text: str) -> list[Any]:
    """Sorts run-2 before run-10."""
    return [(1, int(part), "") if part.isdecimal() else (0, 0, part) for part in re.findall(r"\d+|\D+", text)]


class OwnScans:
    """Scans of one's own.

    Parameters
    ----------
    root
        Folder of everything.
    mask
        Label or path of the mask whose voxels are kept; empty for the one mask without a label.
    order
        In which order the voxels of a mask are written one after the other: "C" or "F"; arrays keep theirs.
    test_images
        File with the test pictures, one stim_file a line; None for the column `split` of the events, or else a share drawn by name.
    test_share
        That share.
    """

    called = "own scans"
    get_it = GUIDE

    def __init__(self, root: Path, mask: str, order: Any, test_images: Path | None, test_share: float) -> None:
        self.root, self.mask, self.order = root, mask, order
        self._test_file, self._test_share = test_images, test_share
        self.origin = f"own scans in {root.name}" + (f", mask {mask}" if mask else "")
        if not root.is_dir():
            raise UserError(f"The folder of scans {root} does not exist; name yours with --scans.")

    @cached_property
    def _files(self) -> list[Named]:
        paths = sorted(path for path in self.root.rglob("sub-*") if path.is_file() and not path.name.startswith("."))
        return [Named(path, entities_of(path.relative_to(self.root))) for path in paths]

    def _matching(self, pattern: re.Pattern[str], label: str = "") -> list[Named]:
        return [file for file in self._files if pattern.search(file.path.name) and (not label or file.of("sub") == label)]

    @cached_property
    def _labels(self) -> dict[int, str]:
        """Number of every subject -> its label."""
        labels = sorted({file.of("sub") for file in self._matching(EVENTS)}, key=_natural)
        if not labels:
            raise UserError(f"{self.root} holds no table of events (sub-01_ses-01_events.tsv): {GUIDE}.")
        if not all(label.isdecimal() for label in labels):
            return dict(enumerate(labels, start=1))
        if len({int(label) for label in labels}) < len(labels):
            raise UserError(f"{self.root}: subjects {', '.join(labels)} have the same number twice; rename one of them.")
        return {int(label): label for label in labels}

    def subjects(self) -> tuple[int, ...]:
        return tuple(self._labels)

    def _sessions(self, subject: int) -> list[Session]:
        label = self._labels[subject]
        events, betas = self._matching(EVENTS, label), self._matching(BETAS, label)
        found = []
        for name in sorted({file.of("ses") for file in events}, key=_natural):
            runs = sorted((file for file in events if file.of("ses") == name), key=lambda file: _natural(file.of("run")))
            responses = sorted((file for file in betas if file.of("ses") == name), key=lambda file: _natural(file.of("run")))
            found.append(Session(name, runs, responses))
        return found

    # -- trials ---------------------------------------------------------------------------------------------------

    @cached_property
    def _tables(self) -> dict[Path, pd.DataFrame]:
        return {file.path: _events(file.path) for file in self._matching(EVENTS)}

    @cached_property
    def _names(self) -> list[str]:
        """Every stim_file of every subject: its place in the list is the image id."""
        return sorted({name for table in self._tables.values() for name in table["stim_file"]})

    @cached_property
    def _test_names(self) -> set[str]:
        names = self._names
        if self._test_file is not None:
            path = refuse_stand_in(self._test_file, "name a text file with one stim_file a line")
            listed = {line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()}
            unknown = sorted(listed - set(names))
            if unknown:
                raise UserError(f"{path} names {unknown[0]} ({len(unknown)} such), which no table of events has as stim_file; correct it.")
            return listed
        split = [(name, side) for t in self._tables.values() if "split" in t for name, side in zip(t["stim_file"], t["split"])]
        if split:
            testing = {name for name, side in split if str(side).lower() in _TEST}
            both = sorted(testing & {name for name, side in split if str(side).lower() not in _TEST})
            if both:
                raise UserError(
                    f"{both[0]} ({len(both)} such) is a test picture in some events and a training picture in others: scores would be "
                    "worthless; give every picture one `split`."
                )
            return testing
        by_lottery = sorted(names, key=lambda name: hashlib.sha256(name.encode()).digest())
        return set(by_lottery[: max(1, math.ceil(self._test_share * len(names)))])

    def trials(self, subject: int, num_sessions: int) -> np.ndarray:
        sessions = self._sessions(subject)
        if num_sessions > len(sessions):
            raise UserError(
                f"--num_sessions is {num_sessions}, subject {subject} has {len(sessions)}: ask for at most so many, or 0 for all."
            )
        image_of = {name: image for image, name in enumerate(self._names)}
        column = {name: index for index, name in enumerate(nsd.BEHAV_COLUMNS)}
        parts = []
        for number, session in enumerate(sessions[: num_sessions or None], start=1):
            for run, file in enumerate(session.events, start=1):
                table = self._tables[file.path]
                behav = np.full((len(table), len(column)), -1.0)
                values: dict[str, Any] = {
                    "image": [image_of[name] for name in table["stim_file"]],
                    "subject": subject,
                    "session": number,
                    "run": run,
                    "trial": np.arange(1, len(table) + 1),
                    "is_shared1000": [name in self._test_names for name in table["stim_file"]],
                }
                for name, source, factor in (("time", "onset", 1), ("rt", "response_time", 1000)):
                    if source in table:
                        values[name] = pd.to_numeric(table[source], errors="coerce").fillna(-1 / factor) * factor
                for name, value in values.items():
                    behav[:, column[name]] = value
                parts.append(behav)
        behav = np.concatenate(parts)
        behav[:, column["global_trial"]] = np.arange(len(behav))
        return behav

    # -- voxels ---------------------------------------------------------------------------------------------------

    def _masks(self, subject: int) -> dict[str, Path]:
        return {file.of("label") or file.of("desc"): file.path for file in self._matching(MASK, self._labels[subject])}

    def places(self, subject: int) -> VoxelPlaces | None:
        masks = self._masks(subject)
        if self.mask and Path(self.mask).suffix in _NIFTI:
            path: Path | None = Path(self.mask)
        elif self.mask:
            path = masks.get(self.mask)
            if path is None:
                raise UserError(f"Subject {subject} has no mask with the label {self.mask} (there: {', '.join(masks) or 'none'}); {GUIDE}.")
        else:
            path = next((masks[label] for label in ("", "brain", "nsdgeneral") if label in masks), None)
        if path is None:
            return None
        image = load_nifti(path)
        mask = np.asanyarray(image.dataobj) > 0
        if mask.ndim != 3 or not mask.any():
            raise UserError(f"{path} has no voxel above 0 in a volume of three axes (shape {mask.shape}); give the mask of the responses.")
        return VoxelPlaces(mask, self.order, image.affine, self.origin, space_of(image))

    def regions(self, subject: int, places: VoxelPlaces | None, voxels: int) -> dict[str, np.ndarray]:
        regions = {"nsd_general": np.ones(voxels, dtype=bool)}
        if places is not None:
            masks = self._masks(subject)
            regions |= {label: places.read(masks[label]) > 0 for label in sorted(masks) if label and Path(self.mask) != masks[label]}
            areas = [regions[name] for name in ("V1", "V2", "V3", "V4") if name in regions]
            if areas:
                regions["early_vis"] = np.any(areas, axis=0)
                regions["higher_vis"] = ~regions["early_vis"]
        return regions

    def volumes(self, subject: int) -> Mapping[str, Path]:
        return {}

    def session_files(self, subject: int, session: int) -> list[Path]:
        found = self._sessions(subject)[session - 1]
        where = f"sub-{self._labels[subject]}" + (f"_ses-{found.label}" if found.label else "")
        if not found.betas:
            raise UserError(f"{self.root} holds no responses of {where} ({where}_betas.nii.gz, .npy or .hdf5); {GUIDE}.")
        if len(found.betas) > 1 and [file.of("run") for file in found.betas] != [file.of("run") for file in found.events]:
            runs = (", ".join(file.of("run") or "none" for file in files) for files in (found.betas, found.events))
            raise UserError(
                "{}: the responses are of runs {}, the events of runs {}; give one file a run, or one a session.".format(where, *runs)
            )
        return [refuse_stand_in(file.path, GUIDE) for file in found.betas]

    def responses(self, subject: int, session: int, trials: int, places: VoxelPlaces | None) -> Iterator[np.ndarray]:
        files = self.session_files(subject, session)
        events = self._sessions(subject)[session - 1].events
        expected = [trials] if len(files) == 1 else [len(self._tables[file.path]) for file in events]
        for path, count in zip(files, expected):
            yield from _nifti(path, count, places) if path.suffix in _NIFTI else _array(path, count)

    # -- pictures and captions ------------------------------------------------------------------------------------

    def _picture(self, name: str, source: Path) -> Path:
        """File of a picture that a table names: below stimuli/, or below the folder itself; never outside of it."""
        below = path_below(self.root, name, source), path_below(self.root, f"stimuli/{name}", source)
        return next((path for path in reversed(below) if path.exists()), below[1])

    @cached_property
    def _named_in(self) -> dict[str, Path]:
        """stim_file -> a table that names it."""
        return {name: path for path, table in self._tables.items() for name in table["stim_file"]}

    @cached_property
    def pictures(self) -> Pictures:
        paths = tuple(self._picture(name, self._named_in[name]) for name in self._names)
        missing = [path for path in paths if not path.exists()]
        if missing:
            raise UserError(f"{missing[0]} is missing ({len(missing)} of {len(paths)} pictures are), but the events name it; {GUIDE}.")
        return Pictures(len(paths), paths)

    def images(self, first: int, last: int, side: int) -> np.ndarray:
        return np.stack([load_picture(path, side, GUIDE) for path in self.pictures.sources[first:last]])

    def captions(self) -> dict[int, list[str]] | None:
        path = next((p for p in (self.root / "captions.json", self.root / "stimuli" / "captions.json") if p.exists()), None)
        if path is None:
            return None
        found = read_json(path, GUIDE)
        try:
            texts = {name: [str(text).strip() for text in ([given] if isinstance(given, str) else given)] for name, given in found.items()}
        except (ValueError, AttributeError, TypeError) as error:
            raise UserError(f"{path} is not {{stim_file: [captions]}} ({' '.join(str(error).split())}); {GUIDE}.") from error
        without = [name for name in self._names if not any(texts.get(name, []))]
        if without:
            raise UserError(
                f"{path} has no caption for {without[0]} ({len(without)} such); add them, or leave captions out with --no-captions."
            )
        return {image: [text for text in texts[name] if text] for image, name in enumerate(self._names)}


def _events(path: Path) -> pd.DataFrame:
    """Trials with a picture, in order."""
    refuse_stand_in(path, GUIDE)
    try:
        table = pd.read_csv(path, sep="\t" if path.suffix == ".tsv" else ",", na_values=["n/a"], dtype={"stim_file": str})
    except (ValueError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not a table ({' '.join(str(error).split())}); {GUIDE}.") from error
    if "stim_file" not in table:
        raise UserError(f"{path} has no column stim_file (it has {', '.join(map(str, table.columns))}); {GUIDE}.")
    table = table[table["stim_file"].notna()].reset_index(drop=True)
    if not len(table):
        raise UserError(f"{path} names no picture in its column stim_file; {GUIDE}.")
    return table


def _refuse_count(path: Path, found: int, trials: int) -> None:
    if found != trials:
        raise UserError(
            f"{path} holds responses to {found} trials, its events name a picture in {trials}: they do not belong together; {GUIDE}."
        )


def _array(path: Path, trials: int) -> Iterator[np.ndarray]:
    if path.suffix == ".npy":
        array = read_npy(path, GUIDE)
        take = array.__getitem__
    else:
        rows = Rows(path, nsd.BETAS_DATASET, GUIDE)
        array, take = rows, rows.take  # type: ignore[assignment]
    if len(array.shape) != 2 or array.dtype.kind not in "fiu":
        raise UserError(f"{path} is {array.dtype} of shape {array.shape}, numbers of (trials, voxels) were expected; {GUIDE}.")
    _refuse_count(path, array.shape[0], trials)
    for first, last in blocks(trials, TRIALS_AT_ONCE):
        yield np.asarray(take(np.arange(first, last))).astype(np.float64)


def _nifti(path: Path, trials: int, places: VoxelPlaces | None) -> Iterator[np.ndarray]:
    if places is None:
        raise UserError(f"{path} is a volume, but there is no mask that says which voxels to take (sub-01_mask.nii.gz); {GUIDE}.")

    def check(image: nibabel.Nifti1Image) -> None:
        if len(image.shape) != 4 or image.shape[:3] != places.mask.shape or not np.allclose(image.affine, places.affine, atol=1e-4):
            raise UserError(
                f"{path} has shape {image.shape}, {(*places.mask.shape, trials)} in the space of the mask was expected; resample one "
                "of the two."
            )
        _refuse_count(path, image.shape[3], trials)

    yield from trials_in_nifti(path, places, check, TRIALS_AT_ONCE, GUIDE)
