"""Anybody's own scans, found by their BIDS entities: responses per trial in any form of `forms`,
tables of events, pictures, masks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
import hashlib
import math
from pathlib import Path
import re
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from braingen.config.run_and_data import PrepareConfig
from braingen.data import nsd
from braingen.data.ingest import forms
from braingen.data.ingest.events import EventTable, read_events, read_table
from braingen.data.ingest.forms import ReadRequest, ScanPart, ScanSource
from braingen.data.ingest.forms.surfaces import VERTICES
from braingen.data.ingest.identity import PICTURES, Identity, KnownPicture
from braingen.data.ingest.masks import (
    Grid,
    Mask,
    above,
    choose_mask,
    labels_of,
    misfit,
    over_columns,
    read_mask,
    region_files,
)
from braingen.data.ingest.names import GUIDE, Named, Tree, differing, natural, plain, same_label
from braingen.data.ingest.pairing import PairedRun, among, consistent, pair, same_events, units_of
from braingen.data.ingest.stimuli import OwnStimuli, ShownStimulus, pixels_of
from braingen.data.ingest.trial_table import events_of_table, find_trial_table
from braingen.data.places import Places, SurfacePlaces, surface_places
from braingen.data.scans import ScanImages, Statistics
from braingen.data.volumes import ALIGNED, VoxelPlaces, load_nifti
from braingen.runtime.errors import UserError
from braingen.runtime.files import write_json
from braingen.runtime.text_files import read_json, read_text

EVENTS = re.compile(r"(_|^)events\.(tsv|csv)$")
MASK = re.compile(r"(_|^)mask\.(nii|nii\.gz|npy|gii|label\.gii|shape\.gii)$")
LABELS = re.compile(r"_dseg\.nii(\.gz)?$")
LABEL_TABLES = re.compile(r"(_|^)dseg\.tsv$")
TIME_SERIES = re.compile(r"_bold(\.(dtseries|func))?\.(nii|nii\.gz|gii)$")
ACQUIRED = re.compile(r"(_|^)(scans|sessions)\.tsv$")
_NUMBERED_FOLDER = re.compile(r"(?i)^(sub|subj|subject|participant|s|p)[-_ ]?0*(\d+)$")
_TEST_SIDES = ("test",)
_MANY_COLUMNS = 200_000


class Stretch(NamedTuple):
    """Trials of one table of events with the rows of their responses."""

    session: str
    run: str
    table: Path
    """Where its trials were read."""
    source: int
    """Which of the subject's sources."""
    trials: pd.DataFrame
    """Columns of `EventTable.trials`, and row (of the source) and number (of the trial in its run,
    from 1); those left out are gone.
    """


class Recordings(NamedTuple):
    """All that a subject brings."""

    label: str
    sources: tuple[ScanSource, ...]
    stretches: tuple[Stretch, ...]
    """In the order of sessions and runs."""
    sessions: tuple[str, ...]
    """Labels in order."""
    order: str
    """By what sessions were ordered: label or acquisition time."""
    files: tuple[Path, ...]
    """Everything that was read besides pictures."""
    notes: tuple[str, ...]
    runs: int
    left_out: int
    """Trials that were left out on both sides."""

    @property
    def lead(self) -> ScanSource:
        """The source that says where voxels lie: the first volume, or the first of all."""
        return next((source for source in self.sources if source.is_volume), self.sources[0])


