"""Facts of the Natural Scenes Dataset, each stated once, and where its files lie under a data
folder.

The layout is the one distributed with MindEye2 (Hugging Face dataset `pscotti/mindeyev2`) and
reused by MoRE-Brain. A simulated data folder has the same names with other sizes, so readers take
sizes from the files, never from here.
"""

from __future__ import annotations

from pathlib import Path

from braingen.runtime.text_files import read_json

WRITE_IT = "write it with `braingen prepare` or `braingen simulate`"
"""What a user does about a missing or damaged file of ours; ends sentences."""
GET_IT = f"get it from the Hugging Face dataset pscotti/mindeyev2, or {WRITE_IT}"
"""What a user does about a missing or damaged file of the distributed layout; ends sentences."""


def fitting_advice(text: str, root: Path) -> str:
    """A message whose advice fits the data folder: one made from own scans is not downloaded, it is
    prepared again.
    """
    try:
        made_from = read_json(root / "prepared.json")["data"]
    except (OSError, ValueError, KeyError, TypeError):
        return text
    if made_from != "own scans":
        return text
    again = (
        f"write it again from your scans with `braingen prepare --scans SCANS --data_path {root}`"
    )
    return text.replace(GET_IT, again).replace(WRITE_IT, again)


EMBEDDING_DATASET = "embedding"
"""Name of the embedding in the features of simulated scenes without pictures."""
SUBJECTS = (1, 2, 3, 4, 5, 6, 7, 8)
SESSIONS = {1: 40, 2: 40, 3: 32, 4: 30, 5: 40, 6: 32, 7: 40, 8: 30}
"""Scan sessions per subject."""
VOXELS = {1: 15724, 2: 14278, 3: 15226, 4: 13153, 5: 13039, 6: 17907, 7: 12682, 8: 14386}
"""Voxels inside `nsdgeneral` at 1.8 mm: all different, so the width of a file or weight names its
subject.
"""
TRIALS_PER_SESSION = 750
PRESENTATIONS = 3
"""Times an image was meant to be shown to a subject; those with fewer sessions saw some images less
often.
"""
IMAGES = 73000
TEST_TRIALS = {"new_test": {1: 3000, 2: 3000, 3: 2371, 4: 2188, 5: 3000, 6: 2371, 7: 3000, 8: 2188}}
"""Trials of the shared1000 images in `new_test/0.tar`."""

BEHAV_COLUMNS = (
    "image",  # 0-based id in the 73k images
    "subject",
    "session",
    "run",
    "trial",
    "global_trial",  # 0-based row of the betas file
    "time",
    "is_old",
    "is_correct",
    "rt",
    "change_mind",
    "is_old_current",
    "is_correct_current",
    "total1",
    "total2",
    "button",
    "is_shared1000",
)
"""Columns of behav.npy, past_behav.npy, future_behav.npy and olds_behav.npy; -1 stands for
missing.
"""
IMAGE, SESSION, RUN, TRIAL, IS_SHARED = map(
    BEHAV_COLUMNS.index, ("image", "session", "run", "trial", "is_shared1000")
)
PAST, FUTURE, OLDS = 15, 15, 3
"""Rows of past_behav.npy, future_behav.npy and olds_behav.npy."""

BETAS_DATASET = "betas"
IMAGES_DATASET = "images"
SIMULATED_ATTRIBUTE = "simulated"
"""Attribute of the dataset `images` (True) by which a simulated data folder says that it is one."""
REGIONS = ("nsd_general", "V1", "V2", "V3", "V4", "early_vis", "higher_vis")
"""Boolean vectors of brain_region_masks.hdf5, one group per subject."""
ROI_VOLUMES = (
    "nsdgeneral",
    "prf-visualrois",
    "floc-faces",
    "floc-bodies",
    "floc-places",
    "floc-words",
)
PRF_VOLUMES = ("prf_eccentricity", "prf_angle", "prf_size")
VISUAL_ROI_LABELS = {"V1": (1, 2), "V2": (3, 4), "V3": (5, 6), "V4": (7,)}
"""Labels of prf-visualrois.nii.gz (ventral, dorsal; hV4 has one)."""
REGION_NAMES: dict[str, dict[str, tuple[int, ...]]] = {
    "prf-visualrois": {
        "V1v": (1,),
        "V1d": (2,),
        "V2v": (3,),
        "V2d": (4,),
        "V3v": (5,),
        "V3d": (6,),
        "hV4": (7,),
        "V1": (1, 2),
        "V2": (3, 4),
        "V3": (5, 6),
        "V4": (7,),
    },
    "floc-faces": {
        "OFA": (1,),
        "FFA-1": (2,),
        "FFA-2": (3,),
        "mTL-faces": (4,),
        "aTL-faces": (5,),
        "FFA": (2, 3),
    },
    "floc-bodies": {"EBA": (1,), "FBA-1": (2,), "FBA-2": (3,), "mTL-bodies": (4,), "FBA": (2, 3)},
    "floc-places": {"OPA": (1,), "PPA": (2,), "RSC": (3,)},
    "floc-words": {
        "OWFA": (1,),
        "VWFA-1": (2,),
        "VWFA-2": (3,),
        "mfs-words": (4,),
        "mTL-words": (5,),
        "VWFA": (2, 3),
    },
}
"""Names of the labels of NSD's region volumes (NSD data manual)."""


def subject_of_width(voxels: int) -> int | None:
    """The NSD subject whose nsdgeneral mask has so many voxels, or None."""
    return next((subject for subject, width in VOXELS.items() if width == voxels), None)
