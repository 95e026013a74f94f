"""Metrics that compare two images pixel by pixel: one file each, found by being here.

A file has ``NAME``, ``METRIC`` (title, group, direction, digits), ``SIDE`` (pixels to which both
images are resized) and ``values(truth_B3HW, recons_B3HW)``, which returns B values. Tables with
intervals, comparisons, the report and the help take it from here (docs/extending.md). Nothing at
the top of a file may load torch: the help reads it.
"""

from __future__ import annotations

from functools import lru_cache
from importlib import import_module
import pkgutil
from typing import Any

from braingen.runtime.errors import UserError

MEMBERS = ("NAME", "METRIC", "SIDE", "values")


@lru_cache
def pixel_metrics() -> dict[str, Any]:
    """The modules of this package by the name of their metric.

    Raises
    ------
    UserError
        For a file that lacks a member, or two files with one name.
    """
    found: dict[str, Any] = {}
    for each in pkgutil.iter_modules(__path__):
        module = import_module(f"{__name__}.{each.name}")
        if lacking := [member for member in MEMBERS if not hasattr(module, member)]:
            raise UserError(
                f"braingen/evaluation/pixel_metrics/{each.name}.py lacks {' and '.join(lacking)}: a"
                f" metric's file has {', '.join(MEMBERS)}."
            )
        if module.NAME in found:
            other = found[module.NAME].__name__.rpartition(".")[2]
            raise UserError(
                f"braingen/evaluation/pixel_metrics has two files with the metric {module.NAME}:"
                f" {other}.py and {each.name}.py."
            )
        found[module.NAME] = module
    return found
