"""Paths inside a data folder.

The layout is the one distributed with MindEye2 (Hugging Face dataset `pscotti/mindeyev2`) and
reused by MoRE-Brain. A simulated data folder has the same names with other sizes. Nothing is opened
here.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

DEFAULT_ROOT = Path("data/NSD")


def subject_name(subject: int) -> str:
    """Name of a subject in paths and HDF5 groups: `subj01`."""
    return f"subj{subject:02d}"


class Layout(NamedTuple):
    """Paths inside one data folder. Nothing is opened here."""

    root: Path
    """The data folder, `data/NSD` by default."""

    @classmethod
    def of(cls, root: str | Path = DEFAULT_ROOT) -> Layout:
        """Return the layout of a folder given as text or path (`~` is expanded)."""
        return cls(Path(root).expanduser())

    def wds_train(self, subject: int, session: int) -> Path:
        """Tar of one session's training trials (shared1000 excluded); sessions count from 0."""
        return self.root / "wds" / subject_name(subject) / "train" / f"{session}.tar"

    def wds_test(self, subject: int, which: str = "new_test") -> Path:
        """Tar of all test trials: `new_test` (all shared1000 trials), or the older `test`."""
        return self.root / "wds" / subject_name(subject) / which / "0.tar"

    def betas(self, subject: int) -> Path:
        """HDF5 with dataset `betas` (trials, voxels)."""
        return self.root / f"betas_all_{subject_name(subject)}_fp32_renorm.hdf5"

    def images(self) -> Path:
        """HDF5 with dataset `images` (N, 3, 224, 224), float16 in [0, 1]."""
        return self.root / "coco_images_224_float16.hdf5"

    def features(self) -> Path:
        """HDF5 with features of simulated scenes in place of images (simulation.world=hard)."""
        return self.root / "scene_features.hdf5"

    def captions(self) -> Path:
        """JSON {"<73k id>": [five captions]} (MoRE-Brain)."""
        return self.root / "coco_captions.json"

    def captions_mindeye2(self) -> Path:
        """MindEye2's array of captions (73000, 5), used where there is no JSON."""
        return self.root / "COCO_73k_annots_curated.npy"

    def masks(self) -> Path:
        """HDF5 with one group per subject of boolean region vectors."""
        return self.root / "brain_region_masks.hdf5"

    def volumes(self, subject: int) -> Path:
        """Folder of region and pRF volumes in functional space, with order.json (ours)."""
        return self.root / "volumes" / subject_name(subject)

    def truth(self, subject: int) -> Path:
        """Ground truth of a simulated subject."""
        return self.root / "truth" / f"{subject_name(subject)}.npz"

    def prepared(self) -> Path:
        """Manifest of `braingen prepare`: sources, and checksums of the written files."""
        return self.root / "prepared.json"

    def cache(self) -> Path:
        """Folder of cached results (trial tables, voxel checks, image digests), beside the data."""
        return self.root / ".braingen"
