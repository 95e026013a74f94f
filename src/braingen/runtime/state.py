"""Save the state of a run in one safetensors file: tensors, and everything else as JSON. No pickle.

The file is renamed into place, so tensors and scalars are always of the same moment.
"""

from __future__ import annotations

from collections.abc import Mapping
import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
import torch
from torch import Tensor

from braingen.runtime.errors import UserError
from braingen.runtime.files import replaced_path

_HEADER = "braingen"


def _pack(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """Convert a tree to JSON-able form; tensors are collected by their path."""
    if isinstance(value, Tensor):
        tensors[name] = value
        return {"tensor": name}
    if isinstance(value, np.ndarray):
        tensors[name] = torch.from_numpy(np.ascontiguousarray(value).reshape(value.shape))
        return {"array": name}
    if isinstance(value, np.generic):
        return _pack(value.item(), name, tensors)
    if isinstance(
        value, Mapping
    ):  # pairs instead of a JSON object keep the keys' types (optimizers use integers)
        return {
            "dict": [
                [_pack(k, f"{name}.key", {}), _pack(v, f"{name}.{k}", tensors)]
                for k, v in value.items()
            ]
        }
    if isinstance(value, tuple | list):
        return {
            type(value).__name__ if type(value) in (tuple, list) else "tuple": [
                _pack(v, f"{name}.{i}", tensors) for i, v in enumerate(value)
            ]
        }
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(
        f"{name} is a {type(value).__name__}: a state holds tensors, arrays, numbers, text, lists,"
        " tuples and dicts"
    )


def _unpack(packed: Any, tensors: Mapping[str, Tensor]) -> Any:
    if not isinstance(packed, dict):
        return packed
    ((kind, content),) = packed.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "array":
        return tensors[content].numpy()
    if kind == "dict":
        return {_unpack(k, tensors): _unpack(v, tensors) for k, v in content}
    values = [_unpack(v, tensors) for v in content]
    return tuple(values) if kind == "tuple" else values


def save_tree(path: Path | str, state: Any) -> None:
    """Write a tree of tensors, arrays, numbers, text, lists, tuples and dicts atomically.

    Every value is restored bit for bit, with its type: JSON keeps Python's floats and integers
    exactly.

    Raises
    ------
    UserError
        When the disk is full or read-only; the previous file is unchanged.
    TypeError
        When the tree holds another type.
    """
    tensors: dict[str, Tensor] = {}
    header = json.dumps(_pack(state, "state", tensors))
    seen: set[int] = set()
    for (
        name,
        tensor,
    ) in (
        tensors.items()
    ):  # the format refuses shared memory (tied weights, views), so it is written twice
        tensor = tensor.detach().cpu().contiguous()
        storage = tensor.untyped_storage().data_ptr()
        tensors[name] = tensor.clone() if storage in seen else tensor
        seen.add(storage)
    with replaced_path(path) as temporary:
        save_file(tensors, temporary, metadata={_HEADER: header})


def load_tree(path: Path | str) -> Any:
    """Read a tree written by `save_tree`; tensors are on the CPU.

    Raises
    ------
    UserError
        When the file is missing, damaged or was not written by `save_tree`.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if _HEADER not in metadata:
                raise UserError(
                    f"{path} is a safetensors file, but not the state of a run: it was not written"
                    " by BrainGen; remove it to start anew."
                )
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    except FileNotFoundError as error:
        raise UserError(
            f"{path} is missing: there is no state to continue from; start the run anew."
        ) from error
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"{path} is damaged ({error}); remove it to continue from an earlier state or to start"
            " anew."
        ) from error
    return _unpack(json.loads(metadata[_HEADER]), tensors)
