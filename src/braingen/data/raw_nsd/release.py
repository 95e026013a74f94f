"""The raw release of NSD as `prepare` reads it, with betas in volumes of 1.8 mm."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from braingen.data import nsd
from braingen.data.hdf5 import HDF5Rows
from braingen.data.pictures import fit_picture
from braingen.data.places import Places
from braingen.data.raw_nsd.betas import GET_RAW, read_betas
from braingen.data.raw_nsd.coco import coco_captions, find_coco
from braingen.data.raw_nsd.masks import RegionMask, visual_areas
from braingen.data.raw_nsd.trials import NSDDesign, read_trials
from braingen.data.scans import ScanImages, Scans, Statistics
from braingen.data.volumes import NSDGENERAL, VoxelPlaces, load_nifti, space_of, with_joined_areas
from braingen.runtime.data_layout import subject_name
from braingen.runtime.errors import UserError
from braingen.runtime.files import refuse_stand_in

STIMULI_DATASET = "imgBrick"


class RawNSD(Scans):
    """A folder with NSD's own files.

    Parameters
    ----------
    root : Path
        Folder that holds nsddata, nsddata_betas and nsddata_stimuli.
    betas : str
        Version of the betas.
    mask : str
        Voxels that are kept; see `RegionMask`.
    order : Any
        "C" or "F" In which order the voxels of the mask are written (`data/volumes.py`).
    coco : Path or None
        Folder of COCO's captions; None looks for it in the root.
    zscore : str
        Over which training trials responses are z-scored; auto is the session, as MindEye2's.
    """

    called = "NSD"
    get_it = GET_RAW
    format = 1
    grows = False
    drops_voxels = False  # nsdgeneral's width names the subject
    space = "func1pt8mm"
    """Folder of the betas."""

    def __init__(
        self,
        root: Path,
        betas: str,
        mask: str,
        order: Any,
        coco: Path | None = None,
        zscore: Statistics = "auto",
    ) -> None:
        self.root, self.version, self.order = root, betas, order
        self.mask = RegionMask.of(mask)
        self._coco = coco
        self.statistics: Statistics = "session" if zscore == "auto" else zscore
        self.origin = f"raw NSD ({betas}), voxels with {self.mask.rule}, {order} order"

    # -- where things are -------------------------------------------------------------------------

    def data(self, subject: int) -> Path:
        """The subject's folder in functional space of 1.8 mm."""
        return self.root / "nsddata" / "ppdata" / subject_name(subject) / "func1pt8mm"

    def betas_folder(self, subject: int) -> Path:
        """Folder of the subject's betas."""
        folder = self.root / "nsddata_betas" / "ppdata" / subject_name(subject)
        return folder / self.space / self.version

    @property
    def stimuli(self) -> Path:
        """The pictures."""
        return self.root / "nsddata_stimuli" / "stimuli" / "nsd" / "nsd_stimuli.hdf5"

    @property
    def experiment(self) -> Path:
        """Folder of what all subjects share."""
        return self.root / "nsddata" / "experiments" / "nsd"

    def prepare_for(self, subjects: Sequence[int]) -> None:
        pass

    def subjects(self) -> tuple[int, ...]:
        folder = self.root / "nsddata" / "ppdata"
        return tuple(s for s in nsd.SUBJECTS if (folder / subject_name(s)).is_dir())

    # -- trials -----------------------------------------------------------------------------------

    @cached_property
    def _design(self) -> NSDDesign:
        return NSDDesign(self.experiment / "nsd_expdesign.mat")

    def trials(self, subject: int, num_sessions: int) -> np.ndarray:
        path = self.data(subject).parent / "behav" / "responses.tsv"
        behav = read_trials(path, subject)
        session_T = behav[:, nsd.SESSION]
        sessions = int(session_T.max(initial=0))
        if num_sessions > sessions:
            raise UserError(
                f"--num_sessions is {num_sessions}, {path} has {sessions}: ask for at most "
                f"{sessions}, or 0 for all."
            )
        shown, pictures = behav[:, nsd.IMAGE] + 1, self.pictures.number
        self._design.check(subject, shown, path, self.stimuli, pictures)
        behav[:, nsd.IS_SHARED] = np.isin(behav[:, nsd.IMAGE], self._design.shared)
        return behav[session_T <= num_sessions] if num_sessions else behav

    # -- voxels -----------------------------------------------------------------------------------

    def places(self, subject: int) -> VoxelPlaces:
        path, rois = Path(self.mask.volume), self.data(subject) / "roi"
        if not self.mask.volume.endswith((".nii", ".nii.gz")):
            path = rois / f"{self.mask.volume}.nii.gz"
            if rois.is_dir() and not path.exists():
                found = sorted(p.name.removesuffix(".nii.gz") for p in rois.glob("*.nii.gz"))
                raise UserError(
                    f"There is no region volume {path} (there: {', '.join(found) or 'nothing'}); "
                    f"name one of these with --mask, or {GET_RAW}."
                )
        image = load_nifti(path)
        values = np.asanyarray(image.dataobj)
        mask = self.mask.inside(values)
        if mask.ndim != 3 or not mask.any():
            there = np.unique(values)
            shown = ", ".join(f"{value:g}" for value in there[:8])
            more = ", ..." if len(there) > 8 else ""
            raise UserError(
                f"{path}: no voxel has {self.mask.rule} (its values: {shown}{more}); give a mask "
                "with voxels in it."
            )
        return VoxelPlaces(mask, self.order, image.affine, self.origin, space_of(image))

    def candidates(self, subject: int) -> tuple[int, int]:
        places = self.places(subject)
        return places.voxels, places.mask.size

    def regions(
        self, subject: int, places: Places | None, kept_V: np.ndarray
    ) -> dict[str, np.ndarray]:
        assert isinstance(places, VoxelPlaces)
        rois = self.data(subject) / "roi"
        general, areas = (
            places.read(rois / f"{name}.nii.gz") for name in ("nsdgeneral", "prf-visualrois")
        )
        return with_joined_areas({"nsd_general": general > 0, **visual_areas(areas)})

    def volumes(self, subject: int) -> Mapping[str, Path]:
        folder = self.data(subject)
        found = {name: folder / "roi" / f"{name}.nii.gz" for name in nsd.ROI_VOLUMES}
        found |= {name: folder / f"{name}.nii.gz" for name in nsd.PRF_VOLUMES}
        return {name: path for name, path in found.items() if path.exists()}

    # -- responses --------------------------------------------------------------------------------

    def session_files(self, subject: int, session: int) -> list[Path]:
        folder = self.betas_folder(subject)
        stem = folder / f"betas_session{session:02d}"
        for path in (Path(f"{stem}.hdf5"), Path(f"{stem}.nii.gz")):
            if path.exists():
                return [refuse_stand_in(path, GET_RAW)]
        other = folder.parents[1] / "fsaverage" / self.version
        if not folder.is_dir() and other.is_dir():
            raise UserError(
                f"{stem}.hdf5 (or .nii.gz) is missing, but there are betas on fsaverage ({other}): "
                "take those with --space fsaverage."
            )
        there = {int(path.name[13:15]) for path in folder.glob("betas_session[0-9][0-9].*")}
        first = next((k for k in range(1, session + 1) if k not in there), session) - 1
        fewer = f", or take the first ones with --num_sessions {first}" if first else ""
        raise UserError(f"{stem}.hdf5 (or .nii.gz) is missing; {GET_RAW}{fewer}.")

    def responses(
        self, subject: int, session: int, trials: int, places: Places | None
    ) -> Iterator[np.ndarray]:
        assert isinstance(places, VoxelPlaces)
        return read_betas(self.session_files(subject, session)[0], trials, places)

    # -- pictures, captions, summary --------------------------------------------------------------

    @cached_property
    def _bricks(self) -> HDF5Rows:
        return picture_rows(self.stimuli)

    @property
    def pictures(self) -> ScanImages:
        return ScanImages(len(self._bricks), (self.stimuli,))

    def images(self, first: int, last: int, side: int) -> np.ndarray:
        found = self._bricks.take(np.arange(first, last))
        return np.stack([fit_picture(picture, side) for picture in found])

    def captions(self) -> dict[int, list[str]]:
        info = self.experiment / "nsd_stim_info_merged.csv"
        return coco_captions(info, self._coco or find_coco(self.root))

    def notes(self, subject: int) -> list[str]:
        places, path = self.places(subject), self.data(subject) / "roi" / NSDGENERAL
        voxels = places.voxels
        notes = [f"mask {self.mask.rule}: {voxels} of {places.mask.size} voxels"]
        if not path.exists():
            return notes
        inside = np.asanyarray(load_nifti(path).dataobj) > 0
        outside = int((places.mask & ~inside).sum())
        if outside > voxels / 2:
            notes.append(
                f"{outside} of the {voxels} voxels lie outside nsdgeneral ({int(inside.sum())} "
                "voxels): this is the cortical ribbon or more, not visual cortex (nsdgeneral is 1 "
                "there, 0 elsewhere in cortex, -1 outside; its voxels are those above 0)"
            )
        return notes

    def who(self, subject: int) -> dict[str, Any]:
        shown = "NSD's shared1000"
        return {"label": subject_name(subject), "sessions": {}, "test pictures": shown}


def picture_rows(path: Path) -> HDF5Rows:
    """Pictures of an HDF5 file, read by row.

    Raises
    ------
    UserError
        When they are of another type or shape.
    """
    rows = HDF5Rows(path, STIMULI_DATASET, GET_RAW)
    if len(rows.shape) != 4 or rows.shape[3] != 3 or rows.dtype != np.uint8:
        raise UserError(
            f"{path}: `{STIMULI_DATASET}` is {rows.dtype} of shape {rows.shape}, uint8 (pictures, "
            f"height, width, 3) was expected; {GET_RAW}."
        )
    return rows


def is_raw_nsd(root: Path) -> bool:
    """Whether a folder looks like NSD's release."""
    return (root / "nsddata").is_dir() or (root / "nsddata_betas").is_dir()
