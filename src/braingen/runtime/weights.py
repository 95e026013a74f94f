"""Read weight files of any origin safely: complete, finite, and without running code.

.safetensors               tensors only
.pth .pt .ckpt .bin        pickles, of which only tensors and plain values are read
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
import pickle
import pickletools
import re
from typing import Any
import zipfile

import numpy as np
from safetensors import SafetensorError
from safetensors.torch import load_file
import torch
from torch import Tensor, nn

from braingen.runtime.errors import UserError
from braingen.runtime.files import refuse_stand_in

SAFETENSORS, PICKLED = (".safetensors",), (".pth", ".pt", ".ckpt", ".bin")
_TERMINAL_CODES = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
_SHOWN = 3
"""Number of names in a message."""


def plain_text(error: BaseException, length: int = 200) -> str:
    """Return an error message on one line, without terminal codes, cut to a length."""
    return " ".join(_TERMINAL_CODES.sub("", str(error)).split())[:length]


def first_line(error: BaseException) -> str:
    """Return the first line of an error message (:func:`plain_text`), else the error's type."""
    return plain_text(ValueError(str(error).strip().partition("\n")[0])) or type(error).__name__


def read_entries(
    path: Path | str, get_it: str, keep: str = "{k: v for k, v in d.items() if torch.is_tensor(v)}"
) -> Any:
    """Read the content of a weight file without running code.

    Parameters
    ----------
    path : Path | str
        The file.
    get_it : str
        What the user should do when it is missing; ends the message.
    keep : str, optional
        Python expression that keeps the tensors of the loaded object ``d``, for the suggested
        command.

    Raises
    ------
    UserError
        When it is missing, damaged, not a weight file, or holds Python objects besides tensors and
        plain values.
    """
    path = refuse_stand_in(path, get_it)
    try:
        if path.suffix == ".safetensors" and not _is_pickle(path):
            return load_file(path)
        if (
            path.suffix == ".safetensors"
        ):  # a pickle with a wrong suffix: torch chooses the reader by suffix
            with open(path, "rb") as handle:
                return torch.load(handle, map_location="cpu", weights_only=True)
        try:
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError as error:
            if "mmap" not in str(error):
                raise
            return torch.load(
                path, map_location="cpu", weights_only=True
            )  # files older than torch 1.6
    except pickle.UnpicklingError as error:
        objects = _objects_in(path) or (
            ["Python objects"] if "global" in str(error).lower() else []
        )
        if not objects:
            raise UserError(f"{path} is no checkpoint or damaged; {get_it}.") from error
        raise UserError(
            f"{path} holds more than tensors ({', '.join(objects)}); loading Python objects could"
            " run code, so it is not read. Where you trust its origin, keep its tensors only: d ="
            f" torch.load({path.name!r}, weights_only=False); torch.save({keep}, 'clean.pt')."
        ) from error
    except SafetensorError as error:
        raise UserError(
            f"{path} is not a safetensors file or cut short ({plain_text(error)}); {get_it}."
        ) from error
    except (RuntimeError, EOFError, ValueError, OSError, MemoryError) as error:
        raise UserError(
            f"{path} cannot be read as a file of weights ({plain_text(error) or 'cut short'});"
            f" {get_it}."
        ) from error
    except (LookupError, AttributeError, TypeError) as error:  # unpickling other content
        raise UserError(f"{path} is no checkpoint or damaged; {get_it}.") from error


def read_tensors(path: Path | str, get_it: str) -> dict[str, Tensor]:
    """Read the tensors of a file by (dotted) name; all are finite.

    Raises
    ------
    UserError
        As :func:`read_entries`; for other content than tensors, and for NaN or infinite values.
    """
    entries = read_entries(path, get_it)
    if not isinstance(entries, Mapping) or not entries:
        raise UserError(
            f"{path} holds a {type(entries).__name__} of no names; tensors by name were expected;"
            f" {get_it}."
        )
    tensors = dict(_flat(entries, ""))
    if not tensors:
        raise UserError(
            f"{path} holds no tensors (its entries: {', '.join(map(str, list(entries)[:_SHOWN]))});"
            f" {get_it}."
        )
    refuse_not_finite(tensors, path)
    return tensors


def _flat(entries: Mapping[Any, Any], prefix: str) -> Iterable[tuple[str, Tensor]]:
    for key, value in entries.items():
        if isinstance(value, Tensor):
            yield f"{prefix}{key}", value
        elif isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")


