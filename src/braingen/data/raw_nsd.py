"""The raw release of NSD, as `aws s3 sync` leaves it: which files it has, in which order their axes run, from where they count.

What is easily got wrong: nsd_expdesign.mat and responses.tsv count pictures from 1; the HDF5 betas have the axes of the NIfTI ones in
reverse; both are integers, 300 to the percent of signal change; the 1000 shared pictures are for testing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pandas as pd
from scipy.io import loadmat

from braingen.data import nsd
from braingen.data.hdf5 import Rows
from braingen.data.large_files import blocks
from braingen.data.pictures import fit_picture
from braingen.data.places import Places
from braingen.data.scans import Pictures, Scans, Statistics
from braingen.data.volumes import NSDGENERAL, VoxelPlaces, load_nifti, space_of, trials_in_nifti, with_joined_areas
from braingen.errors import UserError
from braingen.files import refuse_stand_in
from braingen.text_files import read_json

GET_RAW = "get it from NSD's bucket (s3://natural-scenes-dataset, after accepting its terms), under the same path"
UNITS_PER_PERCENT = 300
"""Raw betas are percent signal change times this, as int16 (NSD data manual)."""
TRIALS_AT_ONCE = 25
STIMULI_DATASET = "imgBrick"
_COLUMNS = (  # of responses.tsv, in the order of nsd.BEHAV_COLUMNS; None is not in there
    "73KID", "SUBJECT", "SESSION", "RUN", "TRIAL", None, "TIME", "ISOLD", "ISCORRECT", "RT", "CHANGEMIND", "ISOLDCURRENT",
    "ISCORRECTCURRENT", "TOTAL1", "TOTAL2", "BUTTON", None,
)  # fmt: skip


class RawNSD(Scans):
    """A folder with NSD's own files.

    Parameters
    ----------
    root
        Folder that holds nsddata, nsddata_betas and nsddata_stimuli.
    betas
        Which version of the betas.
    mask
        Region volume whose voxels are kept: its name in roi/ (`nsdgeneral`), with labels (`prf-visualrois:1,2`), or the path of a NIfTI.
    order
        In which order the voxels of the mask are written one after the other: "C" or "F" (`data/volumes.py`).
    coco
        Folder with COCO's captions_train2017.json and captions_val2017.json; None looks for it in the root.
    zscore
        Over which training trials responses are z-scored; auto is the session, as MindEye2's.
    """

    called = "NSD"
    get_it = GET_RAW
    format = 1
    grows = False
    drops_voxels = False  # nsdgeneral's width names the subject

    def __init__(self, root: Path, betas: str, mask: str, order: Any, coco: Path | None = None, zscore: Statistics = "auto") -> None:
        self.root, self.version, self.mask, self.order = root, betas, mask, order
        self.region = _of_area(mask)
        self._coco = coco
        self.statistics: Statistics = "session" if zscore == "auto" else zscore
        self.origin = f"raw NSD ({betas}), voxels with {_explained(mask)}, {order} order"

    # -- where things are -----------------------------------------------------------------------------------------

    def data(self, subject: int) -> Path:
        """The subject's folder in functional space of 1.8 mm."""
        return self.root / "nsddata" / "ppdata" / nsd.subject_name(subject) / "func1pt8mm"

    def betas_folder(self, subject: int) -> Path:
        """Folder of the subject's betas."""
        return self.root / "nsddata_betas" / "ppdata" / nsd.subject_name(subject) / "func1pt8mm" / self.version

    @property
    def stimuli(self) -> Path:
        """The pictures."""
        return self.root / "nsddata_stimuli" / "stimuli" / "nsd" / "nsd_stimuli.hdf5"

    @property
    def experiment(self) -> Path:
        """Folder of what all subjects share."""
        return self.root / "nsddata" / "experiments" / "nsd"

    def prepare_for(self, subjects: Sequence[int]) -> None:
        """Everything is found where NSD has it."""

    def subjects(self) -> tuple[int, ...]:
        folder = self.root / "nsddata" / "ppdata"
        return tuple(s for s in nsd.SUBJECTS if (folder / nsd.subject_name(s)).is_dir())

    # -- which picture when ---------------------------------------------------------------------------------------

    @cached_property
    def _design(self) -> dict[str, np.ndarray]:
        path = refuse_stand_in(self.experiment / "nsd_expdesign.mat", GET_RAW)
        try:
            found = loadmat(path)
            return {name: np.asarray(found[name]).astype(np.int64) for name in ("masterordering", "subjectim", "sharedix")}
        except (ValueError, KeyError, TypeError, OSError, NotImplementedError) as error:
            raise UserError(
                f"{path} cannot be read as NSD's design (masterordering, subjectim, sharedix): {' '.join(str(error).split())}; {GET_RAW}."
            ) from error

    def trials(self, subject: int, num_sessions: int) -> np.ndarray:
        path = refuse_stand_in(self.data(subject).parent / "behav" / "responses.tsv", GET_RAW)
        try:
            table = pd.read_csv(path, sep="\t")
        except (ValueError, UnicodeDecodeError) as error:
            raise UserError(f"{path} is not a table ({' '.join(str(error).split())}); {GET_RAW}.") from error
        absent = [name for name in _COLUMNS if name and name not in table]
        if absent:
            raise UserError(f"{path} has no column {', '.join(absent)}, NSD's responses.tsv has; {GET_RAW}.")
        if (table["SUBJECT"] != subject).any():
            found = ", ".join(f"{s:g}" for s in sorted(table["SUBJECT"].unique()))
            raise UserError(f"{path} holds trials of subject {found}, subject {subject} was expected; {GET_RAW}.")
        session = table["SESSION"].to_numpy()
        if (np.diff(session) < 0).any() or session.min(initial=1) != 1 or len(np.unique(session)) != session.max(initial=1):
            raise UserError(f"{path}: the trials are not in order of sessions from 1 without a gap; {GET_RAW}.")
        sessions = int(session.max(initial=0))
        if num_sessions > sessions:
            raise UserError(f"--num_sessions is {num_sessions}, {path} has {sessions}: ask for at most {sessions}, or 0 for all.")
        self._check_design(subject, table["73KID"].to_numpy(), path)
        behav = np.full((len(table), len(_COLUMNS)), -1.0)
        for column, name in enumerate(_COLUMNS):
            if name:
                behav[:, column] = table[name].fillna(-1)
        behav[:, 0] -= 1  # pictures count from 1
        behav[:, nsd.BEHAV_COLUMNS.index("global_trial")] = np.arange(len(table))
        shared = self._design["sharedix"].ravel() - 1
        behav[:, nsd.BEHAV_COLUMNS.index("is_shared1000")] = np.isin(behav[:, 0], shared)
        return behav[session <= num_sessions] if num_sessions else behav

    def _check_design(self, subject: int, shown: np.ndarray, path: Path) -> None:
        """The table and the design tell the same story; one that counts otherwise would shift every picture."""
        order, pictures = self._design["masterordering"].ravel(), self._design["subjectim"]
        if not 1 <= subject <= len(pictures) or len(order) < len(shown) or order.max(initial=0) > pictures.shape[1]:
            raise UserError(
                f"{self.experiment / 'nsd_expdesign.mat'} describes {len(pictures)} subjects and {len(order)} trials, {path} has "
                f"{len(shown)} trials of subject {subject}: they do not belong together; {GET_RAW}."
            )
        planned = pictures[subject - 1, order[: len(shown)] - 1]
        wrong = np.flatnonzero(planned != shown)
        if len(wrong):
            raise UserError(
                f"{path}: trial {wrong[0]} shows picture {shown[wrong[0]]:g}, by nsd_expdesign.mat it is {planned[wrong[0]]} (both count "
                f"from 1; {len(wrong)} trials differ); {GET_RAW}."
            )
        if min(planned.min(initial=1), shown.min(initial=1)) < 1 or planned.max(initial=1) > self.pictures.number:
            raise UserError(f"{path} names pictures up to {planned.max():g}, {self.stimuli} has {self.pictures.number}; {GET_RAW}.")

    # -- voxels ---------------------------------------------------------------------------------------------------

    def places(self, subject: int) -> VoxelPlaces:
        name, _, labels = self.region.partition(":")
        path = Path(name) if name.endswith((".nii", ".nii.gz")) else self.data(subject) / "roi" / f"{name}.nii.gz"
        if not path.exists() and path.parent.is_dir() and path.parent.name == "roi":
            there = ", ".join(sorted(p.name.removesuffix(".nii.gz") for p in path.parent.glob("*.nii.gz"))) or "nothing"
            raise UserError(f"There is no region volume {path} (there: {there}); name one of these with --mask, or {GET_RAW}.")
        image = load_nifti(path)
        values = np.asanyarray(image.dataobj)
        mask = np.isin(values, _labels(labels, self.mask, name)) if labels else values > 0
        if mask.ndim != 3 or not mask.any():
            raise UserError(
                f"{path}: no voxel has {_explained(self.mask)} (its values: {_some_values(values)}); give a mask with voxels in it."
            )
        return VoxelPlaces(mask, self.order, image.affine, self.origin, space_of(image))

    def candidates(self, subject: int) -> tuple[int, int]:
        places = self.places(subject)
        return places.voxels, places.mask.size

    def regions(self, subject: int, places: Places | None, kept_V: np.ndarray) -> dict[str, np.ndarray]:
        assert isinstance(places, VoxelPlaces)
        general, areas = (self._vector(subject, name, places) for name in ("nsdgeneral", "prf-visualrois"))
        masks = {"nsd_general": general > 0}
        masks |= {name: np.isin(areas, labels) for name, labels in nsd.VISUAL_ROI_LABELS.items()}
        return with_joined_areas(masks)

    def _vector(self, subject: int, name: str, places: VoxelPlaces) -> np.ndarray:
        return places.read(self.data(subject) / "roi" / f"{name}.nii.gz")

    def volumes(self, subject: int) -> Mapping[str, Path]:
        found = {name: self.data(subject) / "roi" / f"{name}.nii.gz" for name in nsd.ROI_VOLUMES}
        found |= {name: self.data(subject) / f"{name}.nii.gz" for name in nsd.PRF_VOLUMES}
        return {name: path for name, path in found.items() if path.exists()}

    # -- responses ------------------------------------------------------------------------------------------------

    def session_files(self, subject: int, session: int) -> list[Path]:
        stem = self.betas_folder(subject) / f"betas_session{session:02d}"
        for ending in (".hdf5", ".nii.gz"):
            path = stem.with_name(stem.name + ending)
            if path.exists():
                return [refuse_stand_in(path, GET_RAW)]
        other = self.betas_folder(subject).parents[1] / "fsaverage" / self.version
        if not stem.parent.is_dir() and other.is_dir():
            raise UserError(
                f"{stem}.hdf5 (or .nii.gz) is missing, but there are betas on fsaverage ({other}): take those with --space fsaverage."
            )
        there = sorted(int(p.name[13:15]) for p in stem.parent.glob("betas_session[0-9][0-9].*"))
        first = next((k for k in range(1, session + 1) if k not in there), session) - 1
        fewer = f", or take the first ones with --num_sessions {first}" if first else ""
        raise UserError(f"{stem}.hdf5 (or .nii.gz) is missing; {GET_RAW}{fewer}.")

    def responses(self, subject: int, session: int, trials: int, places: Places | None) -> Iterator[np.ndarray]:
        assert isinstance(places, VoxelPlaces)
        (path,) = self.session_files(subject, session)
        read = _hdf5_blocks if path.suffix == ".hdf5" else _nifti_blocks
        for block in read(path, trials, places):
            yield block / UNITS_PER_PERCENT

    def _ribbon(self, subject: int) -> list[str]:
        """Whether a mask goes far beyond NSD's voxels that respond to pictures."""
        places, path = self.places(subject), self.data(subject) / "roi" / NSDGENERAL
        notes = [f"mask {_explained(self.mask)}: {places.voxels} of {places.mask.size} voxels"]
        if not path.exists():
            return notes
        inside = np.asanyarray(load_nifti(path).dataobj) > 0
        outside = int((places.mask & ~inside).sum())
        if outside > places.voxels / 2:
            notes.append(
                f"{outside} of the {places.voxels} voxels lie outside nsdgeneral ({int(inside.sum())} voxels): this is the cortical "
                "ribbon or "
                "more, not visual cortex (nsdgeneral is 1 there, 0 elsewhere in cortex, -1 outside; its voxels are those above 0)"
            )
        return notes

    def notes(self, subject: int) -> list[str]:
        return self._ribbon(subject)

    def who(self, subject: int) -> dict[str, Any]:
        return {"label": nsd.subject_name(subject), "sessions": {}, "test pictures": "NSD's shared1000"}

    # -- pictures and captions ------------------------------------------------------------------------------------

    @cached_property
    def _bricks(self) -> Rows:
        rows = Rows(self.stimuli, STIMULI_DATASET, GET_RAW)
        if len(rows.shape) != 4 or rows.shape[3] != 3 or rows.dtype != np.uint8:
            raise UserError(
                f"{self.stimuli}: `{STIMULI_DATASET}` is {rows.dtype} of shape {rows.shape}, uint8 (pictures, height, width, 3) was "
                f"expected; {GET_RAW}."
            )
        return rows

    @property
    def pictures(self) -> Pictures:
        return Pictures(len(self._bricks), (self.stimuli,))

    def images(self, first: int, last: int, side: int) -> np.ndarray:
        return np.stack([fit_picture(picture, side) for picture in self._bricks.take(np.arange(first, last))])

    def captions(self) -> dict[int, list[str]]:
        """The first five captions of every picture, in the order in which COCO numbers them."""
        info = refuse_stand_in(self.experiment / "nsd_stim_info_merged.csv", GET_RAW)
        try:
            table = pd.read_csv(info, usecols=["nsdId", "cocoId", "cocoSplit"])
        except (ValueError, UnicodeDecodeError) as error:
            raise UserError(f"{info} is not NSD's table of pictures ({' '.join(str(error).split())}); {GET_RAW}.") from error
        by_coco: dict[int, list[tuple[int, str]]] = {}
        for split in sorted(table["cocoSplit"].unique()):
            for note in _annotations(self._coco_folder() / f"captions_{split}.json"):
                by_coco.setdefault(int(note["image_id"]), []).append((int(note["id"]), str(note["caption"]).strip()))
        captions = {}
        for image, coco in zip(table["nsdId"], table["cocoId"]):  # nsdId counts from 0
            texts = [text for _, text in sorted(by_coco.get(int(coco), [])) if text][:5]
            if not texts:
                raise UserError(f"COCO picture {coco}, NSD's {image}, has no caption in {self._coco_folder()}: {_GET_COCO}.")
            captions[int(image)] = texts
        return captions

    def _coco_folder(self) -> Path:
        if self._coco is not None:
            return self._coco
        places = [self.root / "annotations", self.root / "coco" / "annotations", self.root / "coco"]
        return next((place for place in places if place.is_dir()), places[0])


