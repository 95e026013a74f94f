"""Files below one folder and the BIDS entities of their names.

PyBIDS is not used here: it indexes names that BIDS allows, and single-trial responses (``_betas``,
``.npy``, GLMsingle's own names) have none yet; it asks for a dataset_description.json, which few
labs write for them; and it brings twelve packages along. nilearn's reader is not either: it is an
extra (`interpret`), knows the name alone and not its folders, and cuts labels that are malformed.
Where a name is sound, all three agree (tests/unit/test_own_scans.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
import os
from pathlib import Path
import re
from typing import Any, NamedTuple
import unicodedata

from braingen.runtime.errors import UserError

GUIDE = "see 'Your own scans' in docs/data.md"
TRIAL_ENTITIES = ("sub", "ses", "task", "acq", "dir", "run")
"""Entities that say which trials a file is about; all others tell apart what was made of the same
trials.
"""
_PART = re.compile(r"([a-zA-Z]+)-([A-Za-z0-9+]+)")
_SKIPPED = (".git", ".datalad", ".heudiconv", "sourcedata")
_READ = re.compile(
    r"(_|^)(events|betas|statmap|mask|dseg|scans|sessions)\.[A-Za-z0-9.]+$|_bold\.nii|^TYPE[A-D]_|^captions\.json$"
)


class Named(NamedTuple):
    """A file with the entities of its name and of its folders."""

    path: Path
    entities: dict[str, str]
    """Values as written."""
    suffix: str
    """The last word before the ending: events, betas, mask."""
    ending: str
    """From the first dot: .nii.gz."""

    def of(self, entity: str) -> str:
        """Value of an entity, empty where the name has none."""
        return self.entities.get(entity, "")

    def same(self, other: Named, entities: Iterable[str]) -> bool:
        """Whether two names agree in some entities; labels that are the same number are the
        same.
        """
        return all(plain(self.of(entity)) == plain(other.of(entity)) for entity in entities)

    def key(self, entities: Iterable[str]) -> tuple[str, ...]:
        """Values of some entities, numbers without leading zeros."""
        return tuple(plain(self.of(entity)) for entity in entities)


def plain(value: str) -> str:
    """A label as it is compared: numbers without leading zeros."""
    return str(int(value)) if value.isdecimal() else value


def same_label(label: str, *others: str) -> bool:
    """Whether a label is one of others; labels that are the same number are the same."""
    return plain(label) in map(plain, others)


def natural(text: str) -> list[Any]:
    """Sorts run-2 before run-10."""
    return [
        (1, int(part), "") if part.isdecimal() else (0, 0, part)
        for part in re.findall(r"\d+|\D+", text)
    ]


def entities_of(path: Path) -> dict[str, str]:
    """The ``key-value`` parts of a BIDS-style name, those of its folders included.

    Raises
    ------
    UserError
        When a subject's label is not letters and digits, or folder and name contradict each other.
    """
    found: dict[str, str] = {}
    for name in (*path.parts[:-1], path.name.partition(".")[0]):
        parts = name.split("_")
        if name.startswith("sub-"):
            _refuse_malformed(
                path, name, parts if name in path.parts[:-1] else parts[: max(1, len(parts) - 1)]
            )
        for part in parts:
            if match := _PART.fullmatch(part):
                key, value = match.groups()
                if key in ("sub", "ses") and key in found and plain(found[key]) != plain(value):
                    raise UserError(
                        f"{path} lies in a folder of {key}-{found[key]}, but its name says"
                        f" {key}-{value}; correct one of them."
                    )
                found[key] = value
    if path.name.startswith(("lh.", "rh.")):
        found["hemi"] = path.name[0].upper()
    return found


def named_alone(path: Path) -> Named:
    """A file by itself, with the entities of its name; parts that are none are passed over."""
    stem, dot, ending = path.name.removeprefix("lh.").removeprefix("rh.").partition(".")
    matches = filter(None, map(_PART.fullmatch, stem.split("_")))
    found = {match[1]: match[2] for match in matches}
    if path.name.startswith(("lh.", "rh.")):
        found["hemi"] = path.name[0].upper()
    return Named(path, found, stem.rpartition("_")[2], dot + ending)


def _refuse_malformed(path: Path, name: str, parts: list[str]) -> None:
    """A label with an underscore or a dash would be cut, and two people become one."""
    wrong = next((number for number, part in enumerate(parts) if not _PART.fullmatch(part)), None)
    if wrong is None:
        return
    if wrong > 1:
        raise UserError(
            f"{path}: '{parts[wrong]}' in its name is no entity (key-value, letters and digits);"
            " rename it, or join it to a label."
        )
    label = "_".join(parts[: wrong + 1]).removeprefix("sub-")
    ascii_label = unicodedata.normalize("NFKD", label).encode("ascii", "ignore").decode()
    raise UserError(
        f"{path}: the subject's label in {name} is not letters and digits only ({label}); rename"
        f" it, for instance sub-{re.sub('[^A-Za-z0-9]', '', ascii_label)}."
    )


class Tree:
    """All files below a folder that concern `prepare`. Links are followed; a dangling one under a
    name that would be read is refused.

    Parameters
    ----------
    root : Path
        The folder.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.files: list[Path] = sorted(
            _walk(root), key=lambda path: natural(str(path.relative_to(root)))
        )
        """Relative order is that of the names, numbers as numbers."""

    def named(self, pattern: re.Pattern[str]) -> list[Named]:
        """Files whose name has the pattern, with their entities."""
        return [self.name(path) for path in self.files if pattern.search(path.name)]

    def name(self, path: Path) -> Named:
        """A file with its entities."""
        stem, dot, ending = path.name.removeprefix("lh.").removeprefix("rh.").partition(".")
        return Named(
            path, entities_of(path.relative_to(self.root)), stem.rpartition("_")[2], dot + ending
        )


def _walk(root: Path) -> Iterator[Path]:
    seen: set[str] = set()
    files: set[str] = set()
    for folder, folders, names in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:  # a link to a folder above would never end
            folders.clear()
            continue
        seen.add(real)
        if (
            "prepared.json" in names
        ):  # a data folder among the scans holds masks and tables of its own
            folders.clear()
            continue
        folders[:] = sorted(
            name for name in folders if not name.startswith(".") and name not in _SKIPPED
        )
        for name in sorted(names):
            path = Path(folder, name)
            if name.startswith("."):
                continue
            if path.is_symlink():
                if not path.exists():
                    if _READ.search(name) or name.startswith("sub-"):
                        raise UserError(
                            f"{path} is a link to {os.readlink(path)}, which does not exist: its"
                            " content is not here (`datalad get` fetches it); fetch it, or remove"
                            " the link."
                        )
                    continue
                target = os.path.realpath(path)
                if target in files and Path(target).name == name:
                    continue
            files.add(os.path.realpath(path))
            yield path


def differing(files: Iterable[Named]) -> dict[str, list[str]]:
    """Entities in which files differ, with their values; empty for none."""
    files = list(files)
    keys = sorted({key for file in files for key in file.entities})
    values = {key: list(dict.fromkeys(file.of(key) for file in files)) for key in keys}
    return {
        key: found for key, found in values.items() if len({plain(value) for value in found}) > 1
    }


def chosen(files: Iterable[Named], wanted: Mapping[str, str]) -> list[Named]:
    """Files that agree with what settings choose; one without such an entity is kept only where
    none has the value chosen.
    """
    kept = list(files)
    for key, value in wanted.items():
        exact = [file for file in kept if plain(file.of(key)) == plain(value)]
        kept = exact or [file for file in kept if not file.of(key)]
    return kept
