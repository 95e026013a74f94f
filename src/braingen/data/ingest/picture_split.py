"""Which pictures are for testing: by a list, by the column `split` of the events, or by a draw."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
import hashlib
import math

from braingen.config.run_and_data import PrepareConfig
from braingen.data.ingest.identity import KnownPicture
from braingen.data.ingest.recordings import RecordingRun
from braingen.data.ingest.stimuli import OwnStimuli, ShownStimulus
from braingen.runtime.errors import UserError
from braingen.runtime.text_files import read_text

TEST = "test"


class PictureSplit:
    """Assignment of pictures to training and testing.

    Parameters
    ----------
    config : PrepareConfig
        Settings of `prepare`.
    runs : Iterable[RecordingRun]
        Runs of all subjects that are prepared.
    shown : mapping of str to ShownStimulus
        Where the pictures of these runs are, by name.
    pictures : dict of str to KnownPicture
        All pictures of the data folder by name; their sides are entered here.
    stimuli : OwnStimuli
        Folders of pictures.

    Raises
    ------
    UserError
        When a picture is on both sides, or the column `split` is filled for some pictures only.
    """

    def __init__(
        self,
        config: PrepareConfig,
        runs: Iterable[RecordingRun],
        shown: Mapping[str, ShownStimulus],
        pictures: dict[str, KnownPicture],
        stimuli: OwnStimuli,
    ) -> None:
        self.prepare, self._pictures, self._stimuli = config, pictures, stimuli
        self.notes: list[str] = []
        """For the summary."""
        self.source = "column split of the events"
        """What the test pictures were chosen by."""
        chosen, unstated = self._stated(list(runs))
        if self.prepare.test_images is not None:
            chosen = self._listed(chosen, shown)
        elif not chosen:
            chosen = self._drawn()
        elif unstated:
            raise UserError(
                f"split is empty for {unstated[0]} ({len(set(unstated))} pictures), but not for "
                "others; write test or train."
            )
        self._enter(chosen, shown)

    def _stated(self, runs: Sequence[RecordingRun]) -> tuple[dict[int, str], list[str]]:
        """Side by image as the events give it, and names of pictures without one."""
        words = {side for run in runs for side in run.trials["side"] if side}
        validation = "train" if TEST in words else TEST
        if "validation" in words:
            as_what = (
                "training pictures; checkpoints are chosen on some of those"
                if TEST in words
                else "test pictures"
            )
            self.notes.append(
                f"split says validation for some trials, which are taken as {as_what}"
            )
        stated: dict[int, dict[str, str]] = {}
        unstated: list[str] = []
        for run in runs:
            for name, word in zip(run.trials["stimulus"], run.trials["side"]):
                if word:
                    side = validation if word == "validation" else word
                    stated.setdefault(self._pictures[name].image, {}).setdefault(side, name)
                else:
                    unstated.append(name)
        both = [sides for sides in stated.values() if len(sides) > 1]
        if both:
            raise UserError(
                f"{' and '.join(dict.fromkeys(both[0].values()))} ({len(both)} such) is a test "
                "picture in some events and a training picture in others: scores would be "
                "worthless; give every picture one `split`."
            )
        return {image: next(iter(sides)) for image, sides in stated.items()}, unstated

    def _listed(
        self, stated: Mapping[int, str], shown: Mapping[str, ShownStimulus]
    ) -> dict[int, str]:
        """Sides by the list of test pictures."""
        assert self.prepare.test_images is not None
        known, path = self._pictures, self.prepare.test_images
        self.source = f"list {path.name}"
        text = read_text(path, "name a text file with one stim_file a line")
        by_stem = {name.rpartition(".")[0]: name for name in known}
        by_file = {one.where: name for name, one in shown.items()}
        images: set[int] = set()
        unknown: list[str] = []
        not_shown: list[str] = []
        for name in filter(None, map(str.strip, text.splitlines())):
            found = known.get(name) or known.get(by_stem.get(name, ""))
            if found is None:  # written otherwise than in the events: its file decides
                there = self._stimuli.locate(name, path)
                found = there and known.get(by_file.get(there.where, ""))
                (not_shown if there else unknown).extend([] if found else [name])
            if found:
                images.add(found.image)
        if unknown:
            raise UserError(
                f"{path} names {unknown[0]} ({len(unknown)} such), which no table of events has as "
                "stim_file; correct it."
            )
        if not_shown and not images:
            raise UserError(
                f"No event shows a picture of {path} ({not_shown[0]} and {len(not_shown) - 1} more "
                "exist, but were not shown): list pictures that stim_file names."
            )
        if not_shown:
            self.notes.append(
                f"{path.name} lists {len(not_shown)} pictures that no event shows ({not_shown[0]})"
            )
        sides = {p.image: TEST if p.image in images else "train" for p in known.values()}
        against = [image for image, side in stated.items() if sides[image] != side]
        if against:
            name = next(name for name, picture in known.items() if picture.image == against[0])
            self.notes.append(
                f"CONTRADICTION: {path.name} and the column split disagree on {len(against)} "
                f"pictures ({name}); the list was taken"
            )
        return sides

    def _drawn(self) -> dict[int, str]:
        """A share of the new pictures, by a digest of their names; known ones keep their side."""
        self.source = f"a draw by name, a share of {self.prepare.test_share:g}"
        known = self._pictures
        first: dict[int, str] = {}
        for name in sorted(known):
            first.setdefault(known[name].image, name)
        sides = {picture.image: picture.side for picture in known.values() if picture.side}
        new = sorted(
            (image for image in first if image not in sides),
            key=lambda image: hashlib.sha256(first[image].encode()).digest(),
        )
        count = math.ceil(self.prepare.test_share * len(new))
        return sides | {image: TEST if k < count else "train" for k, image in enumerate(new)}

    def _enter(self, chosen: Mapping[int, str], names: Iterable[str]) -> None:
        known = self._pictures
        before = ((name, known[name]) for name in names)
        changed = [n for n, p in before if p.side and p.side != chosen.get(p.image, p.side)]
        if changed:
            self.notes.append(
                f"{len(changed)} pictures have changed sides (train, test) since they were "
                f"prepared ({changed[0]}): what was trained before has seen them"
            )
        for name, picture in known.items():
            if picture.image in chosen:
                known[name] = picture._replace(side=chosen[picture.image])