_GET_COCO = (
    "get annotations_trainval2017.zip from https://cocodataset.org, unpack it and name its folder with prepare.coco=FOLDER, or leave "
    "captions out with --no-captions"
)


def _annotations(path: Path) -> list[dict[str, Any]]:
    refuse_stand_in(path, _GET_COCO)
    try:
        found = read_json(path)["annotations"]
        if not all({"image_id", "id", "caption"} <= set(note) for note in found):
            raise KeyError("image_id, id, caption")
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} does not hold COCO's captions ({' '.join(str(error).split())}); {_GET_COCO}.") from error
    return found


def _of_area(mask: str) -> str:
    """A mask that is the name of an area alone (V1, FFA-1), with the region volume it belongs to."""
    found = next((volume for volume, names in nsd.REGION_NAMES.items() if mask.lower() in {n.lower() for n in names}), None)
    return mask if found is None else f"{found}:{mask}"


def _labels(text: str, mask: str, volume: str) -> list[float]:
    names = {name.lower(): labels for name, labels in nsd.REGION_NAMES.get(volume, {}).items()}
    found: list[float] = []
    for label in text.split(","):
        try:
            found += names[label.strip().lower()] if label.strip().lower() in names else [float(label)]
        except ValueError:
            known = f", or names ({', '.join(nsd.REGION_NAMES[volume])})" if names else ""
            raise UserError(f"prepare.mask = {mask!r}: labels are numbers{known}, for instance prf-visualrois:1,2.") from None
    return found


