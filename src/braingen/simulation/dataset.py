"""Write a simulated NSD: images, then responses, trials and truth per subject, in resumable pieces.

Nothing large is held in memory: images are rendered into the file, a subject's noise-free responses
go to a scratch file, and its trials are made session by session. After an interruption the same
call continues and ends with the same bytes.

N images, V voxels, T trials, L labels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
import os
from pathlib import Path
import shutil
from typing import NamedTuple

import numpy as np
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from scipy.sparse import csr_matrix
from threadpoolctl import threadpool_limits

from braingen.config import Config
from braingen.data import nsd
from braingen.data.large_files import ArrayOnDisk, blocks, in_hdf5, publish, reserve_hdf5
from braingen.data.volumes import write_regions
from braingen.runtime.console import Progress
from braingen.runtime.data_layout import Layout, subject_name
from braingen.runtime.files import disk_errors_as_sentences, refuse_small_disk, write_json
from braingen.runtime.lock import only_writer
from braingen.simulation import pictures, semantics, subject_files
from braingen.simulation.cortex import Cortex, build_cortex, responses
from braingen.simulation.folder import (
    Arguments,
    check_arguments,
    image_count,
    is_finished,
    manifest_of,
    manifest_path,
)
from braingen.simulation.noise import neighbour_mixing, session_noise
from braingen.simulation.pieces import Workshop, reserve_raw
from braingen.simulation.presentations import Design, behaviour
from braingen.simulation.scenes import STIMULUS_SIZE, Scene

FORMAT = 1
"""Increased when the same arguments give other data."""
_MOST_WORKERS = 8  # of 0.3 GB each at NSD's full size
_PICTURES_AT_ONCE = 50
_RESPONSES_AT_ONCE = 64
_BYTES_PER_SAMPLE = 9216  # of a tar


def simulate(config: Config) -> Path:
    """Write the missing files of the configured simulated data folder, ``data.root``."""
    arguments = Arguments(**config.simulation.model_dump(exclude={"world"}))
    if config.simulation.world == "hard":
        from braingen.simulation.hard_world.dataset import write_hard_dataset

        return write_hard_dataset(config.data.root, arguments).root
    return write_dataset(config.data.root, arguments).root


def write_dataset(
    root: Path, arguments: Arguments, *, workers: int | None = None, show_progress: bool = True
) -> Layout:
    """Write the missing files of a simulated NSD.

    Parameters
    ----------
    root : Path
        The data folder, created if missing.
    arguments : Arguments
        What is simulated.
    workers : int | None, optional
        Number of processes; None for one per core, at most eight. It does not affect the result.
    show_progress : bool, optional
        Whether to show a progress bar.

    Raises
    ------
    UserError
        When an argument is out of range, the folder holds something else (real data, or a
        simulation with other arguments), another process writes there, or the disk is too small.
    """
    layout = Layout.of(root)
    design = check_arguments(arguments)
    manifest = manifest_of(arguments, FORMAT)
    scratch = layout.root / ".simulating"
    if is_finished(layout, manifest) and _is_whole(layout, arguments, design):
        shutil.rmtree(scratch, ignore_errors=True)
        return layout
    _check_disk(layout, arguments, design)
    with disk_errors_as_sentences(layout.root):
        scratch.mkdir(parents=True, exist_ok=True)
        with only_writer(scratch), _progress(show_progress) as progress, threadpool_limits(1):
            write_json(manifest_path(layout), manifest)
            workers = min(_MOST_WORKERS, _cores()) if workers is None else workers
            work = _Work(layout, arguments, design, Workshop(scratch, workers, progress))
            _write_pictures(work)
            subjects = range(1, arguments.num_subjects + 1)
            masks = {subject: _write_subject(work, subject) for subject in subjects}
            write_regions(layout, masks)
            details = {
                "voxels": [arguments.voxels(s) for s in masks],
                "images": image_count(arguments, design),
            }
            write_json(manifest_path(layout), {**manifest, "finished": True, **details})
        shutil.rmtree(scratch, ignore_errors=True)
    return layout


class _Work(NamedTuple):
    """Arguments and folders of a simulation."""

    layout: Layout
    arguments: Arguments
    design: Design
    workshop: Workshop


def _cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def _progress(show: bool) -> Iterator[Progress]:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, disable=not show) as progress:
        yield progress


# --- before anything is written -------------------------------------------------------------------


def _is_whole(layout: Layout, arguments: Arguments, design: Design) -> bool:
    """Whether every file exists; removed ones are made again."""
    files = [layout.images(), layout.captions(), layout.masks(), pictures.scenes_path(layout)]
    for subject in range(1, arguments.num_subjects + 1):
        files += [
            layout.betas(subject),
            layout.truth(subject),
            layout.volumes(subject) / "order.json",
        ]
        files += [layout.wds_test(subject, which) for which in ("new_test", "test")]
        files += [layout.wds_train(subject, session) for session in range(design.sessions)]
    return all(file.exists() for file in files)


def bytes_needed(arguments: Arguments, design: Design) -> int:
    """Return sizes of the finished folder, and of the largest scratch file."""
    voxels = [arguments.voxels(subject) for subject in range(1, arguments.num_subjects + 1)]
    images = image_count(arguments, design) * (3 * STIMULUS_SIZE**2 * 2 + 1500)
    return (
        images
        + design.trials * sum(4 * width + _BYTES_PER_SAMPLE for width in voxels)
        + 4 * design.images * max(voxels)
    )


def _check_disk(layout: Layout, arguments: Arguments, design: Design) -> None:
    written = (
        sum(file.stat().st_blocks * 512 for file in layout.root.rglob("*") if file.is_file())
        if layout.root.exists()
        else 0
    )
    missing = bytes_needed(arguments, design) - written
    refuse_small_disk(
        layout.root,
        missing,
        "The simulated data",
        "choose another --data_path, or simulate fewer subjects, sessions or voxels",
    )


# --- images -------------------------------------------------------------------------------------


class _Drawing(NamedTuple):
    images: ArrayOnDisk
    seed: int


def _write_pictures(work: _Work) -> None:
    count, path, seed = (
        image_count(work.arguments, work.design),
        work.layout.images(),
        work.arguments.seed,
    )
    if not path.exists():
        part = work.workshop.scratch / "images.hdf5"
        shape = (count, 3, STIMULUS_SIZE, STIMULUS_SIZE)
        images = reserve_hdf5(
            part, nsd.IMAGES_DATASET, shape, "float16", {nsd.SIMULATED_ATTRIBUTE: True}
        )
        work.workshop.make(
            "pictures", "pictures", blocks(count, _PICTURES_AT_ONCE), _draw, _Drawing(images, seed)
        )
        publish(part, path)
    scenes_path = pictures.scenes_path(work.layout)
    if not (scenes_path.exists() and work.layout.captions().exists()):
        captions = [pictures.captions_of(seed, image) for image in range(count)]
        descriptions = [pictures.describe(pictures.scene_of(seed, image)) for image in range(count)]
        subject_files.write_texts(work.layout, captions, descriptions, scenes_path)


def _draw(job: _Drawing, block: tuple[int, int]) -> None:
    images = job.images.map(writable=True)
    for image in range(*block):
        images[image] = pictures.picture_of(job.seed, image)
    images.flush()


# --- a subject ------------------------------------------------------------------------------------


def _write_subject(work: _Work, subject: int) -> dict[str, np.ndarray]:
    """Write all files of a subject and return its region masks."""
    layout, design, seed, scratch = (
        work.layout,
        work.design,
        work.arguments.seed,
        work.workshop.scratch,
    )
    cortex = build_cortex(seed, subject, work.arguments.voxels(subject))
    name = subject_name(subject)
    subject_files.write_volumes(layout, subject, cortex)
    subject_files.write_tars(layout, subject, design, behaviour(design, seed, subject))
    if (
        layout.truth(subject).exists() and layout.betas(subject).exists()
    ):  # the truth is written last
        return subject_files.regions(cortex)

    image_N = design.image_ids(subject)
    signal = reserve_raw(scratch / f"{name}_signal", (len(image_N), len(cortex.area_V)), "float32")
    viewing = _Viewing(signal, in_hdf5(layout.images(), nsd.IMAGES_DATASET), image_N, cortex, seed)
    pieces = blocks(len(image_N), _RESPONSES_AT_ONCE)
    work.workshop.make(
        f"subject {subject}: responses", f"{name}_responses", pieces, _respond, viewing
    )
    signal_NV = signal.map()
    planted = planted_statistics(
        signal_NV, [pictures.scene_of(seed, int(image)) for image in image_N]
    )

    if not layout.betas(subject).exists():
        part = scratch / f"{name}_betas.hdf5"
        betas = reserve_hdf5(
            part, nsd.BETAS_DATASET, (design.trials, len(cortex.area_V)), "float32", {}
        )
        noise_sd_V = (work.arguments.noise / cortex.snr_V).astype(np.float32)
        scanning = _Scanning(
            betas,
            signal,
            planted,
            noise_sd_V,
            neighbour_mixing(cortex.sheet.millimetres_V3),
            design,
            (seed, subject),
        )
        work.workshop.make(
            f"subject {subject}: sessions",
            f"{name}_sessions",
            range(design.sessions),
            _scan,
            scanning,
        )
        publish(part, layout.betas(subject))
    test_signal_NV = (signal_NV[: design.test_images] - planted.mean_V) / planted.sd_V
    subject_files.write_truth(
        layout, subject, cortex, work.arguments.noise, test_signal_NV, planted.label_share_VL
    )
    signal.path.unlink()
    return subject_files.regions(cortex)


class _Viewing(NamedTuple):
    """Job: noise-free responses of a subject."""

    signal: ArrayOnDisk
    images: ArrayOnDisk
    image_N: np.ndarray
    cortex: Cortex
    seed: int


def _respond(job: _Viewing, block: tuple[int, int]) -> None:
    rows = slice(*block)
    signal_NV, ids = job.signal.map(writable=True), job.image_N[rows]
    signal_NV[rows] = responses(
        job.cortex,
        job.images.map()[ids],
        [pictures.scene_of(job.seed, int(image)) for image in ids],
    )
    signal_NV.flush()


class Planted(NamedTuple):
    """Statistics of the signal over a subject's images."""

    mean_V: np.ndarray
    """float32."""
    sd_V: np.ndarray
    """float32."""
    label_share_VL: np.ndarray
    """Share of variance explained by each of `semantics.LABELS`, adjusted for its classes."""


