"""Write the small files of a simulated data folder: tars, region masks, volumes, captions, truth.

Equal input gives equal bytes: without times or names of machines or processes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import json
from pathlib import Path

import numpy as np

from braingen.data.tars import write_tar
from braingen.data.volumes import VoxelPlaces, save_places
from braingen.runtime.data_layout import Layout
from braingen.runtime.files import replaced_file
from braingen.simulation.cortex import FLOC_AREAS, VISUAL_AREAS, Cortex
from braingen.simulation.presentations import Design
from braingen.simulation.retina import CHANNELS
from braingen.simulation.semantics import CODE, LABELS

SOURCE = "braingen simulate"


def write_tars(layout: Layout, subject: int, design: Design, behav_T17: np.ndarray) -> None:
    """Write all missing tars of a subject."""
    trial = np.arange(design.trials)
    for session in range(design.sessions):
        path = layout.wds_train(subject, session)
        if not path.exists():
            rows = design.rows(session)
            write_tar(path, behav_T17, trial[rows][~design.test_T[rows]])
    for which, until in (("new_test", design.sessions), ("test", design.old_test_sessions)):
        path = layout.wds_test(subject, which)
        if not path.exists():
            write_tar(path, behav_T17, trial[design.test_T & (trial < design.rows(until - 1).stop)])


def regions(cortex: Cortex) -> dict[str, np.ndarray]:
    """Return the boolean vectors of brain_region_masks.hdf5."""
    area_V = cortex.area_V
    masks = {"nsd_general": np.ones(len(area_V), dtype=bool)}
    for name in ("V1", "V2", "V3"):
        masks[name] = np.isin(area_V, (f"{name}v", f"{name}d"))
    masks["V4"] = area_V == "hV4"
    masks["early_vis"] = cortex.early_V
    masks["higher_vis"] = ~cortex.early_V
    return masks


def write_volumes(layout: Layout, subject: int, cortex: Cortex) -> None:
    """Write a subject's NIfTIs: outside cortex -1 (regions) or NaN (pRFs), 0 in no region."""
    folder = layout.volumes(subject)
    places = VoxelPlaces(cortex.sheet.mask, "C", cortex.sheet.affine, SOURCE)
    save_places(layout, subject, places)
    labels = {"prf-visualrois": VISUAL_AREAS, **FLOC_AREAS}
    for name, areas in labels.items():
        vector = np.zeros(places.voxels, dtype=np.int16)
        for label, area in enumerate(areas, start=1):
            vector[cortex.area_V == area] = label
        places.write(folder / f"{name}.nii.gz", vector, fill=-1)
    for name, values in (
        ("prf_eccentricity", cortex.prf_eccentricity_V),
        ("prf_angle", cortex.prf_angle_V),
        ("prf_size", cortex.prf_size_V),
    ):
        places.write(folder / f"{name}.nii.gz", values.astype(np.float32), fill=np.nan)


def write_truth(
    layout: Layout,
    subject: int,
    cortex: Cortex,
    noise: float,
    test_signal_NV: np.ndarray,
    label_share_VL: np.ndarray,
) -> None:
    """Write the ground truth of a subject.

    Parameters
    ----------
    noise : float
        Multiple of NSD's noise; divides the SNR.
    test_signal_NV : np.ndarray
        Noise-free responses of the test images, in order of id, each voxel with mean 0 and sd 1
        over all images it was shown.
    label_share_VL : np.ndarray
        Share of a voxel's noise-free variance over images that each of `semantics.LABELS` explains.
    """
    with np.errstate(divide="ignore"):
        snr = cortex.snr_V / np.float32(noise)
    arrays = {
        "area": cortex.area_V,
        **cortex.sheet.arrays(),
        "prf_x": cortex.prf_x_V,
        "prf_y": cortex.prf_y_V,
        "prf_sigma": cortex.prf_sigma_V,
        "prf_eccentricity": cortex.prf_eccentricity_V,
        "prf_angle": cortex.prf_angle_V,
        "prf_size": cortex.prf_size_V,
        "channels": np.array(CHANNELS),
        "channel_weights": cortex.channel_weights_VC,
        "code": np.array(CODE),
        "code_weights": cortex.code_weights_VK,
        "retinotopy": cortex.retinotopy_V,
        "snr": snr,
        "labels": np.array(LABELS),
        "label_share": label_share_VL.astype(np.float32),
        "test_image": np.arange(len(test_signal_NV), dtype=np.int64),
        "test_signal": test_signal_NV.astype(np.float32),
    }
    with replaced_file(layout.truth(subject)) as handle:
        np.savez(handle, **arrays)


def write_texts(
    layout: Layout,
    captions: Sequence[Sequence[str]],
    descriptions: Sequence[Mapping],
    scenes_path: Path,
) -> None:
    """Write coco_captions.json and the descriptions of all scenes, by id."""
    for path, content in ((layout.captions(), captions), (scenes_path, descriptions)):
        with replaced_file(path, "w") as handle:
            # dumped whole: json uses its C encoder only then
            handle.write(json.dumps({str(image): value for image, value in enumerate(content)}))
