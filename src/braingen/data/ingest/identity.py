"""Numbers that were given once: of subjects, sessions and pictures. They never change; what comes
later is appended::

    subjects.tsv    subject, label
    sessions.tsv    subject, session, label, order (by what sessions were ordered)
    pictures.tsv    image, stim_file, pixels (digest), source, stamp (size and time of the file),
                    side (train or test)

Two names of one picture have the same image id.
"""

from __future__ import annotations

from collections.abc import Sequence
import hashlib
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from braingen.data.ingest.names import natural
from braingen.runtime.errors import UserError, reason
from braingen.runtime.files import replaced_file
from braingen.runtime.untrusted import csv_text, csv_value

SUBJECTS, SESSIONS, PICTURES = "subjects.tsv", "sessions.tsv", "pictures.tsv"


class KnownPicture(NamedTuple):
    """A picture of the folder."""

    image: int
    pixels: str
    source: str
    stamp: str
    side: str
    """train or test."""


class Identity:
    """The tables of a data folder, and what is to be added to them.

    Parameters
    ----------
    root : Path
        The data folder.

    Raises
    ------
    UserError
        When a table is damaged.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.subjects: dict[str, int] = {}
        self.sessions: dict[int, dict[str, int]] = {}
        self.order: dict[int, str] = {}
        self.pictures: dict[str, KnownPicture] = {}
        self._read = self.digest()
        for row in self._rows(SUBJECTS, ("subject", "label")):
            self.subjects[row["label"]] = int(row["subject"])
        for row in self._rows(SESSIONS, ("subject", "session", "label", "order")):
            self.sessions.setdefault(int(row["subject"]), {})[row["label"]] = int(row["session"])
            self.order[int(row["subject"])] = row["order"]
        for row in self._rows(PICTURES, ("image", "stim_file", *KnownPicture._fields[1:])):
            values = [row[name] for name in KnownPicture._fields[1:]]
            self.pictures[row["stim_file"]] = KnownPicture(int(row["image"]), *values)

    def _rows(self, name: str, columns: Sequence[str]) -> list[dict[str, str]]:
        path = self.root / name
        if not path.exists():
            return []
        try:
            table = pd.read_csv(path, sep="\t", dtype=str, keep_default_na=False)
            return [
                {column: csv_value(row[column]) for column in columns}
                for row in table.to_dict("records")
            ]
        except (ValueError, KeyError, UnicodeDecodeError) as error:
            raise UserError(
                f"{path} is damaged ({reason(error)}): it says who is who; bring it back from a"
                " copy."
            ) from error

    def digest(self) -> str:
        """Of the tables as they lie on the disk."""
        found = hashlib.sha256()
        for name in (SUBJECTS, SESSIONS, PICTURES):
            path = self.root / name
            found.update(path.read_bytes() if path.exists() else b"-")
        return found.hexdigest()

    @property
    def stale(self) -> bool:
        """Whether somebody else has written the tables since they were read."""
        return self.digest() != self._read

    def number_subjects(self, labels: Sequence[str]) -> dict[str, int]:
        """Numbers of labels: known ones keep theirs, numbers are themselves where free, others get
        the next.
        """
        new = sorted((label for label in labels if label not in self.subjects), key=natural)
        taken = set(self.subjects.values())
        for label in new:
            if label.isdecimal() and int(label) > 0 and int(label) not in taken:
                self.subjects[label] = int(label)
                taken.add(int(label))
        for label in new:
            if label not in self.subjects:
                self.subjects[label] = max(taken, default=0) + 1
                taken.add(self.subjects[label])
        return {label: self.subjects[label] for label in labels}

    def number_sessions(self, subject: int, labels: Sequence[str], by: str) -> dict[str, int]:
        """Numbers of a subject's sessions, given in order; new ones come behind those that are
        there.
        """
        known = self.sessions.setdefault(subject, {})
        for label in labels:
            known.setdefault(label, len(known) + 1)
        self.order.setdefault(subject, by)
        return {label: known[label] for label in labels}

    @property
    def images(self) -> int:
        """Number of pictures."""
        return 1 + max((known.image for known in self.pictures.values()), default=-1)

    def write(self) -> list[Path]:
        """Write the tables."""
        sessions = [
            (s, n, label, self.order[s])
            for s, found in sorted(self.sessions.items())
            for label, n in found.items()
        ]
        pictures = [(known.image, name, *known[1:]) for name, known in self.pictures.items()]
        tables = {
            SUBJECTS: (
                pd.DataFrame(
                    [(n, label) for label, n in self.subjects.items()], columns=["subject", "label"]
                ).sort_values("subject")
            ),
            SESSIONS: pd.DataFrame(sessions, columns=["subject", "session", "label", "order"]),
            PICTURES: (
                pd.DataFrame(
                    pictures, columns=["image", "stim_file", *KnownPicture._fields[1:]]
                ).sort_values(["image", "stim_file"], kind="stable")
            ),
        }
        for name, table in tables.items():
            with replaced_file(self.root / name, "w") as handle:
                handle.write(csv_text(table, sep="\t", index=False, lineterminator="\n"))
        self._read = self.digest()
        return [self.root / name for name in tables]