class OwnScans:
    """Scans of one's own.

    Parameters
    ----------
    config : PrepareConfig
        Settings of `prepare`; `scans` is the folder.
    data : Path
        The data folder, whose tables say which numbers were given already.
    """

    called = "own scans"
    get_it = GUIDE
    format = 2
    grows = True
    drops_voxels = True

    def __init__(self, config: PrepareConfig, data: Path) -> None:
        assert config.scans is not None
        self.root, self.prepare = config.scans, config
        self.origin = f"own scans in {self.root.name}" + (
            f", mask {self.prepare.mask}" if self.prepare.mask else ""
        )
        self.statistics: Statistics = self.prepare.zscore
        if not self.root.is_dir():
            raise UserError(
                f"The folder of scans {self.root} does not exist; name yours with --scans."
            )
        self.identity = Identity(data)
        self.stimuli = OwnStimuli(self.root, self.prepare.stimuli, self.prepare.ground)
        usual = {
            "task": self.prepare.task,
            "space": self.prepare.space,
            "desc": self.prepare.desc,
            "stat": self.prepare.stat,
        }
        self.wanted = {key: value for key, value in usual.items() if value}
        for word in self.prepare.entities:
            key, dash, value = word.partition("-")
            if not dash or not value:
                raise UserError(
                    f"prepare.entities = {word!r} is no key-value, such as res-2; correct it."
                )
            self.wanted[key] = value
        self._recorded: dict[int, Recordings] = {}
        self._new_notes: list[str] = []
        self._exchanged: set[int] = set()
        self._asked: tuple[int, ...] = ()

    # -- who is who --------------------------------------------------------------------------------

    @cached_property
    def _tree(self) -> Tree:
        return Tree(self.root)

    @cached_property
    def _events(self) -> list[Named]:
        return self._tree.named(EVENTS)

    @cached_property
    def _table(self) -> tuple[Path, pd.DataFrame] | None:
        """The trial table of all subjects, where there is one."""
        return find_trial_table(self.root, self.prepare.trials, bool(self._events))

    @cached_property
    def labels(self) -> dict[str, int]:
        """Label of every subject -> its number."""
        if self._table is not None:
            labels = list(dict.fromkeys(self._table[1]["subject"].astype(str)))
        else:
            named = [file for file in self._events if file.of("sub")]
            with_responses = (
                [file for file in self._tree.named(forms.RESPONSES) if file.of("sub")]
                if len(named) < len(self._events)
                else []
            )
            labels = list(dict.fromkeys(file.of("sub") for file in (*named, *with_responses)))
            if not labels:
                raise UserError(
                    f"{self.root} holds no table of events"
                    f" (sub-01_ses-01_events.tsv){self._plain_names()}: {GUIDE}."
                )
        plainly: dict[str, str] = {}
        for label in labels:
            other = plainly.setdefault(plain(label), label)
            if other != label:
                raise UserError(
                    f"{self.root}: subjects {other}, {label} have the same number twice; rename one"
                    " of them."
                )
        return self.identity.number_subjects(labels)

    def _plain_names(self) -> str:
        """What is there under other names, and how it has to be called."""
        found = [
            path
            for path in self._tree.files
            if re.search(r"(?i)event|trial|design|beta|respons|bold", path.name)
            and not path.name.endswith((".json", ".m", ".py"))
        ]
        if not found:
            return ""
        shown = [path.relative_to(self.root).as_posix() for path in found[:4]]
        more = f" and {len(found) - 4} more" if len(found) > 4 else ""
        first = found[0].relative_to(self.root)
        numbers = [match[2] for part in first.parts if (match := _NUMBERED_FOLDER.match(part))] or [
            "1"
        ]
        session = next(
            (
                re.sub(r"\D", "", part)
                for part in first.parts
                if re.match(r"(?i)ses", part) and re.search(r"\d", part)
            ),
            "1",
        )
        stem = f"sub-{int(numbers[0]):02d}_ses-{int(session or 1):02d}"
        return (
            f"; there are {', '.join(shown)}{more}: call the events {stem}_events.tsv and the"
            f" responses {stem}_betas.npy (or .nii.gz, .hdf5), anywhere below that folder, or write"
            " one trial table (--trials trials.csv)"
        )

    def subjects(self) -> tuple[int, ...]:
        return tuple(sorted(self.labels.values()))

    def label_of(self, subject: int) -> str:
        """Label of a subject."""
        return next(label for label, number in self.labels.items() if number == subject)

    def prepare_for(self, subjects: Sequence[int]) -> None:
        """Read the tables of the subjects that are asked for, number their pictures, decide which
        are for testing.

        Raises
        ------
        UserError
            When anything contradicts itself.
        """
        self._asked = tuple(subjects)
        for subject in subjects:
            self._record(subject)
        self._number_pictures()

    # -- pairing -----------------------------------------------------------------------------------

    def _record(self, subject: int) -> Recordings:
        if subject not in self._recorded:
            self._recorded[subject] = self._read(subject)
        return self._recorded[subject]

    def _read(self, subject: int) -> Recordings:
        label, notes = self.label_of(subject), []
        matlab = [
            file for file in self._tree.named(forms.MATLAB) if same_label(file.of("sub"), label, "")
        ]
        mine = [
            file
            for file in self._tree.named(forms.RESPONSES)
            if same_label(file.of("sub"), label) or (not file.of("sub") and len(self.labels) == 1)
        ]
        stray = [file for file in self._tree.named(forms.RESPONSES) if not file.of("sub")]
        if stray and len(self.labels) > 1 and not mine:
            raise UserError(
                f"{stray[0].path} does not say whose it is, there are subjects"
                f" {', '.join(self.labels)}: put it into a folder sub-LABEL."
            )
        if not mine and matlab:
            raise forms.refuse_matlab(matlab[0])
        mine = among(mine, self.root, self.prepare.responses)
        tables: dict[Path, EventTable] = {}
        if self._table is not None:
            events, tables = events_of_table(*self._table, label)
            files = [self._table[0]]
        else:
            events, told = same_events(
                [file for file in self._events if same_label(file.of("sub"), label, "")]
            )
            notes += told
            if "task" in self.wanted:
                events = [file for file in events if file.of("task") in ("", self.wanted["task"])]
            self._refuse_several_tasks(label, mine, events)
            files = []

        def table_of(file: Named) -> EventTable:
            if file.path not in tables:
                tables[file.path] = read_events(
                    file.path, self.prepare.stimulus_column, self.stimuli.names
                )
            return tables[file.path]

        units, told = units_of(
            mine,
            self.wanted,
            lambda file: sum(len(table_of(e).trials) for e in events if e.same(file, ("ses",))),
        )
        notes += told
        try:
            pairs, alone = pair(label, units, events, self._when, self.root)
        except UserError as error:
            if "{more}" not in str(error):
                raise
            raise UserError(str(error).replace("{more}", self._instead(label, matlab))) from None
        if not pairs:
            raise UserError(
                f"{self.root} holds no responses of sub-{label} (sub-{label}_betas.nii.gz, .npy or"
                f" .hdf5){self._instead(label, matlab)}; {GUIDE}."
            )
        used = {file.path for each in pairs for file in each.events}
        unused = [file for file in events if file.path not in used]
        if unused:
            notes.append(
                "left out, events without responses:"
                f" {', '.join(file.path.name for file in unused[:4])}"
            )
        if self._table is None:
            files += [file.path for each in pairs for file in each.events]
        for unit in alone:
            notes.append(
                "LEFT OUT, responses that no table of events belongs to:"
                f" {', '.join(str(f.path) for f in unit.files[:2])}"
            )
        labels, order = self._session_order(pairs)
        sources: list[ScanSource] = []
        stretches: list[Stretch] = []
        left_out = 0
        counted: Counter[str] = Counter()
        for each in pairs:
            shown = [table_of(file) for file in each.events]
            source = each.unit.open(
                ReadRequest(
                    self.prepare.dataset, sum(len(t.trials) for t in shown), self._any_grid(label)
                )
            )
            rows, told = self._rows(each, source, shown)
            notes += [*told, *source.notes]
            self._compare_design(source, shown, rows)
            for file, session, table, row in zip(each.events, each.sessions, shown, rows):
                kept = self._kept(table, row, counted)
                left_out += len(table.trials) - len(kept)
                for run, part in kept.groupby("run", sort=False):
                    run_label = str(run) or plain(file.of("run"))
                    stretches.append(
                        Stretch(
                            session, run_label, file.path, len(sources), part.reset_index(drop=True)
                        )
                    )
            files += source.files
            sources.append(source)
        notes += self._counts_told(counted)
        for table in tables.values():
            notes += table.notes
        ignored = list(dict.fromkeys(name for table in tables.values() for name in table.ignored))
        if ignored:
            notes.append(f"columns of the events that are not used: {', '.join(ignored)}")
        place = {session: number for number, session in enumerate(labels)}
        stretches.sort(
            key=lambda stretch: place[stretch.session]
        )  # stable: runs keep the order of their responses
        runs = len(stretches)
        found = Recordings(
            label,
            tuple(sources),
            tuple(stretches),
            labels,
            order,
            tuple(dict.fromkeys(files)),
            tuple(dict.fromkeys(notes)),
            runs,
            left_out,
        )
        self._check_grids(found)
        return found

    def _refuse_several_tasks(
        self, label: str, responses: Sequence[Named], events: Sequence[Named]
    ) -> None:
        tasks = sorted(
            {file.of("task") for file in responses if file.of("task")}
            & {file.of("task") for file in events}
        )
        if len(tasks) > 1:
            raise UserError(
                f"sub-{label} has responses to tasks {', '.join(tasks)}; choose one with --task"
                " VALUE."
            )

    def _instead(self, label: str, matlab: Sequence[Named]) -> str:
        """What is there instead of responses."""
        if matlab:
            return f"; {matlab[0].path.name} is a Matlab file: {forms.refuse_matlab(matlab[0])}".rstrip(
                "."
            )
        series = [
            file for file in self._tree.named(TIME_SERIES) if same_label(file.of("sub"), label, "")
        ]
        if series:
            return (
                "; there are time series"
                f" ({series[0].path.name}{f' and {len(series) - 1} more' if len(series) > 1 else ''})"
                " but no single-trial responses: estimate them first, with GLMsingle or"
                " nilearn's LSS"
            )
        return ""

    def _any_grid(self, label: str) -> tuple[int, ...]:
        """Shape of the subject's masks, to tell the axes of arrays."""
        for file in self._masks(label):
            if file.ending.startswith(".nii"):
                return tuple(load_nifti(file.path).shape[:3])
        return ()

    @cached_property
    def _acquired(self) -> dict[tuple[str, str], float]:
        """(subject, session or file name) -> seconds, from scans.tsv and sessions.tsv."""
        found: dict[tuple[str, str], float] = {}
        for file in self._tree.named(ACQUIRED):
            table = read_table(file.path)
            key = next((name for name in ("filename", "session_id") if name in table), None)
            if key is None or "acq_time" not in table:
                continue
            for name, time in zip(
                table[key].astype(str),
                pd.to_datetime(table["acq_time"].astype(str), errors="coerce", format="ISO8601"),
            ):
                if pd.isna(time):
                    continue
                seconds = time.timestamp()
                found[(file.of("sub"), name.rpartition("/")[2])] = seconds
                session = (
                    name.removeprefix("ses-")
                    if key == "session_id"
                    else file.of("ses") or _session_in(name)
                )
                at = (file.of("sub"), f"ses-{session}")
                found[at] = min(seconds, found.get(at, math.inf))
        return found

    def _when(self, file: Named) -> float | None:
        """When the run of a table was acquired."""
        stem = file.path.name.rpartition("_")[0]
        return next(
            (
                t
                for (sub, name), t in self._acquired.items()
                if sub == file.of("sub") and name.startswith(f"{stem}_")
            ),
            None,
        )

    def _session_order(self, pairs: Sequence[PairedRun]) -> tuple[tuple[str, ...], str]:
        subject = pairs[0].unit.first.of("sub") or pairs[0].events[0].of("sub")
        labels = list(dict.fromkeys(session for each in pairs for session in each.sessions))
        times = [self._acquired.get((subject, f"ses-{label}")) for label in labels]
        if len(labels) > 1 and all(time is not None for time in times):
            return tuple(label for _, label in sorted(zip(times, labels))), "acquisition time"
        return tuple(sorted(labels, key=natural)), "label"

    def _rows(
        self, each: PairedRun, source: ScanSource, shown: Sequence[EventTable]
    ) -> tuple[list[np.ndarray], list[str]]:
        """Row of the source for every trial of every table; -1 where responses were cut by hand."""
        counts = [len(table.trials) for table in shown]
        lines = [table.lines for table in shown]
        good = [int((~_left_out(table.trials)).sum()) for table in shown]
        starts = np.cumsum([0, *counts[:-1]])
        if source.trials == sum(counts):
            return [start + np.arange(count) for start, count in zip(starts, counts)], []
        if source.trials == sum(good):
            rows, first = [], 0
            for table in shown:
                kept = ~_left_out(table.trials).to_numpy()
                row = np.full(len(kept), -1)
                row[kept] = first + np.arange(kept.sum())
                first += int(kept.sum())
                rows.append(row)
            return rows, [
                f"{each.unit.first.path.name}: responses are those of the trials that are not"
                " marked as bad"
            ]
        if source.trials == sum(lines):
            rows, first = [], 0
            for table in shown:
                rows.append(first + table.trials["line"].to_numpy())
                first += table.lines
            if all((np.diff(row) > 0).all() for row in rows):
                return rows, [
                    f"{each.unit.first.path.name}: one response per line of the events, those of"
                    " lines without a picture left out"
                ]
        raise UserError(_wrong_count(each, source, sum(counts)))

    def _compare_design(
        self, source: ScanSource, shown: Sequence[EventTable], rows: Sequence[np.ndarray]
    ) -> None:
        if source.order_N is None or len(source.order_N) != source.trials:
            return
        names = np.concatenate([table.trials["stimulus"].to_numpy() for table in shown])
        row = np.concatenate(list(rows))
        wrong = consistent(source.order_N[row[row >= 0]], names[row >= 0].tolist())
        if not wrong:
            self._new_notes.append(
                f"{source.files[0].name}: its own order of conditions agrees with the events"
            )
        elif source.form == "bdpy":
            self._new_notes.append(
                f"{source.files[0].name}: its column of labels does not follow the pictures of the"
                f" events in {wrong} trials"
            )
        else:
            raise UserError(
                f"{source.name}: the conditions it was made with (stimorder in DESIGNINFO)"
                f" contradict the pictures of the events in {wrong} of {source.trials} trials: the"
                " trials are in another order, or of other runs."
            )

    def _kept(self, table: EventTable, row: np.ndarray, counted: Counter[str]) -> pd.DataFrame:
        """Trials that are used, with their row and their number in the run; what is special is
        counted.
        """
        trials = table.trials.assign(row=row)
        trials["number"] = trials.groupby("run").cumcount() + 1
        reasons = {
            "split exclude": trials["side"] == "exclude",
            "without a response": trials["row"] < 0,
        }
        if self.prepare.bad_trials == "leave_out":
            reasons["marked as bad"] = trials["bad"].astype(bool)
        if self.prepare.one_back == "leave_out":
            reasons["one-back repeats"] = trials["one_back"]
        if self.prepare.trial_type:
            reasons["other trial_type"] = ~trials["trial_type"].isin(self.prepare.trial_type)
        gone = pd.Series(False, index=trials.index)
        for reason, which in reasons.items():
            counted[f"out:{reason}"] += int((which & ~gone).sum())
            gone |= which
        kept = trials[~gone]
        counted["bad"] += int(kept["bad"].sum())
        counted["one_back"] += int(kept["one_back"].sum())
        counted.update(f"type:{name or 'none'}" for name in kept["trial_type"])
        return kept

    @staticmethod
    def _counts_told(counted: Counter[str]) -> list[str]:
        out = {
            name.removeprefix("out:"): n
            for name, n in counted.items()
            if name.startswith("out:") and n
        }
        notes = [f"left out on both sides: {n} trials, {reason}" for reason, n in out.items()]
        if counted["bad"]:
            notes.append(
                f"{counted['bad']} trials are marked as bad and kept (prepare.bad_trials=keep)"
            )
        if counted["one_back"]:
            notes.append(
                f"{counted['one_back']} one-back repeats are kept (prepare.one_back=leave_out"
                " leaves them out)"
            )
        types = {
            name.removeprefix("type:"): n for name, n in counted.items() if name.startswith("type:")
        }
        if len(types) > 1:
            told = ", ".join(f"{name} {n}" for name, n in types.items())
            notes.append(f"trial_type: {told}, all kept (prepare.trial_type=NAME takes one)")
        return notes

    def _check_grids(self, found: Recordings) -> None:
        first = found.lead
        for source in found.sources:
            if source.is_volume != first.is_volume:
                # columns of an array have to be as many as voxels of the mask, which is seen when
                # they are read
                continue
            if source.is_volume and (reason := misfit(_grid(first), _grid(source))):
                raise UserError(
                    f"{first.name} and {source.name} do not lie in the same space: {reason};"
                    " resample one of the two."
                )
            if source.columns != first.columns:
                raise UserError(
                    f"{source.name} has {source.columns} voxels, the mask or the first session has"
                    f" {first.columns}; {GUIDE}."
                )
            if source.surface != first.surface or [p.side for p in source.parts] != [
                p.side for p in first.parts
            ]:
                raise UserError(
                    f"{first.name} and {source.name} are of different surfaces or hemispheres;"
                    " prepare one of them alone."
                )

    # -- trials ------------------------------------------------------------------------------------

    def _number_pictures(self) -> None:
        """Ids and sides of all pictures of the subjects that are asked for; known ones keep
        theirs.
        """
        named_in: dict[str, Path] = {}
        for subject in self._asked:
            for stretch in self._record(subject).stretches:
                for name in stretch.trials["stimulus"]:
                    named_in.setdefault(name, stretch.table)
        names = sorted(named_in)
        shown = {
            one.name: one for one in self.stimuli.find({name: named_in[name] for name in names})
        }
        known = self.identity.pictures
        by_pixels: dict[str, str] = {}
        for name, picture in known.items():
            by_pixels.setdefault(picture.pixels, name)
        kinds: dict[str, int] = {}
        twins: list[tuple[str, str]] = []
        for name in names:
            one = shown[name]
            if name in known and known[name].stamp == one.stamp:
                continue
            loaded = self.stimuli.load(one)
            if loaded.kind:
                kinds[loaded.kind] = kinds.get(loaded.kind, 0) + 1
            pixels = pixels_of(loaded.picture_HW3)
            source = (
                one.path.relative_to(self.root).as_posix()
                if one.path.is_relative_to(self.root)
                else one.path.absolute().as_posix()
            )
            if name in known:
                if known[name].pixels != pixels:
                    self._exchange(name, pixels, one.path)
                known[name] = known[name]._replace(stamp=one.stamp, source=source, pixels=pixels)
                continue
            twin = by_pixels.get(pixels)
            image = known[twin].image if twin is not None else self.identity.images
            side = known[twin].side if twin is not None else ""
            known[name] = KnownPicture(image, pixels, source, one.stamp, side)
            if twin is not None:
                twins.append((name, twin))
            by_pixels.setdefault(pixels, name)
        self._shown = shown
        if kinds.get("16-bit"):
            self._new_notes.append(f"{kinds['16-bit']} pictures of 16 bits, scaled to 8")
        if kinds.get("transparent"):
            self._new_notes.append(
                f"{kinds['transparent']} pictures are transparent somewhere, laid on"
                f" {self.stimuli.ground_name} (prepare.ground=COLOUR)"
            )
        if twins:
            self._new_notes.append(
                f"{len(twins)} pictures are equal to another pixel for pixel and count as one"
                f" ({twins[0][0]} is {twins[0][1]})"
            )
        if self._exchanged:
            images = self._exchanged
            self._new_notes.append(
                f"CHANGED: {len(images)} pictures are other pictures than when they were prepared"
                f" (image {min(images)} ...); they are written again under their ids, for all"
                " subjects of the folder"
                f" ({', '.join(map(str, self.identity.sessions)) or 'none'}): prepare into another"
                " folder if those saw the old ones"
            )
        self._choose_sides(names)

    def _exchange(self, name: str, pixels: str, path: Path) -> None:
        """A picture file with other content than before keeps its id, unless that would make two
        ids one picture or one id two.
        """
        known = self.identity.pictures
        image = known[name].image
        others = [other for other, picture in known.items() if other != name]
        twin = next(
            (
                other
                for other in others
                if known[other].pixels == pixels and known[other].image != image
            ),
            None,
        )
        twin = twin or next(
            (
                other
                for other in others
                if known[other].image == image and known[other].pixels != pixels
            ),
            None,
        )
        if twin is not None:
            raise UserError(
                f"The picture {path} has changed since it was prepared as image {image}, and {twin}"
                f" was prepared as image {known[twin].image}: ids of pictures never change. Give"
                " the new picture another name, or choose another data folder with --data_path"
                " FOLDER."
            )
        self._exchanged.add(image)

    def exchanged(self) -> set[int]:
        """Images whose files have other content than when they were written."""
        return self._exchanged

    def _choose_sides(self, names: Sequence[str]) -> None:
        """Which pictures are for testing: the list, the column `split`, or a draw; as before for
        those that are known.
        """
        known = self.identity.pictures
        stated: dict[int, dict[str, str]] = {}
        unstated: list[str] = []
        words = {
            side
            for s in self._asked
            for stretch in self._record(s).stretches
            for side in stretch.trials["side"]
            if side
        }
        for subject in self._asked:
            for stretch in self._record(subject).stretches:
                for name, word in zip(stretch.trials["stimulus"], stretch.trials["side"]):
                    if word:
                        stated.setdefault(known[name].image, {}).setdefault(
                            self._side(word, words), name
                        )
                    else:
                        unstated.append(name)
        if "validation" in words:
            as_what = (
                "training pictures; checkpoints are chosen on some of those"
                if "test" in words
                else "test pictures"
            )
            self._new_notes.append(
                f"split says validation for some trials, which are taken as {as_what}"
            )
        for sides in stated.values():
            if len(sides) > 1:
                names_ = " and ".join(dict.fromkeys(sides.values()))
                raise UserError(
                    f"{names_} ({sum(len(s) > 1 for s in stated.values())} such) is a test picture"
                    " in some events and a training picture in others: scores would be worthless;"
                    " give every picture one `split`."
                )
        chosen = {image: next(iter(sides)) for image, sides in stated.items()}
        where = "column split of the events"
        if self.prepare.test_images is not None:
            chosen, where = self._listed(chosen)
        if not chosen:
            chosen, where = self._drawn()
        elif unstated and self.prepare.test_images is None:
            raise UserError(
                f"split is empty for {unstated[0]} ({len(set(unstated))} pictures), but not for"
                " others; write test or train."
            )
        self.where_tests = where
        changed = [
            name
            for name in names
            if known[name].side
            and known[name].side != chosen.get(known[name].image, known[name].side)
        ]
        if changed:
            self._new_notes.append(
                f"{len(changed)} pictures have changed sides (train, test) since they were prepared"
                f" ({changed[0]}): what was trained before has seen them"
            )
        for name, picture in known.items():
            if picture.image in chosen:
                known[name] = picture._replace(side=chosen[picture.image])

    @staticmethod
    def _side(word: str, words: set[str]) -> str:
        if word == "validation":
            return "train" if "test" in words else "test"
        return word

    def _listed(self, stated: Mapping[int, str]) -> tuple[dict[int, str], str]:
        assert self.prepare.test_images is not None
        known, path = self.identity.pictures, self.prepare.test_images
        text = read_text(path, "name a text file with one stim_file a line")
        listed = [line.strip() for line in text.splitlines() if line.strip()]
        by_stem = {name.rpartition(".")[0]: name for name in known}
        images: set[int] = set()
        unknown = []
        for name in listed:
            found = known.get(name) or known.get(by_stem.get(name, ""))
            if found is None:
                unknown.append(name)
            else:
                images.add(found.image)
        elsewhere = [
            name
            for name in unknown
            if any((place / name).is_file() for place in self.stimuli.places) and ".." not in name
        ]
        unknown = [name for name in unknown if name not in elsewhere]
        if unknown:
            raise UserError(
                f"{path} names {unknown[0]} ({len(unknown)} such), which no table of events has as"
                " stim_file; correct it."
            )
        sides = {
            picture.image: "test" if picture.image in images else "train"
            for picture in known.values()
        }
        against = [image for image, side in stated.items() if sides[image] != side]
        if against:
            name = next(name for name, picture in known.items() if picture.image == against[0])
            self._new_notes.append(
                f"CONTRADICTION: {path.name} and the column split disagree on {len(against)}"
                f" pictures ({name}); the list was taken"
            )
        return sides, f"list {path.name}"

    def _drawn(self) -> tuple[dict[int, str], str]:
        """A share of the pictures, by a digest of their first name; known ones keep their side."""
        known = self.identity.pictures
        first: dict[int, str] = {}
        for name in sorted(known):
            first.setdefault(known[name].image, name)
        sides = {picture.image: picture.side for picture in known.values() if picture.side}
        new = sorted(
            (image for image in first if image not in sides),
            key=lambda image: hashlib.sha256(first[image].encode()).digest(),
        )
        count = math.ceil(self.prepare.test_share * len(new)) if new else 0
        sides |= {image: "test" if place < count else "train" for place, image in enumerate(new)}
        return sides, f"a draw by name, a share of {self.prepare.test_share:g}"

    def trials(self, subject: int, num_sessions: int) -> np.ndarray:
        record = self._record(subject)
        number = self.identity.number_sessions(subject, record.sessions, record.order)
        gone = [label for label in self.identity.sessions[subject] if label not in record.sessions]
        if gone:
            raise UserError(
                f"Session {gone[0] or '(without label)'} of sub-{record.label} was prepared before"
                " and is not among the scans any more: numbers of sessions never change. Bring it"
                " back, or choose another data folder with --data_path FOLDER."
            )
        if num_sessions > len(number):
            raise UserError(
                f"--num_sessions is {num_sessions}, subject {subject} has {len(number)}: ask for at"
                " most so many, or 0 for all."
            )
        known = self.identity.pictures
        column = {name: index for index, name in enumerate(nsd.BEHAV_COLUMNS)}
        parts = []
        for session, run, stretch in self._in_order(subject):
            if num_sessions and session > num_sessions:
                continue
            trials = stretch.trials
            behav = np.full((len(trials), len(column)), -1.0)
            values: dict[str, Any] = {
                "image": [known[name].image for name in trials["stimulus"]],
                "subject": subject,
                "session": session,
                "run": run,
                "trial": trials["number"],
                "is_shared1000": [known[name].side in _TEST_SIDES for name in trials["stimulus"]],
            }
            for name, source, factor in (("time", "onset", 1), ("rt", "response_time", 1000)):
                if trials[source].notna().any():
                    values[name] = trials[source].fillna(-1 / factor) * factor
            for name, value in values.items():
                behav[:, column[name]] = value
            parts.append(behav)
        behav = np.concatenate(parts)
        behav[:, column["global_trial"]] = np.arange(len(behav))
        return behav

    def _in_order(self, subject: int) -> Iterator[tuple[int, int, Stretch]]:
        """(session, run, stretch) from 1, sessions by number."""
        record = self._record(subject)
        number = self.identity.sessions[subject]
        for label in sorted(record.sessions, key=lambda label: number[label]):
            mine = [stretch for stretch in record.stretches if stretch.session == label]
            for run, stretch in enumerate(mine, start=1):
                if len(stretch.trials):
                    yield number[label], run, stretch

    # -- voxels ------------------------------------------------------------------------------------

    def _masks(self, label: str) -> list[Named]:
        return [
            file
            for file in self._tree.named(MASK)
            if same_label(file.of("sub"), label) or (not file.of("sub") and len(self.labels) == 1)
        ]

    @cached_property
    def _mask_of(self) -> dict[int, Mask | None]:
        return {}

    def _mask(self, subject: int) -> Mask | None:
        if subject not in self._mask_of:
            record = self._record(subject)
            source = record.lead
            if source.is_volume and source.affine is None:
                source = source._replace(affine=self._affine_of_masks(record.label, source))
            found = choose_mask(
                self._masks(record.label),
                self.prepare.mask,
                source,
                self.wanted,
                self.prepare.mask_above,
                subject,
            )
            if (
                found is None
                and source.is_volume
                and source.form in ("NIfTI", "one file per trial")
                and self.prepare.mask != "all"
            ):
                raise UserError(
                    f"{source.name} is a volume, but there is no mask that says which voxels to"
                    f" take (sub-{record.label}_mask.nii.gz); take every voxel with responses with"
                    f" --mask all; {GUIDE}."
                )
            if found is not None and not source.is_volume and found.kept.shape != source.grid:
                if found.kept.size == source.columns:
                    found = found._replace(kept=found.kept.ravel())
                elif found.kept.sum() != source.columns:
                    if self.prepare.mask:
                        raise UserError(
                            f"The mask {found.files[0]} has {found.kept.size} places,"
                            f" {found.kept.sum()} of them kept; {source.name} has {source.columns}"
                            " columns; give a mask of as many."
                        )
                    where = (
                        f"they lie on {source.surface}"
                        if source.parts
                        else "where they lie is not known"
                    )
                    self._new_notes.append(
                        f"the mask {found.files[0].name} ({int(found.kept.sum())} voxels) is not"
                        f" used: the responses have {source.columns} columns, {where}"
                    )
                    found = None
            self._mask_of[subject] = found
        return self._mask_of[subject]

    def _affine_of_masks(self, label: str, source: ScanSource) -> np.ndarray | None:
        """The one affine of the masks that have a source's shape, for arrays that bring none."""
        affines: list[np.ndarray] = []
        for file in self._masks(label):
            if (
                not file.ending.startswith(".nii")
                or (image := load_nifti(file.path)).shape[:3] != source.grid
            ):
                continue
            if all(
                misfit(Grid(source.grid, image.affine), Grid(source.grid, other))
                for other in affines
            ):
                affines.append(image.affine)
        if len(affines) > 1 and not self.wanted.get("space") and not self.prepare.mask:
            spaces = differing(self._masks(label)).get("space", [])
            raise UserError(
                f"{source.name} does not say in which space it is, and there are masks of several"
                f" of its shape ({', '.join(spaces)}); choose with --space VALUE or --mask FILE."
            )
        return affines[0] if len(affines) == 1 else None

    def places(self, subject: int) -> Places | None:
        mask, source = self._mask(subject), self._record(subject).lead
        if source.is_volume:
            kept = np.ones(source.grid, dtype=bool) if mask is None else mask.kept
            affine = next(
                (
                    a
                    for a in (source.affine, None if mask is None else mask.affine)
                    if a is not None
                ),
                np.eye(4),
            )
            space = (mask.space if mask is not None else source.space) or ALIGNED
            return VoxelPlaces(kept, self.prepare.order, affine, self.origin, space)
        if mask is not None and mask.kept.ndim == 3 and int(mask.kept.sum()) == source.columns:
            return VoxelPlaces(
                mask.kept,
                self.prepare.order,
                mask.affine if mask.affine is not None else np.eye(4),
                self.origin,
                mask.space,
            )
        if source.parts or (source.surface and source.columns // 2 in VERTICES):
            return self._on_surface(source, self._columns(subject, source))
        return None

    def _on_surface(self, source: ScanSource, columns: np.ndarray | None) -> SurfacePlaces:
        half = source.columns // 2
        surface = source.surface if source.parts else VERTICES[half]
        parts = source.parts or tuple(ScanPart(side, half, None) for side in ("L", "R"))
        stretches, there = [], 0
        for part in parts:
            count = part.vertices if part.vertex_N is None else len(part.vertex_N)
            stretches.append((part.side, part.vertices, part.vertex_N, count))
            there += count
        if there < source.columns:  # grayordinates below the cortex
            stretches.append(("", 0, None, source.columns - there))
        places = surface_places(surface, stretches, self.origin)
        return places if columns is None else places.restricted(columns)

    def _columns(self, subject: int, source: ScanSource) -> np.ndarray | None:
        """Columns of a source that the mask keeps; None for all."""
        mask = self._mask(subject)
        if source.is_volume:
            places = self.places(subject)
            assert isinstance(places, VoxelPlaces)
            return np.ravel_multi_index(tuple(places.indices_V3.T), source.grid)
        if mask is not None and mask.kept.ndim == 1 and mask.kept.size == source.columns:
            return np.flatnonzero(mask.kept)
        return None

    def candidates(self, subject: int) -> tuple[int, int]:
        """Voxels inside the mask, and voxels there are."""
        source = self._record(subject).lead
        columns = self._columns(subject, source)
        return source.columns if columns is None else len(columns), source.columns

    def regions(
        self, subject: int, places: Places | None, kept_V: np.ndarray
    ) -> dict[str, np.ndarray]:
        """Regions of the voxels that are kept of those inside the mask."""
        record, mask = self._record(subject), self._mask(subject)
        source = record.lead
        columns = self._columns(subject, source)
        regions = {"nsd_general": np.ones(int(kept_V.sum()), dtype=bool)}
        for label, files in region_files(
            self._masks(record.label), mask.files if mask else ()
        ).items():
            parts = [
                part
                for file in files
                if (part := self._region(file, source, columns, places, kept_V)) is not None
            ]
            if parts:
                regions[label] = np.any(parts, axis=0)
        if source.regions:
            whole = {
                name: row if columns is None else row[columns]
                for name, row in source.regions.items()
            }
            regions |= {name: row[kept_V] for name, row in whole.items()}
        regions |= self._segmented(record.label, places, kept_V)
        areas = [regions[name] for name in ("V1", "V2", "V3", "V4") if name in regions]
        if areas:
            regions["early_vis"] = np.any(areas, axis=0)
            regions["higher_vis"] = ~regions["early_vis"]
        return regions

    def _region(
        self,
        file: Named,
        source: ScanSource,
        columns: np.ndarray | None,
        places: Places | None,
        kept_V: np.ndarray,
    ) -> np.ndarray | None:
        """The voxels of a region among those that are kept; None where it cannot be told."""
        values, image = read_mask(file.path)
        inside, _ = above(values, file.path, self.prepare.mask_above)
        if image is not None:
            if not isinstance(places, VoxelPlaces):
                self._new_notes.append(
                    f"the region {file.path.name} is a volume and ignored: where the columns lie is"
                    " not known; give it as .npy"
                )
                return None
            reason = misfit(
                Grid(inside.shape, image.affine), Grid(places.mask.shape, places.affine)
            )
            if reason:
                named = self._mask_name(file)
                raise UserError(
                    f"The region {file.path} does not fit the mask {named}: they have {reason};"
                    " resample the region."
                )
            return places.to_vector(inside)
        inside = (
            over_columns(file, inside, source)
            if source.parts and file.of("hemi")
            else inside.ravel()
        )
        if columns is not None and len(inside) == source.columns:
            inside = inside[columns]
        if len(inside) != len(kept_V):
            raise UserError(
                f"The region {file.path} has {len(inside)} columns, {source.name} has"
                f" {source.columns}; give one value for each."
            )
        return inside[kept_V]

    def _mask_name(self, file: Named) -> str:
        mask = next((m for m in self._mask_of.values() if m is not None), None)
        return str(mask.files[0]) if mask else "of the responses"

    def _segmented(
        self, label: str, places: Places | None, kept_V: np.ndarray
    ) -> dict[str, np.ndarray]:
        found: dict[str, np.ndarray] = {}
        tables = self._tree.named(LABEL_TABLES)
        for file in self._tree.named(LABELS):
            if not same_label(file.of("sub"), label, ""):
                continue
            names = labels_of(file, tables)
            if names is None:
                self._new_notes.append(
                    f"{file.path.name} is ignored: no table names its labels"
                    f" ({file.path.name.partition('.')[0]}.tsv)"
                )
                continue
            image = load_nifti(file.path)
            volume = places if isinstance(places, VoxelPlaces) else None
            reason = (
                "no grid in common"
                if volume is None
                else misfit(Grid(image.shape, image.affine), Grid(volume.mask.shape, volume.affine))
            )
            if reason or volume is None:
                self._new_notes.append(
                    f"{file.path.name} is ignored: it and the mask have {reason}"
                )
                continue
            values = volume.to_vector(np.asanyarray(image.dataobj))
            for index, name in names.items():
                if (values == index).any():
                    found[name] = found.get(name, np.zeros(len(values), bool)) | (values == index)
        return found

    def volumes(self, subject: int) -> Mapping[str, Path]:
        return {}

    def session_files(self, subject: int, session: int) -> list[Path]:
        sources = self._record(subject).sources
        used = dict.fromkeys(
            stretch.source for number, _, stretch in self._in_order(subject) if number == session
        )
        return [path for source in used for path in sources[source].files]

    def responses(
        self, subject: int, session: int, trials: int, places: Places | None
    ) -> Iterator[np.ndarray]:
        sources = self._record(subject).sources
        for number, _, stretch in self._in_order(subject):
            if number != session:
                continue
            source, row = sources[stretch.source], stretch.trials["row"].to_numpy()
            columns = self._columns(subject, source)
            for first in range(int(row[0]), int(row[-1]) + 1, source.at_once):
                last = min(first + source.at_once, int(row[-1]) + 1)
                wanted = row[(row >= first) & (row < last)]
                if len(wanted):
                    block = source.read(first, last)
                    block = block if columns is None else block[:, columns]
                    yield block[wanted - first].astype(np.float64)

    def signs(self, subject: int) -> tuple[str, ...]:
        """What speaks for a time series in the headers of a subject's files."""
        return self._record(subject).lead.signs

    def is_array(self, subject: int) -> bool:
        """Whether responses are columns of an array, among which labels may hide."""
        source = self._record(subject).lead
        return not source.is_volume and not source.parts and source.form != "bdpy"

    # -- pictures and captions ---------------------------------------------------------------------

    @cached_property
    def pictures(self) -> ScanImages:
        first: dict[int, Path] = {}
        for known in self.identity.pictures.values():
            first.setdefault(known.image, Path(known.source))
        paths = (first[image] for image in range(self.identity.images))
        return ScanImages(
            self.identity.images,
            tuple(path if path.is_absolute() else self.root / path for path in paths),
        )

    def digests(self) -> list[str]:
        """Digest of every picture's pixels, by image id."""
        by_image = {known.image: known.pixels for known in self.identity.pictures.values()}
        return [by_image[image] for image in range(len(by_image))]

    @cached_property
    def _shown_by_image(self) -> dict[int, ShownStimulus]:
        found: dict[int, ShownStimulus] = {}
        for name, known in self.identity.pictures.items():
            if known.image not in found:
                found[known.image] = (
                    self._shown.get(name)
                    or self.stimuli.find({name: self.identity.root / PICTURES})[0]
                )
        return found

    def images(self, first: int, last: int, side: int) -> np.ndarray:
        return np.stack(
            [self.stimuli.fitted(self._shown_by_image[image], side) for image in range(first, last)]
        )

    def caption_file(self) -> Path | None:
        """captions.json, where there is one."""
        places = (
            self.root / "captions.json",
            *(place / "captions.json" for place in self.stimuli.places),
        )
        return next((path for path in places if path.exists()), None)

    def captions(self) -> dict[int, list[str]] | None:
        path = self.caption_file()
        if path is None:
            return None
        texts = _captions_by_name(path)
        stems: dict[str, list[str]] = {}
        for name in texts:
            stems.setdefault(_stem(name), []).append(name)
        found: dict[int, list[str]] = {}
        without = []
        for name, known in self.identity.pictures.items():
            mine = texts.get(name)
            if mine is None:
                fitting = stems.get(_stem(name), [])
                mine = texts[fitting[0]] if len(fitting) == 1 else None
            if mine:
                found[known.image] = list(dict.fromkeys([*found.get(known.image, []), *mine]))
            else:
                without.append((known.image, name))
        without = [(image, name) for image, name in without if image not in found]
        if without:
            raise UserError(
                f"{path} has no caption for {without[0][1]} ({len(without)} such); add them, or"
                " leave captions out with --no-captions."
            )
        return found

    def tables(self, root: Path) -> list[Path]:
        if self.identity.stale:
            raise UserError(
                f"{root} was changed by another `braingen prepare` meanwhile: start the same"
                " command again."
            )
        description = root / "dataset_description.json"
        if not description.exists():
            write_json(
                description,
                {
                    "Name": f"Prepared from {self.root.name}",
                    "BIDSVersion": "1.9.0",
                    "DatasetType": "derivative",
                    "GeneratedBy": [{"Name": "BrainGen", "Description": "braingen prepare"}],
                },
            )
        return self.identity.write()

    # -- for the summary ---------------------------------------------------------------------------

    def sources(self, subject: int) -> list[Path]:
        mask = self._mask(subject)
        label = self._record(subject).label
        more = [
            file.path
            for file in (
                *self._masks(label),
                *(f for f in self._tree.named(LABELS) if same_label(f.of("sub"), label)),
            )
        ]
        return list(
            dict.fromkeys([*self._record(subject).files, *(mask.files if mask else ()), *more])
        )

    def notes(self, subject: int) -> list[str]:
        record, mask = self._record(subject), self._mask(subject)
        notes = [*record.notes, *(mask.notes if mask else ()), *self._new_notes]
        if record.order == "acquisition time":
            notes.append(f"sessions are in the order of acquisition: {', '.join(record.sessions)}")
        elif len(record.sessions) > 1 and not all(
            re.search(r"\d", label) for label in record.sessions
        ):
            notes.append(
                f"sessions are in the order of their labels: {', '.join(record.sessions)} (acq_time"
                " in a scans.tsv would decide it)"
            )
        inside, _ = self.candidates(subject)
        if inside > _MANY_COLUMNS:
            notes.append(
                f"{inside} voxels are many: an encoder needs memory for each (NSD's nsdgeneral has"
                " 13 000 to 18 000); give a mask of visual cortex with --mask FILE"
            )
        if not (self.root / "dataset_description.json").exists():
            notes.append(
                'there is no dataset_description.json; BIDS asks for one: {"Name": "...",'
                ' "BIDSVersion": "1.9.0"}'
            )
        return list(dict.fromkeys(notes))

    def who(self, subject: int) -> dict[str, Any]:
        """Labels of a subject and its sessions, counts of what was found."""
        record = self._record(subject)
        sessions = self.identity.sessions.get(subject, {})
        return {
            "label": record.label,
            "sessions": {
                number: label
                for label, number in sorted(sessions.items(), key=lambda pair: pair[1])
            },
            "runs": record.runs,
            "left_out": record.left_out,
            "form": record.sources[0].form,
            "test pictures": self.where_tests,
            "captions": (
                self.caption_file().name  # type: ignore[union-attr]
                if self.prepare.captions and self.caption_file()
                else "none"
            ),  # type: ignore[union-attr]
        }


def numbers_of_labels(words: Sequence[str], prepare: PrepareConfig, data: Path) -> list[int]:
    """Numbers of subjects that are given by label or number, by the tables of a data folder and the
    scans that are named.

    Raises
    ------
    UserError
        When a label is not known; those that are, are listed with their numbers.
    """
    known = dict(Identity(data).subjects)
    if prepare.scans is not None and prepare.scans.is_dir():
        known |= OwnScans(prepare, data).labels
    found = []
    for word in words:
        label = word.removeprefix("sub-")
        if label not in known and not word.isdecimal():
            there = (
                ", ".join(
                    f"{name} ({number})"
                    for name, number in sorted(known.items(), key=lambda pair: pair[1])
                )
                or "none"
            )
            raise UserError(
                f"There is no subject {word}; labels and numbers of those that are known: {there}."
                " Name one with --subj."
            )
        found.append(known[label] if label in known else int(word))
    return found


def _left_out(trials: pd.DataFrame) -> pd.Series:
    return trials["bad"].astype(bool) | (trials["side"] == "exclude")


def _grid(source: ScanSource) -> Grid:
    return Grid(source.grid, source.affine)


def _session_in(name: str) -> str:
    match = re.search(r"(?:^|[_/])ses-([A-Za-z0-9]+)", name)
    return match[1] if match else ""


def _wrong_count(each: PairedRun, source: ScanSource, trials: int) -> str:
    """Why responses and events do not belong together, with what the counts look like."""
    hint = ""
    if source.trials > trials and source.trials % trials == 0:
        hint = (
            f" {source.trials} is {source.trials // trials} x {trials}: one response per event is"
            " needed; is this a time series, or was every TR of an event coded as an onset?"
        )
    elif trials > source.trials and trials % source.trials == 0:
        hint = (
            f" {trials} is {trials // source.trials} x {source.trials}: are these responses of one"
            " run, or means over repeats?"
        )
    if source.signs:
        hint += (
            f" It looks like a time series ({'; '.join(source.signs)}): estimate single-trial"
            " responses first (GLMsingle, nilearn's LSS)."
        )
    tables = (
        f" in {len(each.events)} tables"
        if len(each.events) > 1
        else f" ({each.events[0].path.name})"
    )
    return (
        f"{each.unit.first.path} holds responses to {source.trials} trials, its events name a"
        f" picture in {trials}{tables}: they do not belong together.{hint} {GUIDE}."
    )


def _stem(name: str) -> str:
    """A name without folders and ending."""
    last = name.rpartition("/")[2]
    return last.rpartition(".")[0] or last


def _captions_by_name(path: Path) -> dict[str, list[str]]:
    """Captions by the name of the picture: {name: captions}, a list of {file_name, caption}, or
    COCO's annotations.
    """
    found = read_json(path, GUIDE)
    texts: dict[str, list[str]] = {}
    try:
        if isinstance(found, dict) and {"images", "annotations"} <= set(found):
            names = {image["id"]: image["file_name"] for image in found["images"]}
            for note in found["annotations"]:
                texts.setdefault(names[note["image_id"]], []).append(str(note["caption"]).strip())
        elif isinstance(found, list):
            for entry in found:
                name = next(
                    entry[key]
                    for key in ("file_name", "stim_file", "image", "name")
                    if key in entry
                )
                given = entry.get("caption", entry.get("captions"))
                texts.setdefault(str(name), []).extend(
                    [given.strip()] if isinstance(given, str) else [str(t).strip() for t in given]
                )
        else:
            texts = {
                name: [str(text).strip() for text in ([given] if isinstance(given, str) else given)]
                for name, given in found.items()
            }
    except (ValueError, AttributeError, TypeError, KeyError, StopIteration) as error:
        raise UserError(
            f"{path} is not {{stim_file: [captions]}}, nor a list of {{file_name, caption}}"
            f" ({' '.join(str(error).split())}); {GUIDE}."
        ) from error
    return {name: [text for text in mine if text] for name, mine in texts.items()}
