"""Checks of a subject's voxels: widths of betas, region masks and volumes agree."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from contextlib import suppress

import h5py
import numpy as np

from braingen.data import nsd
from braingen.data.betas import Betas
from braingen.data.checks.finding import Finding
from braingen.data.checks.responses import check_responses
from braingen.data.nsd import Layout
from braingen.data.places import SurfacePlaces, load_any_places
from braingen.data.trials import sessions_on_disk
from braingen.data.volumes import VoxelPlaces, read_regions
from braingen.errors import UserError
from braingen.records import Trials


def check_voxels(
    layout: Layout,
    subject: int,
    num_sessions: int,
    trials: Sequence[Trials],
    testing: Trials | None,
) -> Iterator[Finding]:
    """Check betas, region masks and volumes of a subject against each other and the trials."""
    betas = None
    try:
        betas = Betas.of(layout, subject)
    except UserError as error:
        yield Finding("error", subject, "betas", str(error))
    width = yield from _check_masks(layout, subject)
    if betas is not None:
        yield _check_width(layout, subject, betas, width)
        yield from _check_completeness(layout, subject, betas, num_sessions, testing)
        yield from check_responses(layout, subject, betas, trials)
        yield _check_places(layout, subject, betas.voxels)


def _check_masks(layout: Layout, subject: int) -> Generator[Finding, None, int | None]:
    """Region masks; returns the number of voxels they have, or None."""
    path = layout.masks()
    if not path.exists():
        sentence = f"{path} is missing: maps and scores by region will not be made; {nsd.GET_IT}."
        yield Finding("warning", subject, "masks", sentence)
        return None
    try:
        regions = read_regions(layout, subject)
    except UserError as error:
        yield Finding("error", subject, "masks", str(error))
        return None
    lengths = {name: len(region) for name, region in regions.items()}
    if len(set(lengths.values())) != 1:
        shown = ", ".join(f"{name} {n}" for name, n in lengths.items()) or "no region at all"
        sentence = (
            f"{path}: the regions of subject {subject} have different lengths ({shown}), one was "
            f"expected; {nsd.GET_IT}."
        )
        yield Finding("error", subject, "masks", sentence)
        return None
    if wrong := _contradiction(regions):
        sentence = f"{path}: for subject {subject} {wrong}; maps by region will show it."
        yield Finding("warning", subject, "masks", sentence)
    else:
        sentence = f"Subject {subject}: regions {', '.join(regions)}."
        yield Finding("ok", subject, "masks", sentence)
    return next(iter(lengths.values()))


def _contradiction(regions: dict[str, np.ndarray]) -> str:
    """How regions contradict each other, as a clause; empty where they do not."""
    areas = [regions[name] for name in nsd.VISUAL_ROI_LABELS if name in regions]
    early, higher = regions.get("early_vis"), regions.get("higher_vis")
    if len(areas) == 4 and np.sum(areas, axis=0).max(initial=0) > 1:
        return "V1 to V4 overlap"
    if len(areas) == 4 and early is not None and not np.array_equal(np.any(areas, axis=0), early):
        return "early_vis is not the union of V1 to V4"
    if early is not None and higher is not None and (early & higher).any():
        return "early_vis and higher_vis overlap"
    return ""


def _whose(layout: Layout, width: int, subject: int) -> str:
    """The other subject that has so many voxels, as the end of a clause."""
    broken = (OSError, AttributeError, TypeError, StopIteration)
    with suppress(*broken), h5py.File(layout.masks(), "r") as file:
        for group in file:
            others = group != nsd.subject_name(subject)
            if others and len(next(iter(file[group].values()))) == width:
                return f", the width of {group}"
    other = nsd.subject_of_width(width)
    if other in (None, subject):
        return ""
    return f", the width of NSD's {nsd.subject_name(other)}"


def _check_width(layout: Layout, subject: int, betas: Betas, masks: int | None) -> Finding:
    whose = _whose(layout, betas.voxels, subject)
    expected, source = masks, f"the masks in {layout.masks()}"
    if masks is None and whose:
        expected, source = nsd.VOXELS.get(subject), "NSD"
    if expected is not None and expected != betas.voxels:
        sentence = (
            f"{betas.path} has {betas.voxels} voxels{whose}; subject {subject} has {expected} by "
            f"{source}: exchange the file for subject {subject}'s, or {nsd.GET_IT}."
        )
        return Finding("error", subject, "betas", sentence)
    sentence = (
        f"Subject {subject}: betas of {betas.trials} trials x {betas.voxels} voxels, "
        f"{betas.rows_on_disk.dtype}."
    )
    return Finding("ok", subject, "betas", sentence)


def _check_completeness(
    layout: Layout, subject: int, betas: Betas, num_sessions: int, testing: Trials | None
) -> Iterator[Finding]:
    """Compare a subject of NSD's, by the width, with what NSD has of it."""
    if betas.voxels != nsd.VOXELS.get(subject):
        return
    there, whole = len(sessions_on_disk(layout, subject)), nsd.SESSIONS[subject]
    if not num_sessions and 0 < there < whole:
        sentence = (
            f"Subject {subject}: {there} of NSD's {whole} training sessions are there; those are "
            f"used; to have all, {nsd.GET_IT}."
        )
        yield Finding("warning", subject, "trials", sentence)
    found = None if testing is None else len(testing.table)
    expected = nsd.TEST_TRIALS["new_test"][subject]
    all_trials = betas.trials == whole * nsd.TRIALS_PER_SESSION
    if all_trials and found not in (None, expected):
        sentence = (
            f"{layout.wds_test(subject)} has {found} trials, {expected} were expected of NSD's "
            f"subject {subject}; {nsd.GET_IT}."
        )
        yield Finding("warning", subject, "test", sentence)


def _check_places(layout: Layout, subject: int, voxels: int) -> Finding:
    folder = layout.volumes(subject)
    if not folder.is_dir():
        sentence = (
            f"{folder} is missing: training does not need it, but maps of subject {subject} cannot "
            "be put into the volume."
        )
        return Finding("note", subject, "volumes", sentence)
    try:
        places = load_any_places(layout, subject)
    except UserError as error:
        sentence = f"Maps of subject {subject} cannot be put into the volume: {error}"
        return Finding("warning", subject, "volumes", sentence)
    if places.voxels != voxels:
        what = "a mask" if isinstance(places, VoxelPlaces) else "places"
        sentence = (
            f"{folder} has {what} of {places.voxels} voxels"
            f"{_whose(layout, places.voxels, subject)}, the betas have {voxels}: exchange one of "
            f"them for subject {subject}'s."
        )
        return Finding("error", subject, "volumes", sentence)
    if isinstance(places, VoxelPlaces):
        where = f"every voxel has its place in a volume {places.mask.shape}"
    elif isinstance(places, SurfacePlaces):
        where = f"every column has its vertex on the surface {places.surface}"
    else:
        sentence = (
            f"Subject {subject}: where the {voxels} columns lie is not known: there will be tables "
            "by region, and no maps."
        )
        return Finding("note", subject, "volumes", sentence)
    return Finding("ok", subject, "volumes", f"Subject {subject}: {where}.")
