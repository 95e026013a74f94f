"""Stimuli of the simulation: scenes of a large object on a background, with captions.

A scene is a description (object, colour, position, background) that is rendered to an image, so the
truth of everything that a simulated brain encodes is known. Objects are glyphs of Noto Color Emoji
(SIL Open Font License; the shipped subset is in ``assets/font`` beside its licence).
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

MASTER_SIZE = 425
"""Side of the rendered image in pixels, as NSD's own stimuli (``nsd_stimuli.hdf5``)."""
STIMULUS_SIZE = 224
"""Side of the stored image (``coco_images_224_float16.hdf5``)."""
GLYPH_SIZE = 109
"""The only size of Noto's bitmap glyphs."""
FONT = Path(__file__).parent / "assets" / "font" / "NotoColorEmoji-subset.ttf"
SECOND_OBJECT_SHARE = 0.08
"""Share of scenes with a second, smaller object; "the object" of a scene is the larger one."""


class ObjectClass(NamedTuple):
    """An object class of the scenes."""

    name: str
    glyph: str
    supercategory: str
    """One of COCO's twelve."""
    tinted: bool
    """Whether it comes in all of COLOURS; the others have one fixed colour."""


OBJECTS: tuple[ObjectClass, ...] = (
    ObjectClass("boy", "\U0001f466", "person", False),
    ObjectClass("dancer", "\U0001f483", "person", False),
    ObjectClass("car", "\U0001f697", "vehicle", True),
    ObjectClass("sailboat", "\u26f5", "vehicle", True),
    ObjectClass("stop sign", "\U0001f6d1", "outdoor", False),
    ObjectClass("traffic light", "\U0001f6a6", "outdoor", False),
    ObjectClass("elephant", "\U0001f418", "animal", False),
    ObjectClass("dog", "\U0001f436", "animal", False),
    ObjectClass("handbag", "\U0001f45c", "accessory", True),
    ObjectClass("umbrella", "\u2602", "accessory", True),
    ObjectClass("soccer ball", "\u26bd", "sports", False),
    ObjectClass("tennis racket", "\U0001f3be", "sports", False),
    ObjectClass("wine glass", "\U0001f377", "kitchen", False),
    ObjectClass("cup", "\u2615", "kitchen", False),
    ObjectClass("pizza", "\U0001f355", "food", False),
    ObjectClass("banana", "\U0001f34c", "food", False),
    ObjectClass("couch", "\U0001f6cb", "furniture", True),
    ObjectClass("chair", "\U0001fa91", "furniture", True),
    ObjectClass("laptop", "\U0001f4bb", "electronic", False),
    ObjectClass("television", "\U0001f4fa", "electronic", False),
    ObjectClass("kettle", "\U0001fad6", "appliance", True),
    ObjectClass("light bulb", "\U0001f4a1", "appliance", False),
    ObjectClass("book", "\U0001f4d5", "indoor", True),
    ObjectClass("clock", "\u23f0", "indoor", True),
)
SUPERCATEGORIES: tuple[str, ...] = tuple(dict.fromkeys(thing.supercategory for thing in OBJECTS))
COLOURS: dict[str, float] = {
    "red": 0.0,
    "yellow": 0.14,
    "green": 0.34,
    "blue": 0.59,
    "purple": 0.79,
}
"""Name and hue (0-1) of the colours an object can be tinted with."""
COLOUR_NAMES: tuple[str, ...] = tuple(COLOURS)
NO_COLOUR = -1
"""Colour index of an object with a fixed colour."""
BACKGROUNDS: tuple[str, ...] = (
    "meadow",
    "forest",
    "beach",
    "sea",
    "desert",
    "snow",
    "street",
    "room",
    "night",
    "sunset",
)
POSITIONS: tuple[str, ...] = ("left", "middle", "right")


class Placement(NamedTuple):
    """One object in a scene."""

    object: int
    """Index into OBJECTS."""
    colour: int
    """Index into COLOUR_NAMES, or NO_COLOUR."""
    x: float
    """Centre, as a share of the image's width from the left."""
    y: float
    """Centre, as a share of the image's height from the top."""
    size: float
    """Width of the glyph's box as a share of the image's width."""
    mirrored: bool
    hue_shift: float
    """Small deviation from the named hue (0-1 scale)."""


