"""Which responses belong to which trials: by entities, never by the order of paths.

A file of responses covers the tables of events that agree with all entities it has: a run's file one table, a session's file all runs of
the session, GLMsingle's output of a subject all sessions. Tables above (BIDS inheritance) hold for every file below them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
import fnmatch
from pathlib import Path
import re
from typing import Any, NamedTuple

import nibabel

from braingen.data.ingest import forms
from braingen.data.ingest.forms import Asked, Source
from braingen.data.ingest.forms.surfaces import join_hemispheres
from braingen.data.ingest.forms.volumes import read_single_maps
from braingen.data.ingest.names import GUIDE, TRIAL_ENTITIES, Named, chosen, differing, natural, plain, same_label
from braingen.errors import UserError

_SETTINGS = {"task": "--task", "space": "--space", "desc": "--desc", "stat": "--stat"}
_TYPES = ("TYPED", "TYPEC", "TYPEB")


class Unit(NamedTuple):
    """Responses that belong together: a file, hemispheres of it, or single maps of trials."""

    files: tuple[Named, ...]
    kind: str
    """file, hemispheres or trials."""
    notes: tuple[str, ...] = ()

    @property
    def first(self) -> Named:
        """Its name for messages and entities."""
        return self.files[0]

    def open(self, asked: Asked) -> Source:
        """The source, not read yet."""
        if self.kind == "trials":
            return read_single_maps(self.files, asked)
        sources = [forms.read(file, asked) for file in self.files]
        if self.kind == "hemispheres":
            return join_hemispheres(self.files, sources)
        return sources[0]


class Pair(NamedTuple):
    """A unit and the tables of events it covers, in the order of its trials."""

    unit: Unit
    events: tuple[Named, ...]
    sessions: tuple[str, ...]
    """Label of the session of every table."""


def setting_for(entity: str) -> str:
    """How a value of an entity is chosen on the command line."""
    return f"{_SETTINGS[entity]} VALUE" if entity in _SETTINGS else f"prepare.entities={entity}-VALUE"


def among(files: Sequence[Named], root: Path, pattern: str) -> list[Named]:
    """Files whose path below the root has a pattern, or lies in a folder of that name."""
    if not pattern:
        return list(files)
    pattern = pattern.rstrip("/")

    def fits(path: Path) -> bool:
        inside = path.relative_to(root).as_posix()
        return fnmatch.fnmatch(inside, pattern) or inside.startswith(f"{pattern}/") or str(path) == pattern

    kept = [file for file in files if fits(file.path)]
    if files and not kept:
        raise UserError(f"No responses below {root} have {pattern} (there: {_listed([file.path for file in files])}); correct --responses.")
    return kept


def _listed(paths: Sequence[Path], most: int = 4) -> str:
    shown = ", ".join(map(str, paths[:most]))
    return shown + (f" and {len(paths) - most} more" if len(paths) > most else "")


def units_of(responses: Sequence[Named], wanted: Mapping[str, str], trials_of: Callable[[Named], int]) -> tuple[list[Unit], list[str]]:
    """Group the files of a subject into units.

    Parameters
    ----------
    responses : all files of responses of a subject
    wanted : entity -> value that settings choose
    trials_of : how many trials the events name for a file, 0 where none belong to it

    Returns
    -------
    units, and notes on what was left out

    Raises
    ------
    UserError
        When files claim the same trials and nothing chooses among them.
    """
    notes: list[str] = []
    groups: dict[tuple[str, ...], list[Named]] = {}
    for file in responses:
        groups.setdefault(file.key(TRIAL_ENTITIES), []).append(file)
    units = []
    for group in groups.values():
        kept = chosen(group, wanted)
        if not kept:
            continue
        kept = _best_of_glmsingle(kept, notes)
        if len(kept) > 1:
            kept = _without_maps(kept, trials_of, notes)
        elif _axes(kept[0]) == 3 and trials_of(kept[0]) != 1:
            notes.append(f"left out, a volume of three axes: {kept[0].path.name}")
            continue
        units.append(_unit(kept, trials_of))
    left = [file for group in groups.values() for file in group if wanted and not chosen(group, wanted)]
    if left and not units:
        told = {key: sorted({file.of(key) or "none" for file in left}) for key in wanted}
        there = "; ".join(f"{key}: {', '.join(values)}" for key, values in told.items())
        raise UserError(f"No responses have {', '.join(f'{k}-{v}' for k, v in wanted.items())} (there: {there}); choose one of these.")
    return units, notes


def _best_of_glmsingle(files: list[Named], notes: list[str]) -> list[Named]:
    """TYPED first, HDF5 first."""
    typed = [file for file in files if file.path.name.startswith("TYPE")]
    if len(typed) < 2:
        return files
    best = min(typed, key=lambda file: (_TYPES.index(file.path.name[:5]), file.ending != ".hdf5"))
    same = [file for file in typed if file.path.name[:5] == best.path.name[:5] and file.ending == best.ending and file is not best]
    if same:
        raise UserError(f"{best.path} and {same[0].path} claim the same trials; choose one folder with --responses FOLDER.")
    others = ", ".join(file.path.name for file in typed if file is not best)
    notes.append(f"GLMsingle: {best.path.name} is taken, {others} left out")
    return [file for file in files if file not in typed or file is best]


def _axes(file: Named) -> int:
    """Axes of a volume; 0 for other forms."""
    if not file.ending.endswith((".nii", ".nii.gz")) or ".d" in file.ending:
        return 0
    try:
        image: Any = nibabel.load(file.path)
    except Exception:  # told when it is read
        return 0
    return 0 if isinstance(image, nibabel.Cifti2Image) else len([n for n in image.shape if n > 1 or len(image.shape) == 3])


def _without_maps(files: list[Named], trials_of: Callable[[Named], int], notes: list[str]) -> list[Named]:
    """Maps of three axes beside responses of four are no responses."""
    axes = [_axes(file) for file in files]
    if all(number == 3 for number in axes) or 3 not in axes:
        return files
    maps = [file for file, number in zip(files, axes) if number == 3]
    notes.append(f"left out, volumes of three axes: {_listed([Path(file.path.name) for file in maps])}")
    return [file for file, number in zip(files, axes) if number != 3]


def _unit(files: list[Named], trials_of: Callable[[Named], int]) -> Unit:
    if len(files) == 1:
        return Unit((files[0],), "file")
    apart = differing(files)
    endings = {file.ending for file in files}
    if len(files) == 2 and set(apart) == {"hemi"} and len(endings) == 1:
        return Unit(tuple(files), "hemispheres")
    series = [key for key in apart if key != "hemi"]
    if all(_axes(file) == 3 for file in files):
        order = _numbered(files, series)
        if order is not None:
            return Unit(tuple(order), "trials")
    shown = "; ".join(f"{key}: {', '.join(value or 'none' for value in values[:6])}" for key, values in apart.items())
    how = " or ".join(dict.fromkeys(setting_for(key) for key in apart if key != "hemi")) or "--responses PATTERN"
    counted = ""
    if all(_axes(file) == 3 for file in files):
        counted = (
            f" They are {len(files)} maps of three axes; one per trial is taken where a single entity numbers them from 1 "
            f"(desc-trial001), the events name {trials_of(files[0])} trials."
        )
    raise UserError(
        f"{_listed([file.path for file in files])} claim the same trials; what tells them apart is "
        f"{shown or 'their folder or ending'}.{counted} Choose with {how}."
    )


def _numbered(files: list[Named], series: list[str]) -> list[Named] | None:
    """Single maps in the order of the number that one entity of theirs has; None where none numbers them without a gap."""
    if len(series) != 1:
        return None
    numbers = [re.fullmatch(r"\D*(\d+)", file.of(series[0])) for file in files]
    if not all(numbers):
        return None
    found = [int(match[1]) for match in numbers if match]
    words = {file.of(series[0])[: -len(match[1])] for file, match in zip(files, numbers) if match}
    if len(words) > 1 or sorted(found) != list(range(min(found), min(found) + len(found))) or min(found) not in (0, 1):
        return None
    return [file for _, file in sorted(zip(found, files), key=lambda pair: pair[0])]


def covers(response: Named, events: Named) -> bool:
    """Whether events agree with all that a file of responses says of its trials."""
    return all(plain(events.of(key)) == plain(response.of(key)) for key in TRIAL_ENTITIES if response.of(key))


def inherited(response: Named, events: Sequence[Named]) -> Named | None:
    """The table above a file that holds for it, the most specific one (BIDS inheritance).

    Raises
    ------
    UserError
        When two hold equally.
    """
    holding = [
        file
        for file in events
        if all(plain(file.of(key)) == plain(response.of(key)) for key in TRIAL_ENTITIES if file.of(key))
        and (file.path.parent in response.path.parents or not file.of("sub") or same_label(file.of("sub"), response.of("sub")))
    ]
    if not holding:
        return None
    most = max(sum(bool(file.of(key)) for key in TRIAL_ENTITIES) for file in holding)
    best = [file for file in holding if sum(bool(file.of(key)) for key in TRIAL_ENTITIES) == most]
    if len(best) > 1:
        raise UserError(f"{best[0].path} and {best[1].path} both hold for {response.path}; remove one, or name them more precisely.")
    return best[0]


def pair(
    subject: str, units: Sequence[Unit], events: Sequence[Named], when: Callable[[Named], float | None], root: Path
) -> tuple[list[Pair], list[Unit]]:
    """Pair the units of a subject with its tables of events.

    Parameters
    ----------
    subject : label
    units : of :func:`units_of`
    events : tables of this subject, and those above all subjects
    when : time of acquisition of a table's run, None where scans.tsv does not say

    Returns
    -------
    pairs, and units that no table belongs to

    Raises
    ------
    UserError
        When tables have no responses, are claimed twice, or their order cannot be known.
    """
    own = [file for file in events if same_label(file.of("sub"), subject)]
    claimed: dict[Path, Unit] = {}
    pairs, alone = [], []
    for unit in units:
        covered = [file for file in own if covers(unit.first, file)]
        if not covered:
            above = inherited(unit.first, events)
            if above is None:
                alone.append(unit)
                continue
            covered = [above]
        else:
            for file in covered:
                if file.path in claimed:
                    raise UserError(
                        f"{claimed[file.path].first.path} and {unit.first.path} both claim the trials of {file.path}; choose with "
                        "--responses PATTERN, or move one away."
                    )
                claimed[file.path] = unit
        _refuse_tasks(unit, covered)
        covered = _in_order(unit, covered, when)
        sessions = tuple(file.of("ses") or unit.first.of("ses") for file in covered)
        pairs.append(Pair(unit, tuple(covered), sessions))
    _refuse_leftovers(subject, own, claimed, pairs, alone, root)
    return pairs, alone


def _refuse_tasks(unit: Unit, events: Sequence[Named]) -> None:
    tasks = list(dict.fromkeys(file.of("task") for file in events))
    if len(tasks) > 1:
        raise UserError(
            f"{unit.first.path} names no task, its events are of tasks {', '.join(tasks)}; choose the one it is of with --task VALUE."
        )


def _in_order(unit: Unit, events: list[Named], when: Callable[[Named], float | None]) -> list[Named]:
    if len(events) == 1:
        return events
    times = [when(file) for file in events]
    if all(time is not None for time in times):
        return [file for _, file in sorted(zip(times, events), key=lambda pair: (pair[0], natural(pair[1].path.name)))]
    keys = [(natural(plain(file.of("ses"))), natural(plain(file.of("run")))) for file in events]
    if len({repr(key) for key in keys}) < len(keys):
        apart = ", ".join(f"{key} {'/'.join(values)}" for key, values in differing(events).items() if key not in ("ses", "run"))
        raise UserError(
            f"{unit.first.path} holds several tables' trials, and their order cannot be known from run labels ({apart} differ): number the "
            "runs, give one file of responses per table, or write acq_time in the scans.tsv."
        )
    return [file for _, file in sorted(zip(keys, events), key=lambda pair: pair[0])]


def _refuse_leftovers(
    subject: str, own: Sequence[Named], claimed: Mapping[Path, Unit], pairs: Sequence[Pair], alone: Sequence[Unit], root: Path
) -> None:
    left = [file for file in own if file.path not in claimed]
    with_responses = {file.of("task") for file in own if file.path in claimed} | {p.events[0].of("task") for p in pairs}
    for file in left:
        if with_responses and file.of("task") not in with_responses:
            continue  # events of another task, such as a localiser's, are told by the caller
        session = file.of("ses")
        mine = [unit for unit in alone if plain(unit.first.of("ses")) == plain(session)]
        mine += [each.unit for each in pairs if plain(session) in [plain(label) for label in each.sessions]]
        where = f"sub-{subject}" + (f"_ses-{session}" if session else "")
        if mine:
            shown = ", ".join(sorted((unit.first.of("run") or "none" for unit in mine), key=natural))
            runs = ", ".join(other.of("run") or "none" for other in own if plain(other.of("ses")) == plain(session))
            raise UserError(
                f"{where}: the responses are of runs {shown}, the events of runs {runs}; give one file a run, or one a session "
                f"({file.path.name} has none)."
            )
        raise UserError(f"{root} holds no responses of {where} ({where}_betas.nii.gz, .npy or .hdf5){{more}}; {GUIDE}.")


def same_events(files: Sequence[Named]) -> tuple[list[Named], list[str]]:
    """Tables of events, those that are the same file twice counted once.

    Raises
    ------
    UserError
        When two tables of the same run differ.
    """
    found: dict[tuple[str, ...], Named] = {}
    notes: list[str] = []
    for file in sorted(files, key=lambda file: len(file.path.parts)):
        key = file.key(TRIAL_ENTITIES)
        if key not in found:
            found[key] = file
        elif found[key].path.read_bytes() == file.path.read_bytes():
            notes.append(f"{file.path} is equal to {found[key].path.name} and counts once")
        else:
            raise UserError(
                f"{found[key].path} and {file.path} are events of the same run and differ; remove one of them, or give them other entities."
            )
    return list(found.values()), notes
