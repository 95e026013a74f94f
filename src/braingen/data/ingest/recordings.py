"""All trials and responses of one subject, session by session, run by run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from braingen.data.ingest.acquisition import AcquisitionTimes
from braingen.data.ingest.design import DesignComparison
from braingen.data.ingest.events import EventTable, read_events
from braingen.data.ingest.forms import ReadRequest, ScanSource
from braingen.data.ingest.grids import misfit
from braingen.data.ingest.inputs import Inputs
from braingen.data.ingest.masks import grid_of
from braingen.data.ingest.names import GUIDE, Named, plain
from braingen.data.ingest.pairing import PairedRun, other_order, pair, same_events
from braingen.data.ingest.stimuli import OwnStimuli
from braingen.data.ingest.trial_rows import TrialSelection, rows_of_trials
from braingen.data.ingest.trial_table import events_of_table
from braingen.data.ingest.units import Unit, among, units_of
from braingen.data.volumes import load_nifti
from braingen.runtime.errors import UserError


class RecordingRun(NamedTuple):
    """Trials of one run with the rows of their responses."""

    session: str
    name: str
    table: Path
    """Table of events that its trials were read from."""
    source: int
    """Index of its responses in `Recordings.sources`."""
    trials: pd.DataFrame
    """Columns of `EventTable.trials`, and row (of the source) and number (in the run, from 1)."""


class Recordings(NamedTuple):
    """All responses and trials of a subject."""

    label: str
    sources: tuple[ScanSource, ...]
    runs: tuple[RecordingRun, ...]
    """In the order of sessions and runs."""
    sessions: tuple[str, ...]
    """Labels in order."""
    order: str
    """By what sessions were ordered: label or acquisition time."""
    files: tuple[Path, ...]
    """Files that were read, pictures excepted."""
    notes: tuple[str, ...]
    left_out: int
    """Trials that were left out on both sides."""

    @property
    def lead(self) -> ScanSource:
        """The source that defines the space of the voxels: the first volume, or the first one."""
        return next((source for source in self.sources if source.is_volume), self.sources[0])

    def numbered(self, number: Mapping[str, int]) -> Iterator[tuple[int, int, RecordingRun]]:
        """Session, run (both from 1) and trials of every run that has any, sessions by number."""
        for label in sorted(self.sessions, key=lambda label: number[label]):
            mine = [run for run in self.runs if run.session == label]
            for place, run in enumerate(mine, start=1):
                if len(run.trials):
                    yield number[label], place, run


class _Events:
    """Tables of events of a subject, each read once."""

    def __init__(self, inputs: Inputs, label: str, stimuli: OwnStimuli) -> None:
        self._column, self._names = inputs.prepare.stimulus_column, stimuli.names
        self.read: dict[Path, EventTable] = {}
        self.files: list[Named]
        self.notes: list[str] = []
        if inputs.trial_table is not None:
            self.files, self.read = events_of_table(*inputs.trial_table, label)
            return
        self.files, self.notes = same_events(inputs.events_of(label))
        if task := inputs.wanted.get("task"):
            self.files = [file for file in self.files if file.of("task") in ("", task)]

    def table(self, file: Named) -> EventTable:
        if file.path not in self.read:
            self.read[file.path] = read_events(file.path, self._column, self._names)
        return self.read[file.path]

    def trials_in_session(self, file: Named) -> int:
        return sum(len(self.table(e).trials) for e in self.files if e.same(file, ("ses",)))

    def notes_of_tables(self) -> list[str]:
        tables = self.read.values()
        notes = [note for table in tables for note in table.notes]
        ignored = list(dict.fromkeys(name for table in tables for name in table.ignored))
        if ignored:
            notes.append(f"columns of the events that are not used: {', '.join(ignored)}")
        return notes


def read_recordings(
    inputs: Inputs, label: str, stimuli: OwnStimuli, times: AcquisitionTimes
) -> Recordings:
    """Pair the responses of a subject with the trials of its events.

    Parameters
    ----------
    inputs : Inputs
        Files of the folder.
    label : str
        The subject.
    stimuli : OwnStimuli
        Pictures, to suggest the column that names them.
    times : AcquisitionTimes
        Times of runs and sessions.

    Raises
    ------
    UserError
        When responses are missing, contradict the events, or lie in different spaces.
    """
    responses = among(inputs.responses_of(label), inputs.root, inputs.prepare.responses)
    events = _Events(inputs, label, stimuli)
    if inputs.trial_table is None:
        _refuse_several_tasks(label, responses, events.files)
    units, notes_of_units = units_of(responses, inputs.wanted, events.trials_in_session)
    notes = [*events.notes, *notes_of_units]
    pairs, alone = pair(
        label, units, events.files, times.of_run, lambda where: inputs.no_responses(label, where)
    )
    notes += _unpaired(pairs, alone, events.files)
    given = None if inputs.trial_table is None else inputs.trial_table[0]
    files = [given] if given else [file.path for each in pairs for file in each.events]
    subject = pairs[0].unit.first.of("sub") or pairs[0].events[0].of("sub")
    sessions = list(dict.fromkeys(session for each in pairs for session in each.sessions))
    ordered, order = times.order_sessions(subject, sessions)
    grid = _grid_of_masks(inputs.masks_of(label))
    selection, design = TrialSelection(inputs.prepare), DesignComparison()
    sources: list[ScanSource] = []
    runs: list[RecordingRun] = []
    for each in pairs:
        tables = [events.table(file) for file in each.events]
        trials = sum(len(table.trials) for table in tables)
        notes += other_order(each)
        source = each.unit.open(ReadRequest(inputs.prepare.dataset, trials, grid))
        rows, notes_of_rows = rows_of_trials(each, source, tables)
        notes += [*notes_of_rows, *source.notes, *design.compare(source, tables, rows)]
        for file, session, table, row in zip(each.events, each.sessions, tables, rows):
            for name, part in selection.used(table, row).groupby("run", sort=False):
                run = str(name) or plain(file.of("run"))
                part = part.reset_index(drop=True)
                runs.append(RecordingRun(session, run, file.path, len(sources), part))
        files += source.files
        sources.append(source)
    notes += [*selection.notes(), *events.notes_of_tables()]
    runs.sort(key=lambda run: ordered.index(run.session))  # stable: keeps the order of responses
    found = Recordings(
        label,
        tuple(sources),
        tuple(runs),
        ordered,
        order,
        tuple(dict.fromkeys(files)),
        tuple(dict.fromkeys(notes)),
        selection.left_out,
    )
    _check_grids(found)
    return found


def _unpaired(
    pairs: Sequence[PairedRun], alone: Sequence[Unit], events: Sequence[Named]
) -> list[str]:
    """Notes on tables without responses and on responses without a table."""
    used = {file.path for each in pairs for file in each.events}
    unused = [file.path.name for file in events if file.path not in used]
    notes = [f"left out, events without responses: {', '.join(unused[:4])}"] if unused else []
    for unit in alone:
        shown = ", ".join(str(file.path) for file in unit.files[:2])
        notes.append(f"LEFT OUT, responses that no table of events belongs to: {shown}")
    return notes


def _refuse_several_tasks(label: str, responses: Sequence[Named], events: Sequence[Named]) -> None:
    tasks = {f.of("task") for f in responses if f.of("task")} & {f.of("task") for f in events}
    if len(tasks) > 1:
        shown = ", ".join(sorted(tasks))
        raise UserError(
            f"sub-{label} has responses to tasks {shown}; choose one with --task VALUE."
        )


def _grid_of_masks(masks: Sequence[Named]) -> tuple[int, ...]:
    """Shape of the subject's masks, by which the axes of arrays are known."""
    volumes = (file.path for file in masks if file.ending.startswith(".nii"))
    return next((tuple(load_nifti(path).shape[:3]) for path in volumes), ())


def _check_grids(found: Recordings) -> None:
    """Refuse sources that lie in different spaces."""
    first = found.lead
    for source in found.sources:
        if source.is_volume != first.is_volume:
            continue  # the number of columns is compared with the mask when responses are read
        if source.is_volume and (reason := misfit(grid_of(first), grid_of(source))):
            raise UserError(
                f"{first.name} and {source.name} do not lie in the same space: {reason}; resample "
                "one of the two."
            )
        if source.columns != first.columns:
            raise UserError(
                f"{source.name} has {source.columns} voxels, the mask or the first session has "
                f"{first.columns}; {GUIDE}."
            )
        sides, others = ([part.side for part in each.parts] for each in (source, first))
        if source.surface != first.surface or sides != others:
            raise UserError(
                f"{first.name} and {source.name} are of different surfaces or hemispheres; prepare "
                "one of them alone."
            )