class Scene(NamedTuple):
    """Content of an image; the larger object comes first."""

    background: int
    """Index into BACKGROUNDS."""
    horizon: float
    """Height of the horizon, as a share of the image's height from the top."""
    hue_shift: float
    """Small deviation of the background's hue (0-1 scale)."""
    texture_seed: int
    objects: tuple[Placement, ...]

    @property
    def position(self) -> int:
        """Position of the object: index into POSITIONS."""
        x = self.objects[0].x
        return 0 if x < 0.43 else (2 if x > 0.57 else 1)


def random_scene(rng: np.random.Generator) -> Scene:
    """Sample a scene; objects, colours, positions and backgrounds are uniform and independent."""
    size = rng.uniform(0.52, 0.72)
    place = int(rng.integers(3))
    margin = rng.uniform(0.0, 0.04)
    x = (size / 2 - 0.02 + margin, 0.5 + rng.uniform(-0.03, 0.03), 1.02 - size / 2 - margin)[place]
    main = _placement(rng, x, rng.uniform(0.5, 0.58), size)
    objects = [main]
    if rng.random() < SECOND_OBJECT_SHARE and place != 1:
        small = rng.uniform(0.22, 0.28)
        objects.append(
            _placement(rng, 0.86 if place == 0 else 0.14, rng.uniform(0.62, 0.78), small)
        )
    return Scene(
        background=int(rng.integers(len(BACKGROUNDS))),
        horizon=float(rng.uniform(0.4, 0.58)),
        hue_shift=float(rng.uniform(-0.02, 0.02)),
        texture_seed=int(rng.integers(2**31)),
        objects=tuple(objects),
    )


def _placement(rng: np.random.Generator, x: float, y: float, size: float) -> Placement:
    kind = int(rng.integers(len(OBJECTS)))
    colour = int(rng.integers(len(COLOURS)))
    return Placement(
        object=kind,
        colour=colour if OBJECTS[kind].tinted else NO_COLOUR,
        x=float(x),
        y=float(y),
        size=float(size),
        mirrored=bool(rng.random() < 0.5),
        hue_shift=float(rng.uniform(-0.015, 0.015)),
    )


def render(scene: Scene) -> np.ndarray:
    """Render a scene.

    Returns
    -------
    image_HW3 : np.ndarray
        Uint8 array, MASTER_SIZE x MASTER_SIZE x 3 (RGB).
    """
    picture = Image.fromarray(_background(scene))
    for thing in reversed(scene.objects):  # the larger object last, in front
        _draw_object(picture, thing)
    return np.asarray(picture)


def stimulus(image_HW3: np.ndarray) -> np.ndarray:
    """Convert a rendered image to the stored form: 3 x 224 x 224, float16 in [0, 1]."""
    small = Image.fromarray(image_HW3).resize(
        (STIMULUS_SIZE, STIMULUS_SIZE), Image.Resampling.BICUBIC
    )
    return (np.asarray(small, dtype=np.float32).transpose(2, 0, 1) / 255).astype(np.float16)


def captions(scene: Scene, rng: np.random.Generator) -> list[str]:
    """Write five captions of a scene, from varied templates."""
    main = scene.objects[0]
    noun = OBJECTS[main.object].name
    thing = noun if main.colour == NO_COLOUR else f"{COLOUR_NAMES[main.colour]} {noun}"
    side = ("on the left", "in the middle", "on the right")[scene.position]
    ground = BACKGROUNDS[scene.background]
    where = {
        "meadow": "on a meadow",
        "forest": "in a forest",
        "beach": "on a beach",
        "sea": "at sea",
        "desert": "in the desert",
        "snow": "in the snow",
        "street": "in a street",
        "room": "in a room",
        "night": "at night",
        "sunset": "at sunset",
    }[ground]
    article = _article(thing)
    whole = f"a large {thing}" if main.size > 0.62 else f"{article} {thing}"
    templates = [
        f"{article} {thing} {where}",
        f"photo of {article} {thing} {where}, {side}",
        f"{article} {thing} {side}, {where}",
        f"there is {article} {thing} {side}",
        f"a picture of {whole} {where}",
        f"{ground} scene with {article} {thing} {side}",
        f"{_article(noun)} {noun}, {where}",
        f"{whole} {side} {where}",
    ]
    if len(scene.objects) > 1:
        name = OBJECTS[scene.objects[1].object].name
        templates[0] = f"{article} {thing} and {_article(name)} {name} {where}"
    order = rng.permutation(len(templates))[:5]
    return [templates[i] for i in order]


def _article(word: str) -> str:
    return "an" if word[0] in "aeiou" else "a"


# --- rendering ------------------------------------------------------------------------------------


@lru_cache(maxsize=1)
def _font() -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(str(FONT), GLYPH_SIZE)


