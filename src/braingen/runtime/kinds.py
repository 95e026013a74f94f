"""Kinds of parts by name: the class behind a name, loaded when it is needed, and what is refused.

A table of kinds is plain data, so that help and checks of settings load no torch. Its entries have
a ``where``, ``module:Class``; an empty one stands for a kind without a class.
"""

from __future__ import annotations

from collections.abc import Mapping
import importlib
from inspect import isabstract
import pkgutil
from typing import Any, Protocol

from braingen.runtime.errors import UserError


class Kind(Protocol):
    """An entry of a table of kinds."""

    @property
    def where(self) -> str:
        """``module:Class``."""


def load_kind(
    table: Mapping[str, Kind], name: str, contract: type, setting: str
) -> type[Any] | None:
    """The class of a kind; None for a kind without a class.

    Parameters
    ----------
    table : Mapping[str, Kind]
        The kinds by name.
    name : str
        The one that is wanted.
    contract : type
        The class that all kinds have to be subclasses of.
    setting : str
        What chooses among them, for the sentence.

    Raises
    ------
    UserError
        When there is no such kind, or its line names a class that does not exist, is no subclass of
        the contract, or lacks one of its members.
    """
    what = _words(contract)
    if name not in table:
        raise UserError(f"{setting} is {name!r}; allowed are {', '.join(map(repr, table))}")
    if not (where := table[name].where):
        return None
    module, _, attribute = where.partition(":")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except ModuleNotFoundError as error:
        if error.name != module:
            raise
        raise UserError(
            f"The line of {what} '{name}' names {where}, but there is no file"
            f" {module.replace('.', '/')}.py: mend the line, or add the file."
        ) from error
    except AttributeError as error:
        raise UserError(
            f"The line of {what} '{name}' names {where}, but {module} has no {attribute}: mend the"
            " line, or the name of the class."
        ) from error
    if not (isinstance(found, type) and issubclass(found, contract)):
        raise UserError(
            f"{where}, {what} '{name}', has to be a subclass of"
            f" {contract.__module__}.{contract.__name__}."
        )
    if lacking := sorted(getattr(found, "__abstractmethods__", ())):
        raise UserError(
            f"{where}, {what} '{name}', lacks {' and '.join(lacking)}: see"
            f" {contract.__module__}.{contract.__name__} for what it has to do."
        )
    return found


def refuse_unregistered(
    table: Mapping[str, Kind], package: str, contract: type[Any], place: str
) -> None:
    """Refuse a class in a package of kinds that no line of the table names: nobody could choose it.

    Parameters
    ----------
    package : str
        Where the files of the kinds are, for instance ``braingen.routing.time``.
    place : str
        The table, as a person finds it.

    Raises
    ------
    UserError
        For the first such class.
    """
    named = {kind.where for kind in table.values()}
    for module in pkgutil.iter_modules(importlib.import_module(package).__path__):
        loaded = importlib.import_module(f"{package}.{module.name}")
        for attribute, found in vars(loaded).items():
            where = f"{loaded.__name__}:{attribute}"
            own = isinstance(found, type) and found.__module__ == loaded.__name__
            if own and issubclass(found, contract) and where not in named and not isabstract(found):
                raise UserError(
                    f"{where} is a {_words(contract)} that no line of {place} names, so that nobody"
                    f' can choose it: add a line with where="{where}".'
                )


def _words(contract: type) -> str:
    """TimeRouter -> time router."""
    return "".join(" " + c.lower() if c.isupper() else c for c in contract.__name__).strip()
