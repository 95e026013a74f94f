"""The study site: a folder of static files, and the same study in one file for phones."""

from __future__ import annotations

import base64
from collections.abc import Mapping
import hashlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from braingen.human_eval.plan import Plan, plan_as_json
from braingen.runtime.errors import UserError
from braingen.runtime.files import replaced_folder

ASSETS = Path(__file__).parent / "assets"
SITE, PAGE, ONE_FILE = "site", "index.html", "study-in-one-file.html"
LIBRARY = (
    "jspsych/jspsych-8.3.0.min.js",
    "jspsych/plugin-html-button-response-2.1.0.min.js",
    "jspsych/plugin-preload-2.1.0.min.js",
)
_STYLE, _SCRIPTS, _PLAN = "study.css", ("session.js", "study.js"), "plan.js"
QUALITY = 95
"""WebP quality without visible loss."""


def encode(pixels_3HW: np.ndarray, side: int) -> bytes:
    """Encode an image as WebP; all images of a study have the same size, which reveals nothing."""
    picture = Image.fromarray(np.round(pixels_3HW.transpose(1, 2, 0) * 255).astype(np.uint8))
    if picture.size != (side, side):
        picture = picture.resize((side, side), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.save(buffer, "WEBP", quality=QUALITY, method=4)
    return buffer.getvalue()


def digest(content: bytes) -> str:
    """Hash of a file."""
    return hashlib.sha256(content).hexdigest()[:16]


def _script_text(value: Any) -> str:
    """JSON that is safe inside a script element."""
    return (
        json.dumps(value, ensure_ascii=False)
        .replace("<", "\\u003c")
        .replace("\u2028", "\\u2028")
        .replace("\u2029", "\\u2029")
    )


def _page(plan: Plan, head: str, body: str) -> str:
    template = (ASSETS / PAGE).read_text(encoding="utf-8")
    draft = (
        '<p class="draft">Draft with an incomplete consent text: not for participants.</p>'
        if plan.draft
        else ""
    )
    return (
        template.replace("<!-- head -->", head)
        .replace("<!-- draft -->", draft)
        .replace("<!-- scripts -->", body)
    )


def write_site(
    folder: Path, plan: Plan, pictures: Mapping[str, bytes], consent_html: str
) -> dict[str, str]:
    """Write the site; an earlier one is replaced completely.

    Parameters
    ----------
    folder : Path
        Of the site.
    plan : Plan
        The study.
    pictures : Mapping[str, bytes]
        Name -> WebP file.
    consent_html : str
        The completed consent text.

    Returns
    -------
    hashes : dict[str, str]
        File of the site -> hash.
    """
    study = {**plan_as_json(plan), "consent": consent_html}
    names = [*LIBRARY, *_SCRIPTS]
    scripts = {name: (ASSETS / name).read_text(encoding="utf-8") for name in names}
    style = (ASSETS / _STYLE).read_text(encoding="utf-8")
    linked = "\n".join(f'<script src="{name}"></script>' for name in [*LIBRARY, _PLAN, *_SCRIPTS])
    inside = {
        name: "data:image/webp;base64," + base64.b64encode(content).decode()
        for name, content in pictures.items()
    }
    whole = [f"<script>{scripts[name]}</script>" for name in LIBRARY]
    whole.append(
        f"<script>window.STUDY = {_script_text(study)};\nwindow.STUDY_PICTURES ="
        f" {_script_text(inside)};</script>"
    )
    whole += [f"<script>{scripts[name]}</script>" for name in _SCRIPTS]
    licences = "jspsych/LICENSES.txt"
    files: dict[str, bytes] = {name: text.encode() for name, text in scripts.items()}
    files |= {_STYLE: style.encode(), licences: (ASSETS / licences).read_bytes()}
    files[_PLAN] = f"window.STUDY = {_script_text(study)};\n".encode()
    files[PAGE] = _page(plan, f'<link rel="stylesheet" href="{_STYLE}">', linked).encode()
    licence = f"<!--\n{(ASSETS / licences).read_text(encoding='utf-8')}-->"
    files[ONE_FILE] = _page(plan, f"{licence}\n<style>\n{style}</style>", "\n".join(whole)).encode()
    files |= {f"pictures/{name}.webp": content for name, content in pictures.items()}
    with replaced_folder(folder) as temporary:
        for name, content in files.items():
            path = temporary / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
    return {name: digest(content) for name, content in files.items()}


def check_site(folder: Path, hashes: Mapping[str, str]) -> list[str]:
    """Files of a site that are missing, changed or not part of the study: one sentence each."""
    if not folder.is_dir():
        raise UserError(f"{folder} is missing; build the study again: `braingen human-eval build`.")
    problems = []
    for name, known in hashes.items():
        path = folder / name
        if not path.is_file():
            problems.append(f"{name} is missing")
        elif digest(path.read_bytes()) != known:
            problems.append(f"{name} was changed since the study was built")
    there = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    return problems + [
        f"{name} does not belong to the study" for name in sorted(there - set(hashes))
    ]
