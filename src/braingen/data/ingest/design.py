"""Compares the order of trials that a file of responses holds with the pictures of the events."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence

import numpy as np

from braingen.data.ingest.events import EventTable
from braingen.data.ingest.forms import ScanSource
from braingen.data.ingest.near_names import plain_name
from braingen.runtime.errors import UserError


class DesignComparison:
    """Comparison over all files of a subject: one condition is one picture, one name the picture
    of that name.
    """

    def __init__(self) -> None:
        self._pictures: dict[Hashable, str] = {}
        self._conditions: dict[str, Hashable] = {}

    def compare(
        self, source: ScanSource, tables: Sequence[EventTable], rows: Sequence[np.ndarray]
    ) -> list[str]:
        """Compare the order of a file with the events.

        Returns
        -------
        list of str
            Notes for the summary.

        Raises
        ------
        UserError
            When they contradict each other.
        """
        if source.order_N is None or len(source.order_N) != source.trials:
            return []
        names = np.concatenate([table.trials["stimulus"].to_numpy() for table in tables])
        row = np.concatenate(list(rows))
        order = source.order_N[row[row >= 0]].tolist()
        wrong, known = self._contradictions(order, names[row >= 0].tolist(), source)
        name = source.files[0].name
        if not known:
            return [f"{name}: {source.order_name} cannot be compared with the events: none repeats"]
        if not wrong:
            return [f"{name}: its own order of conditions agrees with the events"]
        if source.form == "bdpy":
            return [
                f"{name}: its column of labels does not follow the pictures of the events in "
                f"{wrong} trials"
            ]
        raise UserError(
            f"{source.name}: the conditions it was made with ({source.order_name}) contradict the "
            f"pictures of the events in {wrong} of {source.trials} trials: the trials are in "
            "another order, or of other runs."
        )

    def _contradictions(
        self, order: Sequence[Hashable], pictures: Sequence[str], source: ScanSource
    ) -> tuple[int, bool]:
        """Number of trials that contradict each other, and whether any could have."""
        stems = list(map(_stem, pictures))
        if source.names_pictures and {_stem(str(value)) for value in order} <= set(stems):
            wrong = sum(_stem(str(value)) != stem for value, stem in zip(order, stems))
            return wrong, len(set(stems)) == len(set(pictures))
        first, taken = ({}, {}) if not source.names_pictures else (self._pictures, self._conditions)
        counts = Counter([*first, *order])
        wrong = sum(
            first.setdefault(condition, picture) != picture
            or taken.setdefault(picture, condition) != condition
            for condition, picture in zip(order, pictures)
        )
        return wrong, max(counts.values(), default=0) > 1


def _stem(name: str) -> str:
    """A name without folders and ending, as it is compared."""
    last = plain_name(name).rpartition("/")[2]
    return last.rpartition(".")[0] or last
