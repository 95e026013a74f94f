"""Generate the missing images of a run folder, one PNG per image id."""

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
"""Key of the PNG's text chunk that records how the image was made."""


class GeneratedImage(NamedTuple):
    """A generated image with its metadata."""

    image: Image.Image
    note: Mapping[str, Any] | None = None
    """JSON-able; stored inside the PNG, so that image and note are always of the same run."""
    tensors: Mapping[str, Tensor] | None = None
    """Stored beside the PNG until all images exist; see :func:`gather_tensors`."""


@contextmanager
def open_image(path: Path) -> Iterator[Image.Image]:
    """Open an image of a run folder.

    Raises
    ------
    UserError
        When it is missing, or not an image.
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
        with Image.open(path) as image:
            image.load()
            yield image
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(f"{path} is not an image or cut short ({error}); {again}.") from error


def png_path(folder: Path, image: int) -> Path:
    """Return the path of the image of an id."""
    return folder / f"{image:06d}.png"


def output_files(folder: Path, summary: Mapping[str, Any], images: bool = True) -> list[Path]:
    """List the files of a finished folder: embeddings, and with images the index and the PNGs.

    Parameters
    ----------
    summary : Mapping[str, Any]
        The summary with which the folder was marked finished.
    images : bool, optional
        Whether images were generated.
    """
    embeddings, routing = folder / EMBEDDINGS, folder / ROUTING
    if not images:
        return [embeddings]
    # routing is recorded during generation, so without it all images are generated again
    if summary.get("routing") and not routing.exists():
        for path in folder.glob("*.png"):
            path.unlink()
    try:
        ids = load_file(embeddings)["ids"].tolist() if embeddings.exists() else []
    except SafetensorError as error:
        raise UserError(
            f"{embeddings} is damaged ({error}); remove it and start the same command again."
        ) from error
    return [embeddings, folder / INDEX, *(png_path(folder, image) for image in ids)]


def generate_missing(
    folder: Path,
    ids: Sequence[int],
    batch: int,
    generate: Callable[[slice], list[GeneratedImage]],
    workers: Workers,
    description: str,
) -> None:
    """Generate the images that do not exist yet; returns when all processes are done.

    Processes share whole batches, which are always the same. So an image is computed in the same
    batch, and has the same bits, for any number of processes and after any interruption.

    Parameters
    ----------
    folder : Path
        Where ``<image id>.png`` go.
    ids : Sequence[int]
        Image ids, the same in every process.
    batch : int
        Images per batch.
    generate : Callable[[slice], list[GeneratedImage]]
        Rows of `ids` -> their images.
    """
    parts = [slice(start, start + batch) for start in range(0, len(ids), batch)]
    missing = workers.broadcast(
        [part for part in parts if not all(png_path(folder, image).exists() for image in ids[part])]
    )
    for part in track(workers.split(missing), description=description, disable=not workers.main):
        for image, generated in zip(ids[part], generate(part)):
            info = PngInfo()
            if generated.tensors:  # before the PNG, whose existence marks the image as complete
                with replaced_path(_tensors_path(folder, image)) as temporary:
                    save_file(
                        {name: value.contiguous() for name, value in generated.tensors.items()},
                        temporary,
                    )
            if generated.note:
                info.add_text(_NOTE, json.dumps(generated.note))
            with replaced_path(png_path(folder, image)) as temporary:
                generated.image.save(temporary, format="PNG", pnginfo=info)
    workers.wait()


def _tensors_path(folder: Path, image: int) -> Path:
    return folder / f"{image:06d}.safetensors"


def gather_tensors(folder: Path, ids: Sequence[int], path: Path) -> None:
    """Stack the tensors of all images in one file, one row per id, and remove the single files."""
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
    """Return the notes inside the PNGs by image id; images without a note are skipped."""
    found = {}
    for image in ids:
        with open_image(png_path(folder, image)) as png:
            text = png.info.get(_NOTE)
        if text:
            found[str(int(image))] = json.loads(text)
    return found
