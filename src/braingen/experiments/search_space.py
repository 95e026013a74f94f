"""The space of a sweep: settings with their values or ranges, and combinations of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
import re
import shlex
from typing import Any, NamedTuple

from braingen.config.names import fields_of, resolve
from braingen.runtime.errors import UserError

EXAMPLE = 'over="encoder.hidden_dim=256|512 training.max_lr=1e-4|3e-4"'
_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
_RANGE = re.compile(rf"({_NUMBER}):({_NUMBER})(:log)?")
NOT_SWEPT = ("sweep", "run.folder", "run.device", "run.tracker", "data.test_set")
"""Sections and settings that are the sweep's own."""


class Axis(NamedTuple):
    """A setting of a sweep."""

    setting: str
    """``section.field``."""
    values: tuple[str, ...] = ()
    """Its values as they are typed; empty for a range."""
    low: float = 0.0
    high: float = 0.0
    log: bool = False
    """Whether a range is searched on a logarithmic scale."""
    whole: bool = False
    """Whether a range is of whole numbers."""


def parse_space(text: str) -> list[Axis]:
    """Read ``setting=a|b|c`` and ``setting=low:high[:log]``, separated by blanks.

    Raises
    ------
    UserError
        When nothing is given, a part is not understood, or a setting is unknown, given twice or not
        to be swept.
    """
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise UserError(f"sweep.over = {text!r} is not understood ({error}): {EXAMPLE}.") from error
    if not words:
        raise UserError(
            f"There is nothing to sweep over: give settings with their values, {EXAMPLE}."
        )
    axes: list[Axis] = []
    for word in words:
        name, equals, spec = word.partition("=")
        if not equals or not name or not spec:
            raise UserError(f"sweep.over: {word!r} is not understood: {EXAMPLE}.")
        axis = _axis(resolve(name.removeprefix("--")), spec)
        if any(axis.setting == each.setting for each in axes):
            raise UserError(f"sweep.over names {axis.setting} twice: put its values together.")
        axes.append(axis)
    return axes


def _axis(setting: str, spec: str) -> Axis:
    section, _, field = setting.partition(".")
    if section in NOT_SWEPT or setting in NOT_SWEPT:
        raise UserError(f"sweep.over: {setting} cannot be swept; choose settings of the method.")
    if match := _RANGE.fullmatch(spec):
        low, high, log = float(match[1]), float(match[2]), bool(match[3])
        if not low < high or (log and low <= 0):
            raise UserError(
                f"sweep.over: {setting}={spec} is no range: give low:high with low below high"
                " (above 0 with :log)."
            )
        whole = fields_of(section)[field].annotation is int
        if whole and not (low.is_integer() and high.is_integer()):
            raise UserError(f"sweep.over: {setting}={spec} has to be of whole numbers.")
        return Axis(setting, low=low, high=high, log=log, whole=whole)
    values = tuple(spec.split("|"))
    if len(values) < 2 or "" in values or len(set(values)) < len(values):
        raise UserError(
            f"sweep.over: {setting}={spec} has to have two values or more, all different, separated"
            f" by |; a single one is a setting of the command, {setting}={values[0]}."
        )
    return Axis(setting, values)


def grid(axes: Sequence[Axis]) -> list[dict[str, str]]:
    """Every combination, the last setting changing fastest.

    Raises
    ------
    UserError
        When a setting has a range.
    """
    for axis in axes:
        if not axis.values:
            raise UserError(
                f"sweep.over: {axis.setting} has a range, and a grid has none: list its values,"
                f" {axis.setting}=a|b|c, or give --method optuna."
            )
    names = [axis.setting for axis in axes]
    return [dict(zip(names, values)) for values in product(*(axis.values for axis in axes))]


def distributions(axes: Sequence[Axis]) -> dict[str, Any]:
    """The space as Optuna's distributions, by setting."""
    from optuna import distributions as optuna_distributions

    found: dict[str, Any] = {}
    for axis in axes:
        if axis.values:
            found[axis.setting] = optuna_distributions.CategoricalDistribution(axis.values)
        elif axis.whole:
            found[axis.setting] = optuna_distributions.IntDistribution(
                int(axis.low), int(axis.high), log=axis.log
            )
        else:
            found[axis.setting] = optuna_distributions.FloatDistribution(
                axis.low, axis.high, log=axis.log
            )
    return found


def as_typed(parameters: Mapping[str, Any]) -> dict[str, str]:
    """Values that Optuna proposes, as text; a float with all its digits."""
    return {
        name: repr(value) if isinstance(value, float) else str(value)
        for name, value in parameters.items()
    }
