"""Pictures of a run folder, one PNG per image id: what is there is kept, what is missing is drawn,
by however many processes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
import json
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image
from PIL.PngImagePlugin import PngInfo
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
import torch
from torch import Tensor

from braingen.runtime.console import track
from braingen.runtime.distributed import Workers
from braingen.runtime.errors import UserError
from braingen.runtime.files import replaced_path
from braingen.runtime.paths import EMBEDDINGS, INDEX, ROUTING

_NOTE = "braingen"
"""Key of the text that a picture carries about how it was made."""


class Drawn(NamedTuple):
    """A picture, and what is to be remembered of it."""

    picture: Image.Image
    note: Mapping[str, Any] | None = None
    """JSON-able; kept inside the PNG, so that picture and note cannot come from different
    moments.
    """
    tensors: Mapping[str, Tensor] | None = None
    """Larger things, kept beside the PNG until all pictures are there; see :func:`gathered`."""


@contextmanager
def opened(path: Path) -> Iterator[Image.Image]:
    """A picture of a run folder.

    Raises
    ------
    UserError
        When it is missing, or no picture.
    """
    again = (
        "remove it and start the command again that made the folder (`braingen reconstruct`,"
        " `decode` or `refine`)"
    )
    if not path.is_file():
        raise UserError(
            f"{path} is missing; {again.partition(' and ')[2]}: it makes what is missing."
        )
    try:
        with Image.open(path) as picture:
            picture.load()
            yield picture
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(f"{path} is not a picture or cut short ({error}); {again}.") from error


def picture_path(folder: Path, image: int) -> Path:
    """Where the picture of an image id lies."""
    return folder / f"{image:06d}.png"


def drawn_files(folder: Path, summary: Mapping[str, Any], pictures: bool = True) -> list[Path]:
    """Files of a finished folder of drawings: embeddings and, with pictures, index, pictures and
    what is remembered of routers.

    Parameters
    ----------
    summary : Mapping[str, Any]
        What the folder was marked finished with.
    pictures : bool, optional
        Whether there are any.
    """
    embeddings, routing = folder / EMBEDDINGS, folder / ROUTING
    if not pictures:
        return [embeddings]
    if (
        summary.get("routing") and not routing.exists()
    ):  # it was remembered while drawing, so all is drawn again
        for path in folder.glob("*.png"):
            path.unlink()
    try:
        ids = load_file(embeddings)["ids"].tolist() if embeddings.exists() else []
    except SafetensorError as error:
        raise UserError(
            f"{embeddings} is damaged ({error}); remove it and start the same command again."
        ) from error
    return [embeddings, folder / INDEX, *(picture_path(folder, image) for image in ids)]


def draw_missing(
    folder: Path,
    ids: Sequence[int],
    batch: int,
    draw: Callable[[slice], list[Drawn]],
    workers: Workers,
    description: str,
) -> None:
    """Draw the pictures that are not there yet; returns when all processes are done.

    Whole batches are shared out, always the same ones, so that a picture is computed beside the
    same neighbours, and so has the same bits, whatever the number of processes or the moment of an
    interruption.

    Parameters
    ----------
    folder : Path
        Where ``<image id>.png`` go.
    ids : Sequence[int]
        Image ids, the same in every process.
    batch : int
        Pictures drawn at once.
    draw : Callable[[slice], list[Drawn]]
        Rows of `ids` -> their pictures.
    """
    parts = [slice(start, start + batch) for start in range(0, len(ids), batch)]
    missing = workers.broadcast(
        [
            part
            for part in parts
            if not all(picture_path(folder, image).exists() for image in ids[part])
        ]
    )
    for part in track(workers.share(missing), description=description, disable=not workers.main):
        for image, drawn in zip(ids[part], draw(part)):
            info = PngInfo()
            if drawn.tensors:  # before the picture, which says that all is there
                with replaced_path(_tensors_path(folder, image)) as temporary:
                    save_file(
                        {name: value.contiguous() for name, value in drawn.tensors.items()},
                        temporary,
                    )
            if drawn.note:
                info.add_text(_NOTE, json.dumps(drawn.note))
            with replaced_path(picture_path(folder, image)) as temporary:
                drawn.picture.save(temporary, format="PNG", pnginfo=info)
    workers.wait()


def _tensors_path(folder: Path, image: int) -> Path:
    return folder / f"{image:06d}.safetensors"


def gathered(folder: Path, ids: Sequence[int], path: Path) -> None:
    """Put the tensors of all pictures into one file, one row per id, and remove the single ones;
    nothing to do where there are none.
    """
    if not path.exists():
        parts = [
            load_file(_tensors_path(folder, image))
            for image in ids
            if _tensors_path(folder, image).exists()
        ]
        if len(parts) < len(ids):
            return
        with replaced_path(path) as temporary:
            save_file(
                {name: torch.stack([part[name] for part in parts]) for name in parts[0]}
                | {"ids": torch.tensor(ids)},
                temporary,
            )
    for image in ids:
        _tensors_path(folder, image).unlink(missing_ok=True)


def notes(folder: Path, ids: Sequence[int]) -> dict[str, dict[str, Any]]:
    """What the pictures of these ids carry with them, by image id; pictures without a note are left
    out.
    """
    found = {}
    for image in ids:
        with opened(picture_path(folder, image)) as picture:
            text = picture.info.get(_NOTE)
        if text:
            found[str(int(image))] = json.loads(text)
    return found
