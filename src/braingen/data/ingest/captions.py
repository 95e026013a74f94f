"""Captions of own pictures: captions.json in the form of a table, a list or COCO's annotations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from braingen.data.ingest.identity import KnownPicture
from braingen.data.ingest.names import GUIDE
from braingen.runtime.errors import UserError, as_sentence
from braingen.runtime.text_files import read_json


def find_captions(folders: Sequence[Path]) -> Path | None:
    """captions.json of the first folder that has it; None where there is none."""
    paths = (folder / "captions.json" for folder in folders)
    return next((path for path in paths if path.exists()), None)


def captions_by_image(path: Path, pictures: Mapping[str, KnownPicture]) -> dict[int, list[str]]:
    """Captions of all pictures.

    Parameters
    ----------
    path : Path
        captions.json; names may lack folder and ending where that is unambiguous.
    pictures : mapping of str to KnownPicture
        Pictures by name.

    Returns
    -------
    dict of int to list of str
        Captions by image id.

    Raises
    ------
    UserError
        When the file has another form, or a picture has no caption.
    """
    texts = _captions_by_name(path)
    stems: dict[str, list[str]] = {}
    for name in texts:
        stems.setdefault(_stem(name), []).append(name)
    found: dict[int, list[str]] = {}
    for name, known in pictures.items():
        mine = texts.get(name)
        if mine is None:
            fitting = stems.get(_stem(name), [])
            mine = texts[fitting[0]] if len(fitting) == 1 else []
        if mine:
            found[known.image] = list(dict.fromkeys([*found.get(known.image, []), *mine]))
    without = [name for name, known in pictures.items() if known.image not in found]
    if without:
        raise UserError(
            f"{path} has no caption for {without[0]} ({len(without)} such); add them, or leave "
            "captions out with --no-captions."
        )
    return found


def _stem(name: str) -> str:
    """A name without folders and ending."""
    last = name.rpartition("/")[2]
    return last.rpartition(".")[0] or last


def _captions_by_name(path: Path) -> dict[str, list[str]]:
    found = read_json(path, GUIDE)
    texts: dict[str, list[str]] = {}
    with as_sentence(
        f"{path} is not {{stim_file: [captions]}}, nor a list of {{file_name, caption}}", GUIDE
    ):
        for name, given in _entries(found):
            several = [given] if isinstance(given, str) else given
            texts.setdefault(name, []).extend(text for t in several if (text := str(t).strip()))
    return texts


def _entries(found: Any) -> list[tuple[str, Any]]:
    """Name of a picture and one or several captions: of a table, a list or COCO's annotations."""
    if isinstance(found, dict) and {"images", "annotations"} <= set(found):
        names = {image["id"]: image["file_name"] for image in found["images"]}
        return [(names[note["image_id"]], str(note["caption"])) for note in found["annotations"]]
    if isinstance(found, list):
        keys = ("file_name", "stim_file", "image", "name")
        return [
            (str(next(e[key] for key in keys if key in e)), e.get("caption", e.get("captions")))
            for e in found
        ]
    return list(found.items())
