"""Parity cases: numbers that the published implementation produced, read through the manifest that
describes them.

The folder is tests/parity/data, or the one that the environment variable BRAINGEN_PARITY_DIR names
(any folder of the same form).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
import fnmatch
import importlib.util
import json
import os
from pathlib import Path
import sys
from typing import Any

import numpy as np
from safetensors.numpy import load_file

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Case:
    """One entry of the manifest with its tensors; names are those of the file without the
    ``state/``, ``in/`` or ``out/``.
    """

    spec: dict[str, Any]
    """The manifest's entry: kind, constructor, call, mode, tolerance and more."""
    state: dict[str, np.ndarray]
    """Weights, under the keys of the published checkpoints."""
    inputs: dict[str, np.ndarray]
    """Inputs, and every random number that was drawn."""
    outputs: dict[str, np.ndarray]
    """What the published implementation returned."""

    @property
    def name(self) -> str:
        return str(self.spec["case"])

    @property
    def kind(self) -> str:
        return str(self.spec["kind"])


Handler = Callable[[Case], dict[str, np.ndarray]]


def folder() -> Path:
    """Where the cases are."""
    return Path(os.environ.get("BRAINGEN_PARITY_DIR") or HERE / "data")


def entries() -> list[dict[str, Any]]:
    """The manifest's entries."""
    file = folder() / "manifest.json"
    if not file.is_file():
        raise FileNotFoundError(
            f"{file} does not exist: BRAINGEN_PARITY_DIR must name a folder with manifest.json and"
            " its files."
        )
    return list(json.loads(file.read_text())["cases"])


def read_case(spec: dict[str, Any]) -> Case:
    """Read the tensors of an entry; weights given by a formula are computed."""
    tensors = load_file(folder() / spec["file"])
    groups: dict[str, dict[str, np.ndarray]] = {"state": {}, "in": {}, "out": {}}
    for key, value in tensors.items():
        group, _, name = key.partition("/")
        groups[group][name] = value
    if spec.get("weights", {}).get("kind") == "formula":
        seed = int(spec["weights"]["seed"])
        for place, tensor in enumerate(spec["weights"]["tensors"]):
            groups["state"][tensor["key"]] = formula_weights(
                place, seed, tensor["shape"], tensor["scale"], tensor["offset"]
            )
    return Case(spec, groups["state"], groups["in"], groups["out"])


def formula_weights(
    place: int, seed: int, shape: list[int], scale: float, offset: float
) -> np.ndarray:
    """Weights from a hash of their position (tests/parity/data/README.md, 'Weights given by a
    formula').

    Parameters
    ----------
    place : int
        Number of the tensor in its list.
    """
    word = np.uint64(0xFFFFFFFF)
    size = int(np.prod(shape, dtype=np.int64))
    h = (np.arange(size, dtype=np.uint64) + np.uint64((1000003 * place + seed) & 0xFFFFFFFF)) & word
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        h = ((h ^ (h >> np.uint64(shift))) * np.uint64(factor)) & word
    h = h ^ (h >> np.uint64(16))
    return (
        (scale * (2.0 * h.astype(np.float64) / 2.0**32 - 1.0) + offset)
        .astype(np.float32)
        .reshape(shape)
    )


def handlers() -> dict[str, Handler]:
    """Every handler of the files ``handlers_*.py`` here, by kind."""
    found: dict[str, Handler] = {}
    for file in sorted(HERE.glob("handlers_*.py")):
        name = f"parity_{file.stem}"
        spec = importlib.util.spec_from_file_location(name, file)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
        twice = found.keys() & module.HANDLERS.keys()
        if twice:
            raise ValueError(f"{file.name} handles {sorted(twice)} a second time.")
        found |= module.HANDLERS
    return found


def declined() -> dict[str, dict[str, str]]:
    """Outputs deliberately not followed: case or kind -> output (a pattern; "*" for all) ->
    reason.
    """
    return dict(json.loads((HERE / "declined.json").read_text()))


def is_declined(case_name: str, kind: str, output: str) -> str | None:
    """The reason why an output is not followed, or None."""
    for name in (case_name, kind):
        for pattern, reason in declined().get(name, {}).items():
            if fnmatch.fnmatchcase(output, pattern):
                return reason
    return None
