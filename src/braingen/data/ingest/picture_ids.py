"""Image ids of pictures: equal pixels have one id, and a picture that is known keeps its id."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from braingen.data.ingest.identity import Identity, KnownPicture
from braingen.data.ingest.recordings import RecordingRun
from braingen.data.ingest.stimuli import OwnStimuli, ShownStimulus, pixels_of
from braingen.runtime.errors import UserError


class PictureIds:
    """Pictures of the runs with their ids.

    Parameters
    ----------
    runs : Iterable[RecordingRun]
        Runs of all subjects that are prepared.
    stimuli : OwnStimuli
        Finds and loads pictures.
    identity : Identity
        Tables of the data folder; pictures that are new or have changed are entered there.

    Raises
    ------
    UserError
        When a picture is missing or damaged, or has changed so that ids would be ambiguous.
    """

    def __init__(
        self, runs: Iterable[RecordingRun], stimuli: OwnStimuli, identity: Identity
    ) -> None:
        self._stimuli, self._identity = stimuli, identity
        self.changed: set[int] = set()
        """Ids of pictures whose files have other content than when they were prepared."""
        named_in: dict[str, Path] = {}
        for run in runs:
            for name in run.trials["stimulus"]:
                named_in.setdefault(name, run.table)
        self.names = sorted(named_in)
        found = stimuli.find({name: named_in[name] for name in self.names})
        self.shown = {one.name: one for one in found}
        """Name -> where the picture is."""
        self._kinds: Counter[str] = Counter()
        self._twins: list[tuple[str, str]] = []
        self._first: dict[str, str] = {}
        for name, picture in identity.pictures.items():
            self._first.setdefault(picture.pixels, name)
        for name in self.names:
            self._add(name, self.shown[name])

    def _add(self, name: str, shown: ShownStimulus) -> None:
        known = self._identity.pictures
        if name in known and known[name].stamp == shown.stamp:
            return
        loaded = self._stimuli.load(shown)
        self._kinds[loaded.kind] += 1
        pixels = pixels_of(loaded.picture_HW3)
        path, root = shown.path, self._stimuli.root
        inside = path.is_relative_to(root)
        source = (path.relative_to(root) if inside else path.absolute()).as_posix()
        if name in known:
            if known[name].pixels != pixels:
                self._refuse_ambiguous(name, pixels, path)
                self.changed.add(known[name].image)
            known[name] = known[name]._replace(stamp=shown.stamp, source=source, pixels=pixels)
            return
        twin = self._first.setdefault(pixels, name)
        if twin == name:
            image, side = self._identity.images, ""
        else:
            image, side = known[twin].image, known[twin].side
            self._twins.append((name, twin))
        known[name] = KnownPicture(image, pixels, source, shown.stamp, side)

    def _refuse_ambiguous(self, name: str, pixels: str, path: Path) -> None:
        """Refuse a change that makes two ids one picture, or one id two pictures."""
        known = self._identity.pictures
        image = known[name].image
        for other, picture in known.items():
            if other != name and (picture.image == image) != (picture.pixels == pixels):
                raise UserError(
                    f"The picture {path} has changed since it was prepared as image {image}, and "
                    f"{other} was prepared as image {picture.image}: ids of pictures never change. "
                    "Give the new picture another name, or choose another data folder with "
                    "--data_path FOLDER."
                )

    def notes(self) -> list[str]:
        """What was done with pictures, for the summary."""
        notes = []
        if self._kinds["16-bit"]:
            notes.append(f"{self._kinds['16-bit']} pictures of 16 bits, scaled to 8")
        if self._kinds["transparent"]:
            notes.append(
                f"{self._kinds['transparent']} pictures are transparent somewhere, laid on "
                f"{self._stimuli.ground_name} (prepare.ground=COLOUR)"
            )
        if self._kinds["several frames"]:
            notes.append(
                f"{self._kinds['several frames']} pictures have several frames, the first is taken"
            )
        if self._kinds["turned"]:
            notes.append(
                f"{self._kinds['turned']} photographs say in their EXIF data that they are to be "
                "turned; they are taken as they are stored"
            )
        if self._kinds["other colours"]:
            notes.append(
                f"{self._kinds['other colours']} pictures are CMYK, LAB, YCbCr or HSV, turned into "
                "RGB without a colour profile: save them as RGB to be sure of their colours"
            )
        if other := self._stimuli.other_names:
            name, file = next(iter(other.items()))
            notes.append(
                f"{len(other)} pictures are written differently in the events ({name} is {file})"
            )
        if self._twins:
            name, twin = self._twins[0]
            notes.append(
                f"{len(self._twins)} pictures are equal to another pixel for pixel and count as "
                f"one ({name} is {twin})"
            )
        if self.changed:
            subjects = ", ".join(map(str, self._identity.sessions)) or "none"
            notes.append(
                f"CHANGED: {len(self.changed)} pictures are other pictures than when they were "
                f"prepared (image {min(self.changed)} ...); they are written again under their "
                f"ids, for all subjects of the folder ({subjects}): prepare into another folder if "
                "those saw the old ones"
            )
        return notes
