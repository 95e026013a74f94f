"""COCO's captions of NSD's pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from braingen.data.raw_nsd.betas import GET_RAW
from braingen.runtime.errors import UserError, as_sentence, reason
from braingen.runtime.files import refuse_stand_in
from braingen.runtime.text_files import read_json

_PER_PICTURE = 5
_GET_COCO = (
    "get annotations_trainval2017.zip from https://cocodataset.org, unpack it and name its folder "
    "with prepare.coco=FOLDER, or leave captions out with --no-captions"
)


def find_coco(root: Path) -> Path:
    """Folder of COCO's annotations beside the raw release."""
    places = [root / "annotations", root / "coco" / "annotations", root / "coco"]
    return next((place for place in places if place.is_dir()), places[0])


def coco_captions(info: Path, folder: Path) -> dict[int, list[str]]:
    """The first five captions of every picture, in the order in which COCO numbers them.

    Parameters
    ----------
    info : Path
        nsd_stim_info_merged.csv: which of COCO's pictures each of NSD's is.
    folder : Path
        Folder of COCO's captions_train2017.json and captions_val2017.json.

    Raises
    ------
    UserError
        When a file is missing or damaged, or a picture has no caption.
    """
    refuse_stand_in(info, GET_RAW)
    with as_sentence(f"{info} is not NSD's table of pictures", GET_RAW):
        table = pd.read_csv(info, usecols=["nsdId", "cocoId", "cocoSplit"])
    by_coco: dict[int, list[tuple[int, str]]] = {}
    for split in sorted(table["cocoSplit"].unique()):
        for note in _annotations(folder / f"captions_{split}.json"):
            caption = (int(note["id"]), str(note["caption"]).strip())
            by_coco.setdefault(int(note["image_id"]), []).append(caption)
    captions = {}
    for image, coco in zip(table["nsdId"], table["cocoId"]):  # nsdId counts from 0
        texts = [text for _, text in sorted(by_coco.get(int(coco), [])) if text]
        if not texts:
            raise UserError(
                f"COCO picture {coco}, NSD's {image}, has no caption in {folder}: {_GET_COCO}."
            )
        captions[int(image)] = texts[:_PER_PICTURE]
    return captions


def _annotations(path: Path) -> list[dict[str, Any]]:
    refuse_stand_in(path, _GET_COCO)
    try:
        found = read_json(path)["annotations"]
        if not all({"image_id", "id", "caption"} <= set(note) for note in found):
            raise KeyError("image_id, id, caption")
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} does not hold COCO's captions ({reason(error)}); {_GET_COCO}."
        ) from error
    return found
