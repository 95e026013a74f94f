"""The files of a subject: betas, masks and volumes, tars of trials, regions, reliability.

T trials, V voxels inside the mask.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
import hashlib
from pathlib import Path
import shutil
from typing import Any

import h5py
import numpy as np

from braingen.data import nsd
from braingen.data.ingest.reliability import Reliability, reliability
from braingen.data.large_files import in_hdf5
from braingen.data.places import (
    ColumnPlaces,
    Places,
    files_of,
    key_of,
    save_columns,
    save_other_places,
)
from braingen.data.prepare.first_pass import FirstPass, first_pass
from braingen.data.prepare.pieces import ArrayInPieces, digest, stamp
from braingen.data.scans import Scans
from braingen.data.tars import write_tar
from braingen.data.volumes import (
    NSDGENERAL,
    VoxelPlaces,
    load_nifti,
    read_regions,
    save_places,
    write_regions,
)
from braingen.data.zscore import statistics_path, zscored
from braingen.runtime.console import track
from braingen.runtime.data_layout import Layout, subject_name
from braingen.runtime.files import replaced_file, replaced_path, sha256_of

HELD_BACK = 3
"""Sessions at the end without trials in `test/0.tar`: NSD held back its last three then."""


def write_subject(
    scans: Scans,
    layout: Layout,
    subject: int,
    behav_T17: np.ndarray,
    scratch: Path,
    accept: Sequence[str],
) -> dict[str, Any]:
    """Write all files of a subject and return its entry of the manifest."""
    inside = scans.places(subject)
    found = first_pass(scans, subject, behav_T17, inside, accept)
    kept_V = found.kept_V
    _write_betas(scans, layout, subject, behav_T17, inside, found, scratch)
    places = inside if inside is None or kept_V.all() else inside.restricted(kept_V)
    known = places if places is not None else ColumnPlaces(int(kept_V.sum()), scans.origin)
    written = _write_volumes(scans, layout, subject, known) + _write_tars(
        layout, subject, behav_T17
    )
    if (column_V := scans.columns(subject)) is not None:
        whole = scans.candidates(subject)[1]
        written += save_columns(layout, subject, column_V[kept_V], whole)
    _add_regions(layout, subject, scans.regions(subject, places, kept_V))
    betas = layout.betas(subject)
    reliable = reliability(in_hdf5(betas, nsd.BETAS_DATASET).map(), behav_T17[:, nsd.IMAGE])
    if reliable is not None:
        written += _write_reliability(layout, subject, known, reliable)
    written += [statistics_path(layout, subject), betas]
    checksums = {path.relative_to(layout.root).as_posix(): sha256_of(path) for path in written}
    return {
        "voxels": int(kept_V.sum()),
        "trials": len(behav_T17),
        "sessions": int(behav_T17[:, nsd.SESSION].max()),
        "zscore": found.rule,
        "left_out_voxels": found.left_out,
        "reliability": None if reliable is None else reliable.facts(),
        "notes": found.notes,
        "sha256": dict(sorted(checksums.items())),
    }


def _write_betas(
    scans: Scans,
    layout: Layout,
    subject: int,
    behav_T17: np.ndarray,
    places: Places | None,
    found: FirstPass,
    scratch: Path,
) -> None:
    """Second pass: write z-scored responses, session by session, and their mean and sd."""
    session_T = behav_T17[:, nsd.SESSION].astype(int)
    sessions = range(1, int(session_T.max()) + 1)
    shape = (len(behav_T17), int(found.kept_V.sum()))
    folder = scratch / subject_name(subject)
    betas = ArrayInPieces(folder, nsd.BETAS_DATASET, shape, "float32")
    key = hashlib.sha256(b"" if places is None else key_of(places)).hexdigest()[:16]
    title, few = f"subject {subject}: sessions", len(sessions) < 4

    def z_scored(session: int, trials: int) -> Iterator[np.ndarray]:
        mean_K, sd_K = found.mean_SK[session - 1], found.sd_SK[session - 1]
        for block_TV in scans.responses(subject, session, trials, places):
            block_TK = block_TV if found.kept_V.all() else block_TV[:, found.kept_V]
            yield zscored(block_TK, mean_K, sd_K)

    for session in track(sessions, description=title, disable=few):
        rows = slice(*np.searchsorted(session_T, [session, session + 1]).tolist())
        statistics = np.stack([found.mean_SK[session - 1], found.sd_SK[session - 1]])
        files = scans.session_files(subject, session)
        made_from = stamp(files, key, digest(behav_T17[rows]), digest(statistics))
        parts = z_scored(session, rows.stop - rows.start)
        betas.write(f"session{session:02d}", rows, made_from, parts)
    betas.verify(layout.betas(subject))
    session_T = (session_T - 1).astype(np.int16)
    with replaced_file(statistics_path(layout, subject)) as handle:
        np.savez(handle, mean_SV=found.mean_SK, sd_SV=found.sd_SK, session_T=session_T)
    betas.publish(layout.betas(subject))


def _write_volumes(scans: Scans, layout: Layout, subject: int, places: Places) -> list[Path]:
    """Write mask, order and copies of region volumes, or the vertices of a surface."""
    if not isinstance(places, VoxelPlaces):
        return save_other_places(layout, subject, places)
    folder, copies = layout.volumes(subject), dict(scans.volumes(subject))
    general = copies.get(NSDGENERAL.removesuffix(".nii.gz"))
    is_general = general is None or np.array_equal(
        np.asanyarray(load_nifti(general).dataobj) > 0, places.mask
    )
    names = [NSDGENERAL if is_general else "mask.nii.gz"]
    for name, path in copies.items():
        with replaced_path(folder / f"{name}.nii.gz") as temporary:
            shutil.copyfile(path, temporary)
        names.append(f"{name}.nii.gz")
    save_places(layout, subject, places, names[0])
    return [folder / "order.json", *(folder / name for name in dict.fromkeys(names))]


def _write_tars(layout: Layout, subject: int, behav_T17: np.ndarray) -> list[Path]:
    """Write a tar of the training trials of every session, and two of test trials."""
    trial_T, session_T = np.arange(len(behav_T17)), behav_T17[:, nsd.SESSION]
    test_T, sessions = behav_T17[:, nsd.IS_SHARED] == 1, int(session_T.max())
    chosen = {
        layout.wds_train(subject, k): (session_T == k + 1) & ~test_T
        for k in range(0 if test_T.all() else sessions)
    }
    old = sessions - HELD_BACK if sessions > HELD_BACK else sessions
    chosen[layout.wds_test(subject, "new_test")] = test_T
    chosen[layout.wds_test(subject, "test")] = test_T & (session_T <= old)
    title, few = f"subject {subject}: trials", len(chosen) < 8
    for path, which_T in track(list(chosen.items()), description=title, disable=few):
        write_tar(path, behav_T17, trial_T[which_T])
    return list(chosen)


def _write_reliability(
    layout: Layout, subject: int, places: Places, found: Reliability
) -> list[Path]:
    """Write split-half reliability and noise ceiling per voxel as a table and as maps."""
    folder = layout.volumes(subject)
    table = folder / "reliability.tsv"
    with replaced_file(table, "w") as handle:
        handle.write("voxel\tsplit_half\tnoise_ceiling_percent\n")
        both = zip(found.split_half_V.tolist(), found.noise_ceiling_V.tolist())
        for voxel, (half, ceiling) in enumerate(both):
            handle.write(f"{voxel}\t{half:.4f}\t{ceiling:.2f}\n")
    written = [table]
    maps = {"split_half": found.split_half_V, "noise_ceiling": found.noise_ceiling_V}
    for name, values in maps.items():
        places.write(folder / f"{name}.nii.gz", values)
        written += files_of(places, folder / f"{name}.nii.gz")
    return written


def _add_regions(layout: Layout, subject: int, regions: dict[str, np.ndarray]) -> None:
    """Write a subject's group of the region masks; the groups of the others are kept."""
    groups: dict[int, dict[str, np.ndarray]] = {}
    if layout.masks().exists():
        with h5py.File(layout.masks(), "r") as file:
            names = [group.removeprefix("subj") for group in file]
        others = [int(name) for name in names if name.isdecimal()]
        groups = {other: read_regions(layout, other) for other in others}
    groups[subject] = dict(sorted(regions.items()))
    write_regions(layout, dict(sorted(groups.items())))
