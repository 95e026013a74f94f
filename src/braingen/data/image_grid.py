"""Pictures for a page that is one file: small, inside data URIs; and the plain sheet of the
README.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator, Sequence
import io
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont, UnidentifiedImageError

from braingen.data.stimuli import Stimuli
from braingen.runtime.errors import UserError
from braingen.runtime.files import replaced_file

SIDE = 128
"""Side of an embedded picture in pixels."""
QUALITY = 82
"""WebP quality: about 3 kB for a picture, no visible loss at this size."""
_AT_ONCE = 32  # seen pictures read together: 19 MB as float32


def data_uri(picture: Image.Image, side: int = SIDE) -> str:
    """A picture as text that can stand in `src`.

    Parameters
    ----------
    picture : Image.Image
        Any mode and size.
    side : int, optional
        It is resized to side x side pixels.
    """
    small = picture.convert("RGB")
    if small.size != (side, side):
        small = small.resize((side, side), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    small.save(buffer, "WEBP", quality=QUALITY, method=2)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()


def open_picture(path: Path) -> Image.Image:
    """Read a reconstruction.

    Raises
    ------
    UserError
        When the file is not a picture, or cut short.
    """
    try:
        with Image.open(path) as picture:
            return picture.convert("RGB")
    except (UnidentifiedImageError, OSError, SyntaxError) as error:
        raise UserError(
            f"{path} is not a picture or cut short ({error}); remove it and run `braingen"
            " reconstruct` again."
        ) from error


def seen_pictures(stimuli: Stimuli, images: Sequence[int]) -> Iterator[tuple[int, Image.Image]]:
    """The pictures that were seen, one by one with their ids, in the given order."""
    for start in range(0, len(images), _AT_ONCE):
        part = images[start : start + _AT_ONCE]
        for image, pixels_3HW in zip(part, stimuli.images(np.array(part))):
            yield (
                image,
                Image.fromarray(np.round(pixels_3HW.transpose(1, 2, 0) * 255).astype(np.uint8)),
            )


def write_sheet(
    path: Path,
    pairs: Sequence[tuple[Image.Image, Image.Image]],
    title: str,
    columns: int = 12,
    side: int = 96,
) -> None:
    """Write a sheet of pictures: seen above, drawn from the brain beneath, in blocks of rows.

    Parameters
    ----------
    path : Path
        PNG to write.
    pairs : Sequence[tuple[Image.Image, Image.Image]]
        (seen, reconstructed), in the order in which they are laid out.
    title : str
        Line at the top.
    columns : int, optional
        Pairs in a block.
    side : int, optional
        Side of a picture in pixels.
    """
    gap, margin, label, head, between = 4, 16, 92, 34, 18
    blocks = -(-len(pairs) // columns)
    width = 2 * margin + label + min(columns, len(pairs)) * (side + gap) - gap
    height = 2 * margin + head + blocks * (2 * side + gap) + (blocks - 1) * between
    sheet = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(sheet)
    draw.text((margin, margin), title, fill="#1d1b18", font=ImageFont.load_default(18))
    for number, pair in enumerate(pairs):
        block, column = divmod(number, columns)
        top = margin + head + block * (2 * side + gap + between)
        if column == 0:
            for row, text in enumerate(("seen", "from brain\nactivity")):
                middle = top + row * (side + gap) + side / 2
                draw.multiline_text(
                    (margin, middle),
                    text,
                    fill="#5d5850",
                    font=ImageFont.load_default(15),
                    anchor="lm",
                )
        for row, picture in enumerate(pair):
            small = picture.convert("RGB").resize((side, side), Image.Resampling.LANCZOS)
            sheet.paste(small, (margin + label + column * (side + gap), top + row * (side + gap)))
    with replaced_file(path) as handle:
        sheet.save(handle, "PNG", optimize=True)
