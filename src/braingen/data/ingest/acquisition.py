"""When runs and sessions were acquired, from scans.tsv and sessions.tsv; orders the sessions."""

from __future__ import annotations

from collections.abc import Sequence
import math
import re

import pandas as pd

from braingen.data.ingest.names import Named, natural
from braingen.data.ingest.tables import read_table

BY_TIME, BY_LABEL = "acquisition time", "label"


class AcquisitionTimes:
    """Times of acquisition of runs and sessions.

    Parameters
    ----------
    tables : sequence of Named
        scans.tsv and sessions.tsv of all subjects.
    """

    def __init__(self, tables: Sequence[Named]) -> None:
        self._seconds: dict[tuple[str, str], float] = {}
        for file in tables:
            table = read_table(file.path)
            key = next((name for name in ("filename", "session_id") if name in table), None)
            if key is None or "acq_time" not in table:
                continue
            times = pd.to_datetime(table["acq_time"].astype(str), errors="coerce", format="ISO8601")
            for name, time in zip(table[key].astype(str), times):
                if not pd.isna(time):
                    self._add(file, name, time.timestamp(), is_session=key == "session_id")

    def _add(self, file: Named, name: str, seconds: float, is_session: bool) -> None:
        self._seconds[(file.of("sub"), name.rpartition("/")[2])] = seconds
        in_name = re.search(r"(?:^|[_/])ses-([A-Za-z0-9]+)", name)
        session = file.of("ses") or (in_name[1] if in_name else "")
        at = (file.of("sub"), f"ses-{name.removeprefix('ses-') if is_session else session}")
        self._seconds[at] = min(seconds, self._seconds.get(at, math.inf))

    def of_run(self, events: Named) -> float | None:
        """Seconds at which the run of a table of events was acquired; None where not known."""
        start = f"{events.path.name.rpartition('_')[0]}_"
        found = self._seconds.items()
        mine = (t for (sub, name), t in found if sub == events.of("sub") and name.startswith(start))
        return next(mine, None)

    def order_sessions(self, subject: str, labels: Sequence[str]) -> tuple[tuple[str, ...], str]:
        """Sessions in order, and by what they were ordered.

        Parameters
        ----------
        subject : str
            Label.
        labels : sequence of str
            Labels of the sessions.

        Returns
        -------
        tuple of str, str
            The labels in order, and `BY_TIME` or `BY_LABEL`.
        """
        times = [self._seconds.get((subject, f"ses-{label}")) for label in labels]
        if len(labels) > 1 and all(time is not None for time in times):
            return tuple(label for _, label in sorted(zip(times, labels))), BY_TIME
        return tuple(sorted(labels, key=natural)), BY_LABEL