def _explained(mask: str) -> str:
    name, _, labels = mask.partition(":")
    return f"{name} {'in ' + labels if labels else '> 0'}"


def _some_values(values: np.ndarray) -> str:
    found = np.unique(values)
    return ", ".join(f"{value:g}" for value in found[:8]) + (", ..." if len(found) > 8 else "")


def _check(path: Path, shape: tuple[int, ...], dtype: np.dtype, trials: int, places: VoxelPlaces) -> None:
    """Shape in the axes of the NIfTI: x, y, z, trials."""
    if shape != (*places.mask.shape, trials):
        raise UserError(
            f"{path} holds betas of shape {shape} (x, y, z, trials), {(*places.mask.shape, trials)} was expected by the mask and "
            f"responses.tsv: it is of another subject, space or session; {GET_RAW}."
        )
    if dtype.kind != "i":
        raise UserError(f"{path} holds {dtype}, integers ({UNITS_PER_PERCENT} to the percent of signal change) were expected; {GET_RAW}.")


def _hdf5_blocks(path: Path, trials: int, places: VoxelPlaces) -> Iterator[np.ndarray]:
    """A file whose axes run trials, z, y, x: those of the NIfTI in reverse, as Matlab writes them."""
    rows = Rows(path, nsd.BETAS_DATASET, GET_RAW)
    _check(path, rows.shape[::-1], rows.dtype, trials, places)
    x_V, y_V, z_V = places.indices_V3.T
    for first, last in blocks(trials, TRIALS_AT_ONCE):
        block = rows.take(np.arange(first, last))
        yield block[:, z_V, y_V, x_V].astype(np.float64)


def _nifti_blocks(path: Path, trials: int, places: VoxelPlaces) -> Iterator[np.ndarray]:
    """A file whose axes run x, y, z, trials."""

    def check(image: nibabel.Nifti1Image) -> None:
        _check(path, image.shape, image.get_data_dtype(), trials, places)
        slope, inter = (getattr(image.dataobj, name) for name in ("slope", "inter"))  # nibabel empties the header's own
        if (slope, inter) != (1, 0):
            raise UserError(f"{path} is scaled by its header ({slope:g}, {inter:g}), the numbers as stored were expected; {GET_RAW}.")

    yield from trials_in_nifti(path, places, check, TRIALS_AT_ONCE, GET_RAW)


def is_raw_nsd(root: Path) -> bool:
    """Whether a folder looks like NSD's release."""
    return (root / "nsddata").is_dir() or (root / "nsddata_betas").is_dir()
