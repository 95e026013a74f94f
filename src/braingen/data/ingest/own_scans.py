"""Own scans as `prepare` reads them: inputs, recordings, pictures and voxels put together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
import re
from typing import Any

import numpy as np

from braingen.config.run_and_data import PrepareConfig
from braingen.data import nsd
from braingen.data.ingest.acquisition import BY_TIME, AcquisitionTimes
from braingen.data.ingest.captions import captions_by_image, find_captions
from braingen.data.ingest.identity import PICTURES, Identity
from braingen.data.ingest.inputs import Inputs
from braingen.data.ingest.names import GUIDE
from braingen.data.ingest.picture_ids import PictureIds
from braingen.data.ingest.picture_split import TEST, PictureSplit
from braingen.data.ingest.recordings import RecordingRun, Recordings, read_recordings
from braingen.data.ingest.regions import regions_of
from braingen.data.ingest.stimuli import OwnStimuli, ShownStimulus
from braingen.data.ingest.voxel_space import VoxelSpace
from braingen.data.places import Places
from braingen.data.scans import ScanImages, Scans, Statistics, behav_of
from braingen.runtime.errors import UserError
from braingen.runtime.files import write_json

_MANY_COLUMNS = 200_000


class OwnScans(Scans):
    """Scans of one's own.

    Parameters
    ----------
    config : PrepareConfig
        Settings of `prepare`; `scans` is the folder.
    data : Path
        The data folder, whose tables hold the numbers that were given before.
    """

    called = "own scans"
    get_it = GUIDE
    format = 2
    grows = True
    drops_voxels = True

    def __init__(self, config: PrepareConfig, data: Path) -> None:
        self.inputs, self.prepare = Inputs(config), config
        self.root = self.inputs.root
        mask = f", mask {self.prepare.mask}" if self.prepare.mask else ""
        self.origin = f"own scans in {self.root.name}{mask}"
        self.statistics: Statistics = self.prepare.zscore
        self.identity = Identity(data)
        self.stimuli = OwnStimuli(self.root, self.prepare.stimuli, self.prepare.ground)
        self._recordings: dict[int, Recordings] = {}
        self._spaces: dict[int, VoxelSpace] = {}
        self._notes: list[str] = []

    @cached_property
    def labels(self) -> dict[str, int]:
        """Label of every subject -> its number."""
        return self.identity.number_subjects(self.inputs.labels)

    @cached_property
    def _times(self) -> AcquisitionTimes:
        return AcquisitionTimes(self.inputs.acquisition_tables)

    def subjects(self) -> tuple[int, ...]:
        return tuple(sorted(self.labels.values()))

    def prepare_for(self, subjects: Sequence[int]) -> None:
        """Read the tables of the subjects that are asked for, number and split their pictures.

        Raises
        ------
        UserError
            When anything contradicts itself.
        """
        runs = [run for subject in subjects for run in self._record(subject).runs]
        self._ids = PictureIds(runs, self.stimuli, self.identity)
        known = self.identity.pictures
        self._split = PictureSplit(self.prepare, runs, self._ids.shown, known, self.stimuli)
        self._notes += [*self._ids.notes(), *self._split.notes]

    def _record(self, subject: int) -> Recordings:
        if subject not in self._recordings:
            label = next(label for label, number in self.labels.items() if number == subject)
            found = read_recordings(self.inputs, label, self.stimuli, self._times)
            self._recordings[subject] = found
        return self._recordings[subject]

    def _space(self, subject: int) -> VoxelSpace:
        if subject not in self._spaces:
            record = self._record(subject)
            self._spaces[subject] = VoxelSpace(self.inputs, record, subject, self.origin)
        return self._spaces[subject]

    def _runs(self, subject: int) -> Iterator[tuple[int, int, RecordingRun]]:
        return self._record(subject).numbered(self.identity.sessions[subject])

    # -- trials -----------------------------------------------------------------------------------

    def trials(self, subject: int, num_sessions: int) -> np.ndarray:
        record = self._record(subject)
        number = self.identity.number_sessions(subject, record.sessions, record.order)
        before = self.identity.sessions[subject]
        gone = [label for label in before if label not in record.sessions]
        if gone:
            raise UserError(
                f"Session {gone[0] or '(without label)'} of sub-{record.label} was prepared before "
                "and is not among the scans any more: numbers of sessions never change. Bring it "
                "back, or choose another data folder with --data_path FOLDER."
            )
        if num_sessions > len(number):
            raise UserError(
                f"--num_sessions is {num_sessions}, subject {subject} has {len(number)}: ask for "
                "at most so many, or 0 for all."
            )
        known = self.identity.pictures
        parts = []
        for session, place, run in self._runs(subject):
            if num_sessions and session > num_sessions:
                continue
            shown = [known[name] for name in run.trials["stimulus"]]
            values: dict[str, Any] = {
                "image": [picture.image for picture in shown],
                "subject": subject,
                "session": session,
                "run": place,
                "trial": run.trials["number"],
                "is_shared1000": [picture.side == TEST for picture in shown],
            }
            for name, source, factor in (("time", "onset", 1), ("rt", "response_time", 1000)):
                if run.trials[source].notna().any():
                    values[name] = run.trials[source].fillna(-1 / factor) * factor
            parts.append(behav_of(len(shown), values))
        behav = np.concatenate(parts)
        behav[:, nsd.BEHAV_COLUMNS.index("global_trial")] = np.arange(len(behav))
        return behav

    def session_files(self, subject: int, session: int) -> list[Path]:
        sources = self._record(subject).sources
        used = dict.fromkeys(run.source for k, _, run in self._runs(subject) if k == session)
        return [path for source in used for path in sources[source].files]

    def responses(
        self, subject: int, session: int, trials: int, places: Places | None
    ) -> Iterator[np.ndarray]:
        for number, _, run in self._runs(subject):
            if number == session:
                yield from self._space(subject).responses(run)

    def signs(self, subject: int) -> tuple[str, ...]:
        return self._record(subject).lead.signs

    def is_array(self, subject: int) -> bool:
        source = self._record(subject).lead
        return not source.is_volume and not source.parts and source.form != "bdpy"

    # -- voxels -----------------------------------------------------------------------------------

    def places(self, subject: int) -> Places | None:
        return self._space(subject).places

    def candidates(self, subject: int) -> tuple[int, int]:
        space = self._space(subject)
        whole, columns = space.source.columns, space.columns(space.source)
        return whole if columns is None else len(columns), whole

    def columns(self, subject: int) -> np.ndarray | None:
        source = self._space(subject).source
        if source.is_volume:
            return None
        kept = self._space(subject).columns(source)
        return np.arange(source.columns) if kept is None else kept

    def regions(
        self, subject: int, places: Places | None, kept_V: np.ndarray
    ) -> dict[str, np.ndarray]:
        return regions_of(self._space(subject), places, kept_V, self._notes)

    # -- pictures and captions --------------------------------------------------------------------

    @cached_property
    def pictures(self) -> ScanImages:
        first: dict[int, Path] = {}
        for known in self.identity.pictures.values():
            first.setdefault(known.image, self.root / known.source)
        count = self.identity.images
        return ScanImages(count, tuple(first[image] for image in range(count)))

    def exchanged(self) -> set[int]:
        return self._ids.changed

    @cached_property
    def _shown_by_image(self) -> dict[int, ShownStimulus]:
        found: dict[int, ShownStimulus] = {}
        tables = self.identity.root / PICTURES
        for name, known in self.identity.pictures.items():
            if known.image not in found:
                shown = self._ids.shown.get(name)
                found[known.image] = shown or self.stimuli.find({name: tables})[0]
        return found

    def images(self, first: int, last: int, side: int) -> np.ndarray:
        shown = (self._shown_by_image[image] for image in range(first, last))
        return np.stack([self.stimuli.fitted(one, side) for one in shown])

    def caption_file(self) -> Path | None:
        return find_captions((self.root, *self.stimuli.places))

    def captions(self) -> dict[int, list[str]] | None:
        path = self.caption_file()
        return None if path is None else captions_by_image(path, self.identity.pictures)

    def tables(self, root: Path) -> list[Path]:
        if self.identity.stale:
            raise UserError(
                f"{root} was changed by another `braingen prepare` meanwhile: start the same "
                "command again."
            )
        description = root / "dataset_description.json"
        if not description.exists():
            by = {"Name": "BrainGen", "Description": "braingen prepare"}
            facts = {"Name": f"Prepared from {self.root.name}", "BIDSVersion": "1.9.0"}
            write_json(description, facts | {"DatasetType": "derivative", "GeneratedBy": [by]})
        return self.identity.write()

    # -- for the summary --------------------------------------------------------------------------

    def sources(self, subject: int) -> list[Path]:
        record, mask = self._record(subject), self._space(subject).mask
        own = [f for f in self.inputs.label_volumes_of(record.label) if f.of("sub")]
        more = [file.path for file in (*self.inputs.masks_of(record.label), *own)]
        return list(dict.fromkeys([*record.files, *(mask.files if mask else ()), *more]))

    def response_files(self, subject: int) -> list[Path]:
        return [path for source in self._record(subject).sources for path in source.files]

    def notes(self, subject: int) -> list[str]:
        record, space = self._record(subject), self._space(subject)
        notes = [*record.notes, *(space.mask.notes if space.mask else ()), *space.notes]
        notes += self._notes
        order = ", ".join(record.sessions)
        if record.order == BY_TIME:
            notes.append(f"sessions are in the order of acquisition: {order}")
        elif len(record.sessions) > 1 and not all(re.search(r"\d", s) for s in record.sessions):
            notes.append(
                f"sessions are in the order of their labels: {order} (acq_time in a scans.tsv "
                "would decide it)"
            )
        inside, _ = self.candidates(subject)
        if inside > _MANY_COLUMNS:
            notes.append(
                f"{inside} voxels are many: an encoder needs memory for each (NSD's nsdgeneral has "
                "13 000 to 18 000); give a mask of visual cortex with --mask FILE"
            )
        if not (self.root / "dataset_description.json").exists():
            notes.append(
                "there is no dataset_description.json; BIDS asks for one: "
                '{"Name": "...", "BIDSVersion": "1.9.0"}'
            )
        return list(dict.fromkeys(notes))

    def who(self, subject: int) -> dict[str, Any]:
        record, captions = self._record(subject), self.caption_file()
        sessions = self.identity.sessions.get(subject, {})
        return {
            "label": record.label,
            "sessions": {n: label for label, n in sorted(sessions.items(), key=lambda x: x[1])},
            "runs": len(record.runs),
            "left_out": record.left_out,
            "form": record.sources[0].form,
            "test pictures": self._split.source,
            "captions": captions.name if self.prepare.captions and captions else "none",
        }
