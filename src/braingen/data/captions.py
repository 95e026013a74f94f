"""What people wrote about the pictures: five captions each, from COCO."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from braingen.runtime.arrays import read_npy
from braingen.runtime.data_layout import Layout
from braingen.runtime.errors import UserError
from braingen.runtime.files import refuse_stand_in
from braingen.runtime.text_files import read_json

_AGAIN = (
    "get it again, or write it with `braingen prepare` (from COCO's annotations) or `braingen"
    " simulate`"
)


NO_CAPTIONS = (
    "{path} is missing: there are no captions. Train the image encoder alone, which needs none; or"
    " get some: for NSD with `braingen prepare` from COCO's annotations; for scans of your own"
    " write captions.json ({{stim_file: [captions]}}) beside them, by hand or with a captioning"
    " model, and run `braingen prepare` again."
)


class Captions:
    """Captions by image id, empty ones dropped.

    Parameters
    ----------
    captions : Mapping[int, tuple[str, ...]]
        Image id -> captions.
    path : Path
        Where they come from, for messages.
    """

    def __init__(self, captions: Mapping[int, tuple[str, ...]], path: Path) -> None:
        self._captions = captions
        self.path = path

    def __contains__(self, image: int) -> bool:
        return bool(self._captions.get(int(image)))

    def __len__(self) -> int:
        """Number of images with a caption."""
        return sum(bool(texts) for texts in self._captions.values())

    def __getitem__(self, image: int) -> tuple[str, ...]:
        """Captions of one image, at least one.

        Raises
        ------
        UserError
            When it has none.
        """
        texts = self._captions.get(int(image), ())
        if not texts:
            raise UserError(
                f"{self.path} has no caption for image {int(image)} ({len(self)} images have one);"
                f" {_AGAIN}."
            )
        return texts

    def missing(self, images: Iterable[int]) -> list[int]:
        """Those of the given images that have no caption, ascending."""
        return sorted({int(image) for image in images if image not in self})


def has_captions(layout: Layout) -> bool:
    """Whether a data folder has a file of captions; own scans may have none."""
    return layout.captions().exists() or layout.captions_mindeye2().exists()


def load_captions(layout: Layout) -> Captions:
    """Captions of a data folder: coco_captions.json, or MindEye2's COCO_73k_annots_curated.npy
    where there is no JSON.

    Raises
    ------
    UserError
        When neither is there, or the file is damaged or of another form.
    """
    if not has_captions(layout):
        raise UserError(NO_CAPTIONS.format(path=layout.captions()))
    array = layout.captions_mindeye2()
    if array.exists() and not layout.captions().exists():
        return _from_array(refuse_stand_in(array, _AGAIN))
    return _from_json(layout.captions())


def _from_json(path: Path) -> Captions:
    content = read_json(path, _AGAIN)
    if not isinstance(content, dict):
        raise UserError(
            f'{path} holds a {type(content).__name__}, {{"<73k id>": [captions]}} was expected;'
            f" {_AGAIN}."
        )
    captions = {}
    for key, texts in content.items():
        if (
            not key.isdecimal()
            or not isinstance(texts, list)
            or not all(isinstance(text, str) for text in texts)
        ):
            raise UserError(
                f'{path}: entry "{key}" is not a list of captions under an image id; {_AGAIN}.'
            )
        captions[int(key)] = tuple(text.strip() for text in texts if text.strip())
    return Captions(captions, path)


def _from_array(path: Path) -> Captions:
    texts = read_npy(path, _AGAIN)
    if texts.dtype.kind != "U" or texts.ndim not in (1, 2):
        raise UserError(
            f"{path} is {texts.dtype} of shape {texts.shape}, text of shape (images, captions) was"
            f" expected; {_AGAIN}."
        )
    rows = texts.reshape(len(texts), -1)
    return Captions(
        {
            i: tuple(text.strip() for text in row.tolist() if text.strip())
            for i, row in enumerate(rows)
        },
        path,
    )
