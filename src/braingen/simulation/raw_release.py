"""Write a simulated NSD in the form of the raw release, from a simulated data folder.

Files, axes and counting are those of the release: images count from 1 in nsd_expdesign.mat and
responses.tsv, betas are int16 volumes, 300 to the percent, with reversed axes in HDF5, and there
are numbers outside the mask too. Prepared again, everything but the rounding of the betas to 1/300
percent is restored bit for bit.
"""

from __future__ import annotations

from collections.abc import Mapping
import json
from pathlib import Path
import shutil
from typing import Literal

import h5py
import nibabel
import numpy as np
import pandas as pd
from PIL import Image
from scipy.io import savemat

from braingen.data import nsd
from braingen.data.betas import Betas
from braingen.data.captions import load_captions
from braingen.data.raw_nsd.betas import UNITS_PER_PERCENT
from braingen.data.raw_nsd.release import STIMULI_DATASET, RawNSD
from braingen.data.stimuli import Stimuli
from braingen.data.trials import behav, sessions_on_disk, test_trials
from braingen.data.volumes import load_places
from braingen.runtime.data_layout import Layout

RAW_SIDE = 425
"""Pixels of NSD's stimuli."""
BETAS = "betas_fithrf_GLMdenoise_RR"
_COCO_STEP, _FIRST_COCO = 7, 1009
_COLUMNS = {  # of responses.tsv, from the columns of the tars
    "SUBJECT": "subject",
    "SESSION": "session",
    "RUN": "run",
    "TRIAL": "trial",
    "73KID": "image",
    "TIME": "time",
    "ISOLD": "is_old",
    "ISCORRECT": "is_correct",
    "RT": "rt",
    "CHANGEMIND": "change_mind",
    "ISOLDCURRENT": "is_old_current",
    "ISCORRECTCURRENT": "is_correct_current",
    "TOTAL1": "total1",
    "TOTAL2": "total2",
    "BUTTON": "button",
}


def write_raw_release(
    layout: Layout,
    root: Path,
    subjects: Mapping[int, Literal["hdf5", "nii.gz"]],
    side: int = RAW_SIDE,
    seed: int = 0,
) -> RawNSD:
    """Write a raw release of a simulated data folder, as input of `braingen prepare`.

    Parameters
    ----------
    layout : Layout
        The simulated data folder.
    root : Path
        Of the raw release.
    subjects : Mapping[int, Literal['hdf5', 'nii.gz']]
        Number -> form of the betas; the design covers all subjects up to the largest.
    side : int, optional
        Of the stimuli in pixels.
    seed : int, optional
        Of baseline and scale of the voxels, and of values outside the mask.

    Returns
    -------
    RawNSD
        The raw release, opened for reading.
    """
    raw = RawNSD(root, BETAS, "nsdgeneral", "C")
    tables = {subject: _table(layout, subject) for subject in subjects}
    _write_design(layout, raw, tables)
    _write_pictures(layout, raw, side)
    for subject, form in subjects.items():
        _write_responses(raw, subject, tables[subject])
        _copy_volumes(layout, raw, subject)
        _write_betas(
            layout, raw, subject, tables[subject], form, np.random.default_rng([seed, subject])
        )
    return raw


def _table(layout: Layout, subject: int) -> pd.DataFrame:
    """All trials of a subject in order of presentation."""
    paths = [
        layout.wds_train(subject, session) for session in sessions_on_disk(layout, subject)
    ] + [layout.wds_test(subject)]
    table = pd.DataFrame(
        np.concatenate([behav(layout, subject, path) for path in paths]),
        columns=list(nsd.BEHAV_COLUMNS),
    )
    return table.sort_values("global_trial").reset_index(drop=True)


def _write_design(layout: Layout, raw: RawNSD, tables: Mapping[int, pd.DataFrame]) -> None:
    first = next(iter(tables.values()))
    # images are numbered within a subject in the first subject's order, the same for all
    _, seen, place = np.unique(first["image"], return_index=True, return_inverse=True)
    rank = np.argsort(np.argsort(seen))
    order = rank[place] + 1
    pictures = np.zeros((max(tables), order.max()), dtype=np.int64)
    for subject, table in tables.items():
        pictures[subject - 1, order - 1] = table["image"].astype(np.int64) + 1
    shared = np.unique(test_trials(layout, next(iter(tables))).table["image"].to_numpy()) + 1
    raw.experiment.mkdir(parents=True, exist_ok=True)
    path = raw.experiment / "nsd_expdesign.mat"
    savemat(
        path,
        {
            "masterordering": order[None].astype(float),
            "subjectim": pictures.astype(float),
            "sharedix": shared[None].astype(float),
        },
    )


