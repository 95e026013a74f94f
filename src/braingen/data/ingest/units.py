"""Which files of responses belong together: hemispheres, maps of single trials, or one file.

Files that are about the same trials are alternatives; one is chosen by the settings.
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
from braingen.data.ingest.names import TRIAL_ENTITIES, Named, chosen, differing
from braingen.errors import UserError

_SETTINGS = {"task": "--task", "space": "--space", "desc": "--desc", "stat": "--stat"}
_TYPES = ("TYPED", "TYPEC", "TYPEB")


class Unit(NamedTuple):
    """Responses that belong together: a file, hemispheres of it, or maps of single trials."""

    files: tuple[Named, ...]
    kind: str
    """file, hemispheres or trials."""

    @property
    def first(self) -> Named:
        """The file whose name is used for messages and entities."""
        return self.files[0]

    def open(self, asked: Asked) -> Source:
        """The source, not read yet."""
        if self.kind == "trials":
            return read_single_maps(self.files, asked)
        sources = [forms.read(file, asked) for file in self.files]
        if self.kind == "hemispheres":
            return join_hemispheres(self.files, sources)
        return sources[0]


def among(files: Sequence[Named], root: Path, pattern: str) -> list[Named]:
    """Files whose path below the root matches a pattern, or lies in a folder of that name."""
    if not pattern:
        return list(files)
    pattern = pattern.rstrip("/")

    def fits(path: Path) -> bool:
        inside = path.relative_to(root).as_posix()
        below = inside.startswith(f"{pattern}/") or str(path) == pattern
        return below or fnmatch.fnmatch(inside, pattern)

    kept = [file for file in files if fits(file.path)]
    if files and not kept:
        raise UserError(
            f"No responses below {root} have {pattern} (there: {_listed(files)}); correct "
            "--responses."
        )
    return kept


def _listed(files: Sequence[Named]) -> str:
    shown = ", ".join(str(file.path) for file in files[:4])
    return shown + (f" and {len(files) - 4} more" if len(files) > 4 else "")


def units_of(
    responses: Sequence[Named], wanted: Mapping[str, str], trials_of: Callable[[Named], int]
) -> tuple[list[Unit], list[str]]:
    """Group the files of a subject into units.

    Parameters
    ----------
    responses : sequence of Named
        All files of responses of a subject.
    wanted : mapping of str to str
        Entity -> value that settings choose.
    trials_of : callable
        Number of trials that the events name for a file.

    Returns
    -------
    list of Unit, list of str
        Units, and notes on what was left out.

    Raises
    ------
    UserError
        When files are about the same trials and nothing chooses among them.
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
            kept = _without_maps(kept, notes)
        elif _axes(kept[0]) == 3 and trials_of(kept[0]) != 1:
            notes.append(f"left out, a volume of three axes: {kept[0].path.name}")
            continue
        units.append(_unit(kept, trials_of))
    left = [file for group in groups.values() if not chosen(group, wanted) for file in group]
    if left and not units:
        values = {key: sorted({file.of(key) or "none" for file in left}) for key in wanted}
        there = "; ".join(f"{key}: {', '.join(found)}" for key, found in values.items())
        asked = ", ".join(f"{key}-{value}" for key, value in wanted.items())
        raise UserError(f"No responses have {asked} (there: {there}); choose one of these.")
    return units, notes


def _best_of_glmsingle(files: list[Named], notes: list[str]) -> list[Named]:
    """TYPED first, HDF5 first."""
    typed = [file for file in files if file.path.name.startswith("TYPE")]
    if len(typed) < 2:
        return files

    def rank(file: Named) -> tuple[int, bool]:
        return _TYPES.index(file.path.name[:5]), file.ending != ".hdf5"

    best = min(typed, key=rank)
    others = [file for file in typed if file is not best]
    for file in others:
        if file.path.name[:5] == best.path.name[:5] and file.ending == best.ending:
            raise UserError(
                f"{best.path} and {file.path} claim the same trials; choose one folder with "
                "--responses FOLDER."
            )
    shown = ", ".join(file.path.name for file in others)
    notes.append(f"GLMsingle: {best.path.name} is taken, {shown} left out")
    return [file for file in files if file not in others]


def _axes(file: Named) -> int:
    """Axes of a volume; 0 for other forms."""
    if not file.ending.endswith((".nii", ".nii.gz")) or ".d" in file.ending:
        return 0
    try:
        image: Any = nibabel.load(file.path)
    except Exception:  # the reader refuses it with a sentence
        return 0
    if isinstance(image, nibabel.Cifti2Image):
        return 0
    return len([n for n in image.shape if n > 1 or len(image.shape) == 3])


def _without_maps(files: list[Named], notes: list[str]) -> list[Named]:
    """Leave out maps of three axes that lie beside responses of four."""
    maps = [file for file in files if _axes(file) == 3]
    if not maps or len(maps) == len(files):
        return files
    names = [file._replace(path=Path(file.path.name)) for file in maps]
    notes.append(f"left out, volumes of three axes: {_listed(names)}")
    return [file for file in files if file not in maps]


def _unit(files: list[Named], trials_of: Callable[[Named], int]) -> Unit:
    if len(files) == 1:
        return Unit((files[0],), "file")
    apart = differing(files)
    if len(files) == 2 and set(apart) == {"hemi"} and files[0].ending == files[1].ending:
        return Unit(tuple(files), "hemispheres")
    entities = [key for key in apart if key != "hemi"]
    counted = ""
    if all(_axes(file) == 3 for file in files):
        order = _numbered(files, entities)
        if order is not None:
            return Unit(tuple(order), "trials")
        counted = (
            f" They are {len(files)} maps of three axes; one per trial is taken where a single "
            "entity numbers them from 1 (desc-trial001), the events name "
            f"{trials_of(files[0])} trials."
        )
    shown = "; ".join(
        f"{key}: {', '.join(value or 'none' for value in values[:6])}"
        for key, values in apart.items()
    )
    how = " or ".join(dict.fromkeys(map(_setting_for, entities))) or "--responses PATTERN"
    raise UserError(
        f"{_listed(files)} claim the same trials; what tells them apart is "
        f"{shown or 'their folder or ending'}.{counted} Choose with {how}."
    )


def _setting_for(entity: str) -> str:
    """How a value of an entity is chosen on the command line."""
    named = entity in _SETTINGS
    return f"{_SETTINGS[entity]} VALUE" if named else f"prepare.entities={entity}-VALUE"


def _numbered(files: list[Named], entities: list[str]) -> list[Named] | None:
    """Maps in the order of the number in their one entity; None where it has gaps."""
    if len(entities) != 1:
        return None
    values = [re.fullmatch(r"(\D*)(\d+)", file.of(entities[0])) for file in files]
    matches = [match for match in values if match]
    numbers = [int(match[2]) for match in matches]
    if len(matches) < len(files) or len({match[1] for match in matches}) > 1:
        return None
    if min(numbers) not in (0, 1) or sorted(numbers) != list(
        range(min(numbers), min(numbers) + len(numbers))
    ):
        return None
    return [file for _, file in sorted(zip(numbers, files), key=lambda pair: pair[0])]
