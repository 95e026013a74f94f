"""Pictures of a run folder, one PNG per image id: what is there is kept, what is missing is drawn, by however many processes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
import json
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image
from PIL.PngImagePlugin import PngInfo
from safetensors.torch import load_file, save_file
import torch
from torch import Tensor

from braingen.console import track
from braingen.files import replaced_path
from braingen.stages.workers import Workers

_NOTE = "braingen"
"""Key of the text that a picture carries about how it was made."""


class Drawn(NamedTuple):
    """A picture, and what is to be remembered of it."""

    picture: Image.Image
    note: Mapping[str, Any] | None = None
    """JSON-able; kept inside the PNG, so that picture and note cannot come from different moments."""
    tensors: Mapping[str, Tensor] | None = None
    """Larger things, kept beside the PNG until all pictures are there; see :func:`gathered`."""


def picture_path(folder: Path, image: int) -> Path:
    """Where the picture of an image id lies."""
    return folder / f"{image:06d}.png"


def draw_missing(
    folder: Path, ids: Sequence[int], batch: int, draw: Callable[[slice], list[Drawn]], workers: Workers, description: str
) -> None:
    """Draw the pictures that are not there yet; returns when all processes are done.

    Whole batches are shared out, always the same ones, so that a picture is computed beside the same neighbours, and so has the same
    bits, whatever the number of processes or the moment of an interruption.

    Parameters
    ----------
    folder : where ``<image id>.png`` go
    ids : image ids, the same in every process
    batch : pictures drawn at once
    draw : rows of `ids` -> their pictures
    """
    parts = [slice(start, start + batch) for start in range(0, len(ids), batch)]
    missing = workers.told([part for part in parts if not all(picture_path(folder, image).exists() for image in ids[part])])
    for part in track(workers.share(missing), description=description, disable=not workers.main):
        for image, drawn in zip(ids[part], draw(part)):
            info = PngInfo()
            if drawn.tensors:  # before the picture, which says that all is there
                with replaced_path(_tensors_path(folder, image)) as temporary:
                    save_file({name: value.contiguous() for name, value in drawn.tensors.items()}, temporary)
            if drawn.note:
                info.add_text(_NOTE, json.dumps(drawn.note))
            with replaced_path(picture_path(folder, image)) as temporary:
                drawn.picture.save(temporary, format="PNG", pnginfo=info)
    workers.wait()


def _tensors_path(folder: Path, image: int) -> Path:
    return folder / f"{image:06d}.safetensors"


def gathered(folder: Path, ids: Sequence[int], path: Path) -> None:
    """Put the tensors of all pictures into one file, one row per id, and remove the single ones; nothing to do where there are none."""
    if not path.exists():
        parts = [load_file(_tensors_path(folder, image)) for image in ids if _tensors_path(folder, image).exists()]
        if len(parts) < len(ids):
            return
        with replaced_path(path) as temporary:
            save_file({name: torch.stack([part[name] for part in parts]) for name in parts[0]} | {"ids": torch.tensor(ids)}, temporary)
    for image in ids:
        _tensors_path(folder, image).unlink(missing_ok=True)


def notes(folder: Path, ids: Sequence[int]) -> dict[str, dict[str, Any]]:
    """What the pictures of these ids carry with them, by image id; pictures without a note are left out."""
    found = {}
    for image in ids:
        with Image.open(picture_path(folder, image)) as picture:
            text = picture.info.get(_NOTE)
        if text:
            found[str(int(image))] = json.loads(text)
    return found
