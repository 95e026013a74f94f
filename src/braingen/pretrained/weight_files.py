"""Which files of a folder are a model's weights: one rule for loading, checking and fingerprints.

diffusers and transformers look for names of their own. A folder may hold several copies (float32
and ``fp16``, safetensors and pickles, open_clip's file), whole or in shards; the rule takes one.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
import hashlib
import json
from math import prod
from pathlib import Path
import re
from typing import Literal, NamedTuple

from braingen.runtime.errors import UserError
from braingen.runtime.files import refuse_stand_in
from braingen.runtime.fingerprints import fingerprint_of_files

Library = Literal["diffusers", "transformers"]
STEMS: dict[Library, tuple[str, str]] = {
    "diffusers": ("diffusion_pytorch_model", "diffusion_pytorch_model"),
    "transformers": ("model", "pytorch_model"),
}
"""Names before the suffix: of safetensors files, and of pickles."""
HALF = "fp16"
"""diffusers' name of the copy in half precision."""


class WeightFiles(NamedTuple):
    """The files that are loaded."""

    names: tuple[str, ...]
    """Weights first, an index of shards last."""
    variant: str | None
    """``variant`` of ``from_pretrained``."""
    use_safetensors: bool

    @property
    def weights(self) -> tuple[str, ...]:
        """Without the index."""
        return tuple(name for name in self.names if not name.endswith(".json"))


def chosen_files(
    names: Collection[str], library: Library, half: bool = False
) -> WeightFiles | None:
    """Choose among the names in a folder; None where nothing can be loaded.

    safetensors before pickles. The plain copy before the one in half precision, or, for a model
    that is used in half precision, the other way round.

    Parameters
    ----------
    names : Collection[str]
        Of the files in the model's folder, or on the hub.
    half : bool, optional
        Whether the model will be in half precision.
    """
    for variant in (HALF, None) if half else (None, HALF):
        for suffix, stem in zip((".safetensors", ".bin"), STEMS[library]):
            mark = f".{variant}" if variant else ""
            if f"{stem}{mark}{suffix}" in names:
                return WeightFiles((f"{stem}{mark}{suffix}",), variant, suffix == ".safetensors")
            index = f"{stem}{suffix}.index{mark}.json"
            shards = _shards(names, stem, mark, suffix)
            if index in names and shards:
                return WeightFiles((*shards, index), variant, suffix == ".safetensors")
    return None


def _shards(names: Iterable[str], stem: str, mark: str, suffix: str) -> tuple[str, ...]:
    """All shards, or nothing where one is missing; the mark stands before or after the number."""
    number = r"-(\d{5})-of-(\d{5})"
    pattern = re.compile(
        f"{re.escape(stem + mark)}{number}{re.escape(suffix)}"
        f"|{re.escape(stem)}{number}{re.escape(mark + suffix)}"
    )
    found = sorted(name for name in names if pattern.fullmatch(name))
    counts = {int(match.group(1)) for name in found if (match := re.search(r"-of-(\d{5})", name))}
    return tuple(found) if counts == {len(found)} else ()


def files_in(folder: Path) -> list[str]:
    """Names of the files in a folder; none where there is no folder."""
    return [path.name for path in folder.iterdir() if path.is_file()] if folder.is_dir() else []


def model_files(folder: Path, library: Library, half: bool = False, get_it: str = "") -> list[Path]:
    """The files of a model's folder that are loaded, whole.

    Parameters
    ----------
    get_it : str, optional
        What the user should do when they are not there; ends the message.

    Raises
    ------
    UserError
        When there is no such folder, no configuration, or no weights in it that can be loaded; when
        a file is cut short or only stands in for one.
    """
    if not folder.is_dir():
        raise UserError(f"{folder.parent} has no folder {folder.name}; {get_it}.")
    refuse_stand_in(folder / "config.json", get_it)
    names = files_in(folder)
    chosen = chosen_files(names, library, half)
    if chosen is None:
        safe, pickled = STEMS[library]
        other = sorted(name for name in names if name.endswith((".safetensors", ".bin", ".pt")))
        there = f" It has {', '.join(other[:3])}, which {library} does not load." if other else ""
        raise UserError(
            f"{folder} holds no weights that {library} loads ({safe}.safetensors, also in shards"
            f" or as {safe}.{HALF}.safetensors, or {pickled}.bin).{there} {get_it.capitalize()}."
        )
    paths = [folder / name for name in chosen.names]
    for path in paths:
        if path.suffix == ".safetensors":
            whole_safetensors(path, get_it)
        else:
            refuse_stand_in(path, get_it)
    return paths


def whole_safetensors(path: Path, get_it: str) -> Path:
    """Refuse a weight file that is truncated, a placeholder or no safetensors file, by its header.

    Raises
    ------
    UserError
        With the command that repairs it.
    """
    refuse_stand_in(path, get_it)
    size = path.stat().st_size
    try:
        length, header = _header(path)
        ends = [entry["data_offsets"][1] for entry in header.values()]
        needed = 8 + length + max(ends, default=0)
    except (ValueError, KeyError, TypeError, AttributeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not a safetensors file or cut short; {get_it}.") from error
    if size != needed:
        raise UserError(
            f"{path} has {size} bytes, {needed} were expected: it is cut short or still being"
            f" downloaded; {get_it}."
        )
    return path


def _header(path: Path) -> tuple[int, dict[str, dict]]:
    """Length of the header, and its entries by the name of the tensor."""
    with open(path, "rb") as handle:
        length = int.from_bytes(handle.read(8), "little")
        if not 2 <= length <= min(path.stat().st_size, 10**8):
            raise ValueError("no header")
        header = json.loads(handle.read(length))
    return length, {key: entry for key, entry in header.items() if key != "__metadata__"}


def numbers_in(paths: Iterable[Path], other: tuple[str, ...] = ()) -> int:
    """How many numbers a model's files hold, in whatever type they are stored.

    Parameters
    ----------
    other : tuple[str, ...], optional
        Beginnings of names that are not counted.
    """
    total = 0
    for path in paths:
        if path.suffix == ".safetensors":
            total += sum(
                prod(entry["shape"])
                for name, entry in _header(path)[1].items()
                if not name.startswith(other)
            )
        elif path.suffix == ".bin":  # a pickle: by its size, as float32 or half
            total += path.stat().st_size // (2 if HALF in path.name else 4)
    return total


def key_of(folder: Path, library: Library, half: bool = False) -> str:
    """Fingerprint of a model: its configuration and the weights that are loaded, nothing else.

    The same for a local copy and the hub's folder, whatever else lies beside the files; another
    for another revision. Empty where nothing can be loaded.
    """
    chosen = chosen_files(files_in(folder), library, half)
    if chosen is None:
        return ""
    digest = hashlib.sha256()
    for name in sorted({*chosen.weights, "config.json", "preprocessor_config.json"}):
        if (folder / name).is_file():
            digest.update(f"{name} {fingerprint_of_files(folder / name)}\n".encode())
    return digest.hexdigest()[:16]
