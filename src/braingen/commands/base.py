"""What a command of the command line is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

GROUPS = {
    "start": "start here",
    "data": "data",
    "decoder": "train a decoder and use it",
    "evaluation": "evaluate",
    "inside": "look inside",
    "experiments": "experiments",
    "reference": "models and settings",
}
"""Headings of the help, in their order."""


class Command(NamedTuple):
    """A command: what its help shows, and what it calls."""

    name: str
    run: Callable[..., Path | None]
    """Takes the configuration, and the choice where there are choices. Its docstring is the summary
    in the help. It imports what it needs itself, so that help is quick.
    """
    group: str
    """Heading under which the help lists it."""
    place: int
    """Where it stands under its heading."""
    sections: tuple[str, ...] = ()
    """Sections of the settings that its help lists."""
    choices: tuple[str, ...] = ()
    """What may follow the command's name, where something must."""
    own: str = ""
    """The section whose names win where several sections have a setting of that name."""
    own_of_choice: Mapping[str, tuple[str, ...]] = MappingProxyType({})
    """Choice -> the sections whose names win beside it, the first one first."""
    words: str = ""
    """The setting that words after the command's name go into, where it takes any."""
    takes_test_sets: bool = False
    """Whether it may be given a sealed test set (``data.test_set``)."""
    config: str = ""
    """The configuration that ships with the package and is taken without --config; none: the
    defaults.
    """

    @property
    def summary(self) -> str:
        """One sentence on what the command does."""
        return " ".join((self.run.__doc__ or "").split())
