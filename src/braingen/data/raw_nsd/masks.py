"""Masks of NSD by name: a region volume (nsdgeneral), labels of one, or an area (V1, FFA-1)."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from braingen.data import nsd
from braingen.errors import UserError


class RegionMask(NamedTuple):
    """A region volume and the labels that are kept."""

    asked: str
    """The setting: `nsdgeneral`, `prf-visualrois:1,2`, `V1`, or the path of a NIfTI."""
    volume: str
    """Name of the region volume, or the path."""
    labels: str
    """Labels or names of labels; empty for all values above 0."""

    @classmethod
    def of(cls, asked: str) -> RegionMask:
        """The mask of a setting; the name of an area alone stands for its volume and labels."""
        names = {v: {n.lower() for n in labels} for v, labels in nsd.REGION_NAMES.items()}
        found = next((volume for volume, known in names.items() if asked.lower() in known), None)
        volume, _, labels = (asked if found is None else f"{found}:{asked}").partition(":")
        return cls(asked, volume, labels)

    @property
    def name(self) -> str:
        """Volume and labels: V1 and prf-visualrois:V1 are the same."""
        return f"{self.volume}:{self.labels}" if self.labels else self.volume

    @property
    def rule(self) -> str:
        """The setting as a clause."""
        name, _, labels = self.asked.partition(":")
        return f"{name} {'in ' + labels if labels else '> 0'}"

    def inside(self, values: np.ndarray) -> np.ndarray:
        """Where values of the region volume belong to the mask: bool of their shape.

        Raises
        ------
        UserError
            When a label is no number and no known name.
        """
        if not self.labels:
            return values > 0
        known = nsd.REGION_NAMES.get(self.volume, {})
        by_name = {name.lower(): labels for name, labels in known.items()}
        found: list[float] = []
        for label in self.labels.split(","):
            try:
                found += by_name.get(label.strip().lower()) or [float(label)]
            except ValueError:
                names = f", or names ({', '.join(known)})" if known else ""
                raise UserError(
                    f"prepare.mask = {self.asked!r}: labels are numbers{names}, for instance "
                    "prf-visualrois:1,2."
                ) from None
        return np.isin(values, found)


def visual_areas(labels_V: np.ndarray) -> dict[str, np.ndarray]:
    """(V,) bool of V1 to V4 by the labels of prf-visualrois."""
    return {name: np.isin(labels_V, numbers) for name, numbers in nsd.VISUAL_ROI_LABELS.items()}
