"""Numbers of subjects that a person names by label or number."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from braingen.config.run_and_data import PrepareConfig
from braingen.data.ingest.identity import Identity
from braingen.data.ingest.inputs import Inputs
from braingen.errors import UserError


def numbers_of_labels(words: Sequence[str], config: PrepareConfig, data: Path) -> list[int]:
    """Numbers of subjects that are given by label or number.

    Parameters
    ----------
    words : sequence of str
        Labels, with or without `sub-`, or numbers.
    config : PrepareConfig
        Settings of `prepare`; the labels of `scans` are known.
    data : Path
        The data folder, whose labels are known.

    Raises
    ------
    UserError
        When a label is not known.
    """
    identity = Identity(data)
    known = dict(identity.subjects)
    if config.scans is not None and config.scans.is_dir():
        known |= identity.number_subjects(Inputs(config).labels)
    found = []
    for word in words:
        label = word.removeprefix("sub-")
        if label not in known and not word.isdecimal():
            by_number = sorted(known.items(), key=lambda pair: pair[1])
            there = ", ".join(f"{name} ({number})" for name, number in by_number) or "none"
            raise UserError(
                f"There is no subject {word}; labels and numbers of those that are known: {there}. "
                "Name one with --subj."
            )
        found.append(known[label] if label in known else int(word))
    return found