def _write_responses(raw: RawNSD, subject: int, table: pd.DataFrame) -> None:
    out = pd.DataFrame({name: table[column] for name, column in _COLUMNS.items()})
    out["73KID"] += 1
    out.insert(5, "10KID", pd.factorize(table["image"])[0] + 1)
    out["MISSINGDATA"] = 0
    path = raw.data(subject).parent / "behav" / "responses.tsv"
    path.parent.mkdir(parents=True, exist_ok=True)
    out.replace(-1, np.nan).to_csv(path, sep="\t", index=False)


def _copy_volumes(layout: Layout, raw: RawNSD, subject: int) -> None:
    folder = raw.data(subject)
    (folder / "roi").mkdir(parents=True, exist_ok=True)
    for path in sorted(layout.volumes(subject).glob("*.nii.gz")):
        shutil.copyfile(
            path, (folder if path.name.startswith("prf_") else folder / "roi") / path.name
        )


def _write_betas(
    layout: Layout,
    raw: RawNSD,
    subject: int,
    table: pd.DataFrame,
    form: str,
    rng: np.random.Generator,
) -> None:
    """Convert responses to percent signal change, with voxel baselines and scales."""
    places, betas = load_places(layout, subject), Betas.of(layout, subject)
    raw.betas_folder(subject).mkdir(parents=True, exist_ok=True)
    for session in sorted(table["session"].unique().astype(int)):
        rows = table["global_trial"][table["session"] == session].to_numpy().astype(np.int64)
        percent = betas.rows(rows) * rng.uniform(0.8, 2.5, betas.voxels) + rng.normal(
            1, 0.5, betas.voxels
        )
        volume = rng.integers(-900, 900, (*places.mask.shape, len(rows)), dtype=np.int16)
        volume[places.mask] = 0
        volume += places.to_volume(np.rint(percent.T * UNITS_PER_PERCENT).astype(np.int16))
        path = raw.betas_folder(subject) / f"betas_session{session:02d}.{form}"
        if form == "hdf5":
            with h5py.File(path, "w") as file:
                file.create_dataset(
                    nsd.BETAS_DATASET, data=volume.T, chunks=(1, *volume.shape[2::-1])
                )  # as Matlab writes it
        else:
            nibabel.save(nibabel.Nifti1Image(volume, places.affine), path)


def _write_pictures(layout: Layout, raw: RawNSD, side: int) -> None:
    stimuli, captions = Stimuli(layout), load_captions(layout)
    raw.stimuli.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(raw.stimuli, "w") as file:
        bricks = file.create_dataset(
            STIMULI_DATASET, (len(stimuli), side, side, 3), np.uint8, chunks=(1, side, side, 3)
        )
        for image in range(len(stimuli)):
            picture = (
                np.rint(stimuli.images(np.array([image]))[0] * 255)
                .astype(np.uint8)
                .transpose(1, 2, 0)
            )
            bricks[image] = np.asarray(
                Image.fromarray(picture).resize((side, side), Image.Resampling.NEAREST)
            )
    coco = _FIRST_COCO + _COCO_STEP * np.arange(len(stimuli))
    split = np.where(np.arange(len(stimuli)) % 3, "train2017", "val2017")
    table = pd.DataFrame(
        {
            "cocoId": coco,
            "cocoSplit": split,
            "cropBox": "(0, 0, 0, 0)",
            "nsdId": np.arange(len(stimuli)),
        }
    )
    table.to_csv(raw.experiment / "nsd_stim_info_merged.csv")
    (raw.root / "annotations").mkdir(exist_ok=True)
    for part in ("train2017", "val2017"):
        notes = [
            {"image_id": int(coco[image]), "id": 10 * image + number, "caption": text + "\n"}
            for image in np.flatnonzero(split == part).tolist()
            for number, text in enumerate([*captions[image], "one caption too many"][:6])
        ]
        with open(
            raw.root / "annotations" / f"captions_{part}.json", "w", encoding="utf-8"
        ) as handle:
            json.dump({"annotations": notes[::-1]}, handle)
