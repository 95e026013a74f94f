"""Write a simulated data folder of the hard world: features in place of pictures, responses,
trials and truth.

Trials, responses and regions lie as in NSD's layout; `scene_features.hdf5` stands in the place of
the image file. A finished subject is kept, so that an interrupted call is continued and ends with
the same bytes. Responses are made session by session.

N images, V voxels, T trials of a session.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
from threadpoolctl import threadpool_limits

from braingen.data import nsd
from braingen.data.large_files import blocks, publish, reserve_hdf5
from braingen.data.volumes import write_regions
from braingen.runtime.console import track
from braingen.runtime.data_layout import Layout, subject_name
from braingen.runtime.files import (
    disk_errors_as_sentences,
    refuse_small_disk,
    replaced_file,
    replaced_path,
    write_json,
)
from braingen.runtime.lock import only_writer
from braingen.simulation import subject_files
from braingen.simulation.cortex import Cortex
from braingen.simulation.folder import (
    Arguments,
    check_arguments,
    image_count,
    is_finished,
    manifest_of,
    manifest_path,
)
from braingen.simulation.hard_world.catalogue import KINDS
from braingen.simulation.hard_world.compose import HardScenes, draw_scenes
from braingen.simulation.hard_world.population import AREAS, Brain, build_brain
from braingen.simulation.hard_world.scene_features import (
    CHANNELS,
    CONTENT_GROUPS,
    reference_scenes,
    scene_features,
)
from braingen.simulation.hard_world.trial_noise import NoisePlan, plan_noise, session_responses
from braingen.simulation.noise import neighbour_mixing
from braingen.simulation.presentations import Design, behaviour
from braingen.simulation.retina import FIELD_OF_VIEW

HARD_FORMAT = "hard 1"
"""Changed when the same arguments give other data."""
_AT_ONCE = 2000
_PLANNED_BY = 2000  # reference scenes that the signal's leading directions are found by
_NOISE_STREAM = 30


def write_hard_dataset(root: Path, arguments: Arguments, *, show_progress: bool = True) -> Layout:
    """Write the missing files of a data folder of the hard world.

    Parameters
    ----------
    root : Path
        The data folder, created if missing.
    arguments : Arguments
        What is simulated; test images with an odd id show a combination that no training image
        shows.
    show_progress : bool, optional
        Whether to show a progress bar.

    Raises
    ------
    UserError
        When an argument is out of range, the folder holds something else, another process writes
        there, or the disk is too small.
    """
    layout, design = Layout.of(root), check_arguments(arguments)
    manifest = manifest_of(arguments, HARD_FORMAT)
    subjects = range(1, arguments.num_subjects + 1)
    if is_finished(layout, manifest) and all(
        path.exists() for path in _files(layout, design, subjects)
    ):
        return layout
    refuse_small_disk(
        layout.root,
        _bytes_needed(arguments, design),
        "The simulated data",
        "choose another --data_path, or simulate fewer subjects, sessions or voxels",
    )
    with disk_errors_as_sentences(layout.root):
        scratch = layout.root / ".simulating"
        scratch.mkdir(parents=True, exist_ok=True)
        with only_writer(scratch), threadpool_limits(1):
            write_json(manifest_path(layout), manifest)
            count = image_count(arguments, design)
            scenes = draw_scenes(arguments.seed, range(count), arguments.num_test_images)
            _write_scenes(layout, scenes, arguments.seed)
            masks = {}
            for subject in track(subjects, "simulated subjects", disable=not show_progress):
                masks[subject] = _write_subject(layout, arguments, design, subject, scenes)
            write_regions(layout, masks)
            details = {"voxels": [arguments.voxels(s) for s in subjects], "images": count}
            write_json(manifest_path(layout), {**manifest, "finished": True, **details})
    return layout


def scenes_file(layout: Layout) -> Path:
    """Path of the scenes of a data folder of the hard world."""
    return layout.root / "truth" / "scenes.npz"


def load_hard_scenes(layout: Layout) -> HardScenes:
    """Read the scenes of all images, by id."""
    with np.load(scenes_file(layout), allow_pickle=False) as stored:
        return HardScenes(*(stored[name] for name in HardScenes._fields))


def _files(layout: Layout, design: Design, subjects: range) -> list[Path]:
    files = [layout.features(), layout.masks(), scenes_file(layout)]
    for subject in subjects:
        files += [layout.betas(subject), layout.truth(subject)]
        files += [layout.volumes(subject) / "order.json"]
        files += [layout.wds_test(subject, which) for which in ("new_test", "test")]
        files += [layout.wds_train(subject, session) for session in range(design.sessions)]
    return files


def _bytes_needed(arguments: Arguments, design: Design) -> int:
    voxels = [arguments.voxels(subject) for subject in range(1, arguments.num_subjects + 1)]
    return image_count(arguments, design) * 4 * 2000 + design.trials * sum(
        4 * width + 9216 for width in voxels
    )


def _write_scenes(layout: Layout, scenes: HardScenes, seed: int) -> None:
    """Write features and descriptions of all scenes, where they are missing."""
    count = len(scenes.background_N)
    if not layout.features().exists():
        with replaced_path(layout.features()) as temporary, h5py.File(temporary, "w") as file:
            for first, last in blocks(count, _AT_ONCE):
                found = scene_features(_rows(scenes, np.arange(first, last)))
                for name, values in {"embedding": found.embedding_ND, **found.bands}.items():
                    if name not in file:
                        made = file.create_dataset(name, (count, values.shape[1]), "float32")
                        made.attrs[nsd.SIMULATED_ATTRIBUTE] = True
                    file[name][first:last] = values
    if not scenes_file(layout).exists():
        with replaced_file(scenes_file(layout)) as handle:
            np.savez(handle, **scenes._asdict(), kinds=np.array(KINDS), seed=np.array(seed))


def _rows(scenes: HardScenes, rows_N: np.ndarray) -> HardScenes:
    return HardScenes(*(values[rows_N] for values in scenes))


def planned_noise(brain: Brain, noise: float) -> NoisePlan:
    """The noise of a person of a data folder; equal arguments give equal results."""
    return plan_noise(brain, _rows(reference_scenes(), np.arange(_PLANNED_BY)), noise)


class _Recorded(NamedTuple):
    """What was drawn while a subject's sessions were made. S sessions."""

    gain_TA: np.ndarray
    mean_SV: np.ndarray
    sd_SV: np.ndarray


