"""Which responses belong to which tables of events: by entities, never by the order of paths.

A file of responses covers the tables of events that agree with all entities it has: a run's file
one table, a session's file all runs of the session, GLMsingle's output of a subject all sessions.
Tables above (BIDS inheritance) hold for every file below them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from braingen.data.ingest.names import TRIAL_ENTITIES, Named, differing, natural, plain, same_label
from braingen.data.ingest.tables import read_table
from braingen.data.ingest.units import Unit
from braingen.runtime.errors import UserError


class PairedRun(NamedTuple):
    """A unit and the tables of events it covers, in the order of its trials."""

    unit: Unit
    events: tuple[Named, ...]
    sessions: tuple[str, ...]
    """Label of the session of every table."""


def same_events(files: Sequence[Named]) -> tuple[list[Named], list[str]]:
    """Tables of events without second copies, and notes on those.

    Raises
    ------
    UserError
        When two tables of the same run differ.
    """
    found: dict[tuple[str, ...], Named] = {}
    notes: list[str] = []
    for file in sorted(files, key=lambda file: len(file.path.parts)):
        other = found.setdefault(file.key(TRIAL_ENTITIES), file)
        if other is file:
            continue
        same = other.path.read_bytes() == file.path.read_bytes()
        if not same and not read_table(other.path).equals(read_table(file.path)):
            raise UserError(
                f"{other.path} and {file.path} are events of the same run and differ; remove one "
                "of them, or give them other entities."
            )
        notes.append(f"{file.path} is equal to {other.path.name} and counts once")
    return list(found.values()), notes


def _agree(one: Named, two: Named) -> bool:
    """Whether a file agrees with all that the name of another says of its trials."""
    return two.same(one, [entity for entity in TRIAL_ENTITIES if one.of(entity)])


def _inherited(response: Named, events: Sequence[Named]) -> Named | None:
    """The most specific table above a file that holds for it (BIDS inheritance).

    Raises
    ------
    UserError
        When two hold equally.
    """

    def is_above(file: Named) -> bool:
        same = not file.of("sub") or same_label(file.of("sub"), response.of("sub"))
        return same or file.path.parent in response.path.parents

    def entities(file: Named) -> int:
        return sum(bool(file.of(key)) for key in TRIAL_ENTITIES)

    holding = [file for file in events if _agree(file, response) and is_above(file)]
    most = max(map(entities, holding), default=0)
    best = [file for file in holding if entities(file) == most]
    if len(best) > 1:
        raise UserError(
            f"{best[0].path} and {best[1].path} both hold for {response.path}; remove one, or name "
            "them more precisely."
        )
    return best[0] if best else None


def pair(
    subject: str,
    units: Sequence[Unit],
    events: Sequence[Named],
    when: Callable[[Named], float | None],
    missing: Callable[[str], UserError],
) -> tuple[list[PairedRun], list[Unit]]:
    """Pair the units of a subject with its tables of events.

    Parameters
    ----------
    subject : str
        Label.
    units : sequence of Unit
        The subject's responses.
    events : sequence of Named
        Tables of this subject, and those above all subjects.
    when : callable
        Time at which the run of a table was acquired, None where not known.
    missing : callable
        Makes the error about missing responses, of a subject or session (sub-01_ses-02).

    Returns
    -------
    list of Pair, list of Unit
        Pairs, and units that no table belongs to.

    Raises
    ------
    UserError
        When tables have no responses, are claimed twice, or their order cannot be known.
    """
    own = [file for file in events if same_label(file.of("sub"), subject)]
    claimed: dict[Path, Unit] = {}
    pairs, alone = [], []
    for unit in units:
        covered = [file for file in own if _agree(unit.first, file)]
        for file in covered:
            if claimed.setdefault(file.path, unit) is not unit:
                raise UserError(
                    f"{claimed[file.path].first.path} and {unit.first.path} both claim the trials "
                    f"of {file.path}; choose with --responses PATTERN, or move one away."
                )
        if not covered:
            above = _inherited(unit.first, events)
            if above is None:
                alone.append(unit)
                continue
            covered = [above]
        tasks = list(dict.fromkeys(file.of("task") for file in covered))
        if len(tasks) > 1:
            raise UserError(
                f"{unit.first.path} names no task, its events are of tasks {', '.join(tasks)}; "
                "choose the one it is of with --task VALUE."
            )
        covered = _in_order(unit, covered, when)
        sessions = tuple(file.of("ses") or unit.first.of("ses") for file in covered)
        pairs.append(PairedRun(unit, tuple(covered), sessions))
    _refuse_leftovers(subject, own, claimed, pairs, alone, missing)
    if not pairs:
        raise missing(f"sub-{subject}")
    return pairs, alone


def _in_order(
    unit: Unit, events: list[Named], when: Callable[[Named], float | None]
) -> list[Named]:
    """Tables in the order of their trials: by time of acquisition, or by labels."""
    if len(events) == 1:
        return events
    times = [time for file in events if (time := when(file)) is not None]
    if len(times) == len(events):
        timed = sorted(zip(times, events), key=lambda x: (x[0], natural(x[1].path.name)))
        return [file for _, file in timed]
    keys = [tuple(natural(plain(file.of(key))) for key in ("ses", "run")) for file in events]
    if len({repr(key) for key in keys}) < len(keys):
        values = differing(events)
        apart = ", ".join(
            f"{key} {'/'.join(values[key])}" for key in values if key not in ("ses", "run")
        )
        raise UserError(
            f"{unit.first.path} holds several tables' trials, and their order cannot be known from "
            f"run labels ({apart} differ): number the runs, give one file of responses per table, "
            "or write acq_time in the scans.tsv."
        )
    return [file for _, file in sorted(zip(keys, events), key=lambda pair: pair[0])]


def other_order(pair: PairedRun) -> list[str]:
    """Note on runs whose times of acquisition are not in the order of their labels."""
    names = [file.path.name for file in pair.events]
    if names == sorted(names, key=natural):
        return []
    return [
        f"{pair.unit.first.path.name}: its trials are taken in the order of acquisition "
        f"({', '.join(names[:4])}{', ...' if len(names) > 4 else ''}; acq_time in the scans.tsv), "
        "which is not that of the labels"
    ]


def _refuse_leftovers(
    subject: str,
    own: Sequence[Named],
    claimed: Mapping[Path, Unit],
    pairs: Sequence[PairedRun],
    alone: Sequence[Unit],
    missing: Callable[[str], UserError],
) -> None:
    """Refuse tables without responses; those of another task are only noted by the caller."""
    tasks = {file.of("task") for file in own if file.path in claimed}
    tasks |= {each.events[0].of("task") for each in pairs}
    for file in own:
        if file.path in claimed or (tasks and file.of("task") not in tasks):
            continue
        session = plain(file.of("ses"))
        mine = [unit for unit in alone if plain(unit.first.of("ses")) == session]
        mine += [each.unit for each in pairs if session in map(plain, each.sessions)]
        where = f"sub-{subject}" + (f"_ses-{file.of('ses')}" if session else "")
        if not mine:
            raise missing(where)
        shown = sorted((unit.first.of("run") or "none" for unit in mine), key=natural)
        runs = [o.of("run") or "none" for o in own if plain(o.of("ses")) == session]
        raise UserError(
            f"{where}: the responses are of runs {', '.join(shown)}, the events of runs "
            f"{', '.join(runs)}; give one file a run, or one a session ({file.path.name} has none)."
        )