@lru_cache(maxsize=256)
def _glyph(kind: int, colour: int) -> Image.Image:
    """Return the tinted glyph of an object class, cropped; RGBA."""
    canvas = Image.new("RGBA", (136, 128))
    ImageDraw.Draw(canvas).text((0, 0), OBJECTS[kind].glyph, font=_font(), embedded_color=True)
    box = canvas.getbbox()
    if box is None:
        raise RuntimeError(
            f"the shipped font {FONT.name} has no glyph for {OBJECTS[kind].name}; reinstall"
            " braingen"
        )
    canvas = canvas.crop(box)
    return canvas if colour == NO_COLOUR else _tint(canvas, COLOURS[COLOUR_NAMES[colour]])


def _tint(glyph: Image.Image, hue: float) -> Image.Image:
    """Change the hue of a glyph's coloured parts; greys, whites and blacks are kept."""
    alpha = glyph.getchannel("A")
    hsv = np.array(glyph.convert("RGB").convert("HSV"))
    coloured = hsv[..., 1] > 70
    hsv[..., 0] = np.where(coloured, np.uint8(round(hue * 255) % 256), hsv[..., 0])
    hsv[..., 1] = np.where(coloured, np.maximum(hsv[..., 1], 190), hsv[..., 1])
    hsv[..., 2] = np.where(
        coloured,
        np.clip(hsv[..., 2].astype(int) + (30 if 0.1 < hue < 0.4 else 0), 0, 255),
        hsv[..., 2],
    )
    tinted = Image.fromarray(hsv, "HSV").convert("RGB")
    tinted.putalpha(alpha)
    return tinted


def _draw_object(picture: Image.Image, thing: Placement) -> None:
    side = picture.width
    glyph = _placed_glyph(thing)
    width, height = glyph.size
    if thing.hue_shift and thing.colour != NO_COLOUR:
        alpha = glyph.getchannel("A")
        hsv = np.array(glyph.convert("RGB").convert("HSV"))
        hsv[..., 0] = (hsv[..., 0].astype(int) + round(thing.hue_shift * 255)) % 256
        glyph = Image.fromarray(hsv, "HSV").convert("RGB")
        glyph.putalpha(alpha)
    left, top = round(thing.x * side - width / 2), round(thing.y * side - height / 2)
    shadow = Image.new("L", (width + 40, 60), 0)
    ImageDraw.Draw(shadow).ellipse((24, 20, width + 16, 40), fill=110)
    shadow = shadow.filter(ImageFilter.GaussianBlur(7))
    picture.paste((0, 0, 0), (left - 20, top + height - 36), shadow)
    picture.paste(glyph, (left, top), glyph)


_SKY_AND_GROUND: dict[
    str,
    tuple[tuple[int, int, int], tuple[int, int, int], tuple[int, int, int], tuple[int, int, int]],
] = {
    # sky at the top, sky at the horizon, ground at the horizon, ground at the bottom
    "meadow": ((110, 180, 245), (200, 230, 250), (120, 190, 70), (60, 140, 40)),
    "forest": ((30, 80, 45), (60, 120, 60), (70, 75, 35), (50, 50, 25)),
    "beach": ((90, 190, 240), (190, 235, 245), (245, 225, 165), (235, 205, 130)),
    "sea": ((150, 200, 230), (215, 235, 240), (20, 110, 160), (5, 60, 115)),
    "desert": ((240, 200, 140), (250, 225, 180), (220, 140, 60), (190, 105, 40)),
    "snow": ((190, 205, 225), (225, 232, 240), (245, 248, 252), (225, 235, 245)),
    "street": ((165, 165, 170), (195, 195, 195), (90, 90, 95), (60, 60, 65)),
    "room": ((225, 195, 205), (240, 215, 220), (150, 100, 65), (120, 75, 45)),
    "night": ((8, 8, 35), (25, 25, 70), (15, 20, 35), (5, 8, 18)),
    "sunset": ((120, 50, 120), (255, 150, 70), (110, 50, 70), (60, 25, 50)),
}


def object_mask(scene: Scene, side: int) -> np.ndarray:
    """Mask of the larger object: bool, side x side, cells it covers at least half."""
    thing = scene.objects[0]
    canvas = Image.new("L", (MASTER_SIZE, MASTER_SIZE))
    glyph = _placed_glyph(thing)
    corner = (
        round(thing.x * MASTER_SIZE - glyph.width / 2),
        round(thing.y * MASTER_SIZE - glyph.height / 2),
    )
    canvas.paste(255, corner, glyph.getchannel("A"))
    return np.asarray(canvas.resize((side, side), Image.Resampling.BOX)) >= 128