def load_whole(load: Callable[..., Any], folder: Path | str, get_it: str, **kwargs: Any) -> Any:
    """Load a diffusers model whose files hold exactly its weights, all finite.

    diffusers initialises missing weights at random and only logs it.

    Parameters
    ----------
    load : Callable[..., Any]
        The class's ``from_pretrained``.
    folder : Path | str
        Folder of the model.
    get_it : str
        What the user should do when it is damaged; ends the message.
    **kwargs : Any
        For ``from_pretrained``.

    Raises
    ------
    UserError
        When files are missing or damaged, or weights are missing, left over, of another shape, NaN
        or infinite.
    """
    with_info = kwargs.pop("output_loading_info", False)
    where = f"{folder}/{kwargs['subfolder']}" if kwargs.get("subfolder") else str(folder)
    try:
        model, info = load(folder, output_loading_info=True, **kwargs)
    except UserError:
        raise
    except (
        OSError,
        ValueError,
        RuntimeError,
        TypeError,
        LookupError,
        AttributeError,
        SafetensorError,
        pickle.UnpicklingError,
    ) as error:
        raise UserError(f"{where} cannot be loaded ({plain_text(error)}); {get_it}.") from error
    for what, key in (
        ("missing", "missing_keys"),
        ("left over", "unexpected_keys"),
        ("of another shape", "mismatched_keys"),
    ):
        if info.get(key):
            raise UserError(
                f"{where}: {len(info[key])} weights are {what} (first:"
                f" {sorted(map(str, info[key]))[0]}); {get_it}."
            )
    refuse_not_finite(model, where, get_it)
    return (model, info) if with_info else model


def not_finite(tensors: Mapping[str, Tensor]) -> list[str]:
    """Return the names of tensors that hold NaN or infinity."""
    return [name for name, value in tensors.items() if not _finite(value)]


def _finite(value: Tensor) -> bool:
    if (
        value.device.type == "meta"
        or not value.numel()
        or not (value.is_floating_point() or value.is_complex())
    ):
        return True
    if value.is_complex():
        value = torch.view_as_real(value)
    if value.element_size() < 2:  # torch has no minimum of eight-bit floats
        value = value.float()
    return bool(torch.isfinite(torch.stack(value.aminmax())).all())  # both are NaN if any value is


def refuse_not_finite(
    tensors: Mapping[str, Tensor] | nn.Module,
    path: Path | str,
    instead: str = "get or train it again",
) -> None:
    """Refuse weights with NaN or infinity.

    Raises
    ------
    UserError
        With the first names.
    """
    named = tensors.state_dict() if isinstance(tensors, nn.Module) else tensors
    wrong = not_finite(named)
    if wrong:
        more = f" and {len(wrong) - _SHOWN} more" if len(wrong) > _SHOWN else ""
        raise UserError(
            f"{path}: {len(wrong)} of {len(named)} weights hold NaN or infinite numbers"
            f" ({', '.join(wrong[:_SHOWN])}{more}); {instead}."
        )


def _is_pickle(path: Path) -> bool:
    """Whether a file is PyTorch's by content: a zip archive, or an older bare pickle."""
    with open(path, "rb") as handle:
        start = handle.read(9)
    return start[:2] == b"PK" or (
        start[:1] == b"\x80" and start[8:9] != b"{"
    )  # a safetensors header would begin there


def _objects_in(path: Path) -> list[str]:
    """List Python objects in a checkpoint besides tensors and plain values."""
    try:
        found = torch.serialization.get_unsafe_globals_in_checkpoint(str(path))
    except Exception:  # not a checkpoint, or an older form
        return []
    scalars = any(name.endswith("multiarray.scalar") for name in found)
    kinds = _numpy_kinds(path) if scalars else []
    left_out = {"numpy.dtype", "_codecs.encode"} if scalars else set()
    other = [
        n
        for n in found
        if not n.endswith("multiarray.scalar")
        and n not in left_out
        and not n.startswith("numpy.dtypes.")
    ]
    return kinds + sorted(other)


def _numpy_kinds(path: Path) -> list[str]:
    """Determine the NumPy scalar types in a checkpoint from its opcodes, without running them."""
    try:
        with zipfile.ZipFile(path) as archive:
            (name,) = (name for name in archive.namelist() if name.endswith("data.pkl"))
            content = archive.read(name)
    except (zipfile.BadZipFile, ValueError):
        return ["NumPy scalars"]
    written = {
        str(argument) for _, argument, _ in pickletools.genops(content) if isinstance(argument, str)
    }
    kinds = {
        f"numpy.{np.dtype(name).name}" for name in written if re.fullmatch(r"[biufc]\d{1,2}", name)
    }
    return sorted(kinds) or ["NumPy scalars"]