def _write_subject(
    layout: Layout, arguments: Arguments, design: Design, subject: int, scenes: HardScenes
) -> dict[str, np.ndarray]:
    """Write all files of a subject and return its region masks."""
    brain = build_brain(arguments.seed, subject, arguments.voxels(subject))
    cortex = _as_cortex(brain)
    subject_files.write_volumes(layout, subject, cortex)
    subject_files.write_tars(layout, subject, design, behaviour(design, arguments.seed, subject))
    if not (layout.truth(subject).exists() and layout.betas(subject).exists()):
        plan = planned_noise(brain, arguments.noise)
        seen = _rows(scenes, design.image_ids(subject))
        recorded = _write_betas(layout, brain, plan, design, (arguments.seed, subject), seen)
        truth = _truth(brain, cortex, plan, recorded)
        tests = _rows(seen, np.arange(design.test_images))
        truth |= {
            "test_image": np.arange(design.test_images, dtype=np.int64),
            "test_signal": brain.signal(tests),
            "test_new": tests.new_N,
        }
        with replaced_file(layout.truth(subject)) as handle:
            np.savez(handle, **truth)
    return subject_files.regions(cortex)


def _write_betas(
    layout: Layout,
    brain: Brain,
    plan: NoisePlan,
    design: Design,
    seeds: tuple[int, int],
    seen: HardScenes,
) -> _Recorded:
    """Draw all sessions, z-score each by its training trials, and write the betas."""
    part = layout.root / ".simulating" / f"{subject_name(seeds[1])}_betas.hdf5"
    voxels = len(brain.area_V)
    part.unlink(missing_ok=True)
    betas = reserve_hdf5(part, nsd.BETAS_DATASET, (design.trials, voxels), "float32", {})
    mapped = betas.map(writable=True)
    mixing = neighbour_mixing(brain.sheet.millimetres_V3)
    gains, means, sds = [], [], []
    for session in range(design.sessions):
        rows = design.rows(session)
        shown_N, place_T = np.unique(design.place_T[rows], return_inverse=True)
        signal_NV = brain.signal(_rows(seen, shown_N))
        rng = np.random.default_rng([*seeds, _NOISE_STREAM, session])
        found = session_responses(rng, brain, plan, mixing, signal_NV[place_T])
        training_TV = found.response_TV[~design.test_T[rows]]
        mean_V, sd_V = training_TV.mean(0), np.maximum(training_TV.std(0), np.float32(1e-12))
        mapped[rows] = (found.response_TV - mean_V) / sd_V
        gains.append(found.gain_TA)
        means.append(mean_V)
        sds.append(sd_V)
    mapped.flush()
    publish(part, layout.betas(seeds[1]))
    return _Recorded(np.concatenate(gains), np.stack(means), np.stack(sds))


def _as_cortex(brain: Brain) -> Cortex:
    """The fields that region masks and volumes are written from, areas by NSD's names."""
    voxels = len(brain.area_V)
    return Cortex(
        sheet=brain.sheet,
        area_V=brain.atlas_V,
        prf_x_V=brain.prf_x_V,
        prf_y_V=brain.prf_y_V,
        prf_sigma_V=(brain.prf_V3[:, 2] * FIELD_OF_VIEW).astype(np.float32),
        channel_weights_VC=brain.channel_weights_VC,
        code_weights_VK=brain.content_weights_VF,
        retinotopy_V=np.zeros(voxels, dtype=np.float32),
        snr_V=brain.snr_V,
    )


def _truth(brain: Brain, cortex: Cortex, plan: NoisePlan, recorded: _Recorded) -> dict[str, Any]:
    """Everything that was planted in a subject, mostly one row per voxel."""
    return {
        "area": brain.area_V,
        "missing": np.array(brain.missing),
        **brain.sheet.arrays(),
        "prf_x": cortex.prf_x_V,
        "prf_y": cortex.prf_y_V,
        "prf_sigma": cortex.prf_sigma_V,
        "channels": np.array(CHANNELS),
        "channel_weights": brain.channel_weights_VC,
        "content_groups": np.array(list(CONTENT_GROUPS)),
        "content_ends": np.array([part.stop for part in CONTENT_GROUPS.values()]),
        "content_weights": brain.content_weights_VF,
        "signal_mean": brain.signal_mean_V,
        "signal_sd": brain.signal_sd_V,
        "snr": plan.snr_V,
        "aligned": plan.aligned_VK,
        "aligned_share": plan.aligned_share_V.astype(np.float32),
        "local_sd": plan.local_sd_V,
        "areas": np.array(AREAS),
        "gain": recorded.gain_TA,
        "session_mean": recorded.mean_SV,
        "session_sd": recorded.sd_SV,
    }