def _placed_glyph(thing: Placement) -> Image.Image:
    """Return an object's glyph at its size in the rendered image, mirrored if needed; RGBA."""
    glyph = _glyph(thing.object, thing.colour)
    scale = thing.size * MASTER_SIZE / max(glyph.size)
    width, height = (max(1, round(edge * scale)) for edge in glyph.size)
    glyph = glyph.resize((width, height), Image.Resampling.BICUBIC)
    return glyph.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if thing.mirrored else glyph


def _background(scene: Scene) -> np.ndarray:
    """Render sky and ground with a smooth texture: uint8, MASTER_SIZE x MASTER_SIZE x 3."""
    side, name = MASTER_SIZE, BACKGROUNDS[scene.background]
    rng = np.random.default_rng(scene.texture_seed)
    sky_top, sky_low, ground_far, ground_near = (
        np.array(colour, dtype=np.float32) for colour in _SKY_AND_GROUND[name]
    )
    line = round(scene.horizon * side)
    rows = np.empty((side, 3), dtype=np.float32)
    rows[:line] = sky_top + (sky_low - sky_top) * np.linspace(0, 1, line, dtype=np.float32)[:, None]
    rows[line:] = (
        ground_far
        + (ground_near - ground_far) * np.linspace(0, 1, side - line, dtype=np.float32)[:, None]
    )
    coarse = rng.normal(0, 5, (9, 9)).astype(np.float32)
    texture = np.asarray(
        Image.fromarray(coarse, "F").resize((side, side), Image.Resampling.BICUBIC)
    )
    canvas = np.clip(
        np.broadcast_to(rows[:, None, :], (side, side, 3)) + texture[..., None], 0, 255
    ).astype(np.uint8)
    hsv = np.array(Image.fromarray(canvas).convert("HSV"))
    hsv[..., 0] = (hsv[..., 0].astype(int) + round(scene.hue_shift * 255)) % 256
    picture = Image.fromarray(hsv, "HSV").convert("RGB")
    _landmarks(ImageDraw.Draw(picture), name, line, side, rng)
    return np.asarray(picture)


def _landmarks(
    draw: ImageDraw.ImageDraw, name: str, line: int, side: int, rng: np.random.Generator
) -> None:
    """Draw a few plain shapes that distinguish the backgrounds."""
    if name == "forest":
        for x in np.linspace(20, side - 20, 6) + rng.uniform(-18, 18, 6):
            draw.rectangle((x - 9, 0, x + 9, line + 12), fill=(45, 32, 20))
    elif name == "beach":
        draw.rectangle((0, line - 45, side, line), fill=(40, 150, 190))
    elif name == "sea":
        for y in range(line + 18, side, 34):
            start = rng.uniform(0, 60)
            for x in np.arange(start, side, 95):
                draw.line((x, y, x + 40, y), fill=(120, 180, 210), width=4)
    elif name == "desert":
        top = rng.uniform(0.2, 0.8) * side
        draw.polygon(((top - 190, line), (top, line - 55), (top + 190, line)), fill=(205, 130, 60))
    elif name == "snow":
        for x, y in rng.uniform(0, side, (40, 2)):
            draw.ellipse((x - 4, y - 4, x + 4, y + 4), fill=(255, 255, 255))
    elif name == "street":
        for x in np.arange(rng.uniform(-60, 0), side, 90):
            draw.rectangle((x, line - rng.uniform(70, 150), x + 78, line), fill=(125, 110, 105))
        for x in range(20, side, 110):
            draw.rectangle((x, side - 60, x + 60, side - 50), fill=(230, 220, 120))
    elif name == "room":
        x = rng.uniform(0.1, 0.7) * side
        draw.rectangle((x, 35, x + 95, 125), fill=(190, 225, 245), outline=(255, 255, 255), width=6)
    elif name == "night":
        for x, y in rng.uniform(0, 1, (35, 2)) * (side, line):
            draw.ellipse((x - 2, y - 2, x + 2, y + 2), fill=(240, 240, 220))
        x = rng.uniform(0.15, 0.85) * side
        draw.ellipse((x - 26, 24, x + 26, 76), fill=(245, 240, 200))
    elif name == "sunset":
        x = rng.uniform(0.2, 0.8) * side
        draw.pieslice((x - 60, line - 60, x + 60, line + 60), 180, 360, fill=(255, 220, 120))