def planted_statistics(signal_NV: np.ndarray, scenes: Sequence[Scene]) -> Planted:
    """Compute mean and sd of the noise-free signal, and its variance explained by scene labels.

    Parameters
    ----------
    signal_NV : np.ndarray
        Responses, an array or a memory map.
    scenes : Sequence[Scene]
        Scenes of the N images.
    """
    N, V = signal_NV.shape
    label_NL = semantics.labels(scenes)
    total_V, square_V = np.zeros(V), np.zeros(V)
    sums = [np.zeros((count, V)) for count in semantics.LABEL_COUNTS]
    for first, last in blocks(N, 256):
        block = signal_NV[first:last].astype(np.float64)
        total_V += block.sum(axis=0)
        square_V += (block**2).sum(axis=0)
        for label, (sum_KV, count) in enumerate(zip(sums, semantics.LABEL_COUNTS)):
            sum_KV += np.eye(count)[label_NL[first:last, label]].T @ block
    mean_V = total_V / N
    variance_V = np.maximum(square_V / N - mean_V**2, 1e-20)
    shares = []
    for label, (sum_KV, count) in enumerate(zip(sums, semantics.LABEL_COUNTS)):
        size_K = np.bincount(label_NL[:, label], minlength=count)
        used = size_K > 0
        between_V = (sum_KV[used] ** 2 / size_K[used, None]).sum(axis=0) / N - mean_V**2
        shares.append(
            np.clip(1 - (1 - between_V / variance_V) * (N - 1) / max(N - int(used.sum()), 1), 0, 1)
        )
    return Planted(
        mean_V.astype(np.float32), np.sqrt(variance_V).astype(np.float32), np.stack(shares, axis=1)
    )


class _Scanning(NamedTuple):
    """Job: sessions of a subject."""

    betas: ArrayOnDisk
    signal: ArrayOnDisk
    planted: Planted
    noise_sd_V: np.ndarray
    mixing: csr_matrix
    design: Design
    seeds: tuple[int, int]
    """Of the simulation, and the subject's number."""


def _scan(job: _Scanning, session: int) -> None:
    """Simulate a session: attention, noise, and z-scores by the training trials' mean and sd."""
    rows = job.design.rows(session)
    noise = session_noise(
        np.random.default_rng([*job.seeds, 4, session]),
        job.design.trials_per_session,
        job.noise_sd_V,
        job.mixing,
    )
    beta_TV = job.signal.map()[job.design.place_T[rows]]
    beta_TV = (beta_TV - job.planted.mean_V) / job.planted.sd_V * noise.attention_T[
        :, None
    ] + noise.added_TV
    training_TV = beta_TV[~job.design.test_T[rows]]
    beta_TV -= training_TV.mean(axis=0)
    beta_TV /= np.maximum(training_TV.std(axis=0), np.float32(1e-12))
    betas = job.betas.map(writable=True)
    betas[rows] = beta_TV
    betas.flush()
