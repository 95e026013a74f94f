"""`braingen quickstart`: what is shipped for it is whole, and the page shows it honestly."""

from __future__ import annotations

import html.parser
from pathlib import Path

import numpy as np
from PIL import Image
import pytest
import torch

from braingen.cli import main
from braingen.config import Config
from braingen.demo import quickstart as stage
from braingen.demo.quickstart import SHIPPED, load_shipped, load_shipped_decoder
from braingen.generation.pipeline import BrainDecoder
from braingen.report.quickstart import ImagePair, render
from braingen.runtime.errors import UserError


class Page(html.parser.HTMLParser):
    """Pictures of a page, and what it would fetch."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.pictures: list[dict[str, str | None]] = []
        self.fetched: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        if tag == "img":
            self.pictures.append(given)
        self.fetched += [
            value
            for name in ("src", "href")
            if (value := given.get(name)) and not value.startswith(("data:", "#"))
        ]


@pytest.fixture(scope="module")
def decoder() -> BrainDecoder:
    return load_shipped_decoder()


def test_what_is_shipped_is_a_dozen_brains_with_pictures_captions_and_scores():
    shipped = load_shipped()
    assert (
        len(shipped.ids)
        == len(set(shipped.ids))
        == len(shipped.seen)
        == len(shipped.captions)
        == 12
    )
    assert shipped.voxels_BRV.shape == (12, 3, 2000) and shipped.voxels_BRV.dtype == torch.float32
    assert all(picture.size == (128, 128) for picture in shipped.seen) and all(shipped.captions)
    for name in ("retrieval_brain_to_image", "two_way_clip", "object_accuracy", "clip_cos"):
        score = shipped.scores[name]
        assert score["low"] <= score["value"] <= score["high"] and score["n"] == 120
    assert sum(file.stat().st_size for file in SHIPPED.rglob("*") if file.is_file()) < 10e6
    assert (SHIPPED / "README.md").is_file()


@pytest.mark.slow
def test_shipped_brains_are_decoded_nearer_to_what_was_seen_than_to_the_others(decoder):
    """Identification among the twelve, by the embedding of the seen pictures under the
    frozen CLIP.
    """
    from braingen.config.shipped import TINY
    from braingen.targets.clip_image import CLIPImageEncoder

    shipped = load_shipped()
    clip = CLIPImageEncoder.from_pretrained(str(TINY), dtype=torch.float32)
    pixels = np.stack([np.asarray(picture) for picture in shipped.seen])
    true_BTD = clip(torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255).target_BTD
    read = decoder.decode_embeddings(shipped.voxels_BRV, stage.SUBJECT, shipped.ids)
    mean_TD = decoder.brain_image.mean_TD
    rows = [
        torch.nn.functional.normalize((x - mean_TD).flatten(1), dim=1)
        for x in (decoder.unrouted(read).image_BTD, true_BTD)
    ]
    assert ((rows[0] @ rows[1].T).argmax(1) == torch.arange(12)).sum() >= 10


@pytest.mark.slow
def test_the_command_writes_one_page_of_seen_against_decoded(
    monkeypatch, tmp_path, decoder, capsys
):
    monkeypatch.setattr(stage, "load_shipped_decoder", lambda scheduler: decoder)
    monkeypatch.setattr(
        stage.webbrowser, "open", lambda _: pytest.fail("nobody is there to see a browser")
    )
    assert (
        main(["quickstart", "--output", str(tmp_path), "quickstart.steps=1", "run.device=cpu"]) == 0
    )
    page = tmp_path / "index.html"
    assert capsys.readouterr().out.rstrip().endswith(str(page))
    text = page.read_text(encoding="utf-8")
    found = Page(text)
    assert len(found.pictures) == 24 and not found.fetched
    assert all(picture["alt"] for picture in found.pictures)
    captions = load_shipped().captions
    assert [picture["alt"] for picture in found.pictures[::2]] == [
        f"Seen: {caption}" for caption in captions
    ]
    assert "simulated" in text.lower() and "None of them was used in" in text


@pytest.mark.parametrize(("terminal", "environment", "asked", "opens"), [
    (True, {"DISPLAY": ":0"}, True, True),
    (True, {"DISPLAY": ":0"}, False, False),
    (False, {"DISPLAY": ":0"}, True, False),
    (True, {}, True, False),
    (True, {"DISPLAY": ":0", "CI": "true"}, True, False),
], ids=["a person at a desktop", "--no-open", "output is piped", "no desktop", "CI"])  # fmt: skip
@pytest.mark.slow
def test_a_browser_is_opened_only_for_a_person_at_a_desktop(
    monkeypatch, tmp_path, decoder, terminal, environment, asked, opens
):
    opened: list[str] = []
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "CI"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(stage.sys, "platform", "linux")
    monkeypatch.setattr(stage.sys.stdout, "isatty", lambda: terminal, raising=False)
    monkeypatch.setattr(stage.webbrowser, "open", opened.append)
    monkeypatch.setattr(stage, "load_shipped_decoder", lambda scheduler: decoder)
    monkeypatch.setattr(BrainDecoder, "generate", lambda *_, **__: torch.zeros(12, 3, 8, 8))
    config = Config().model_copy(
        update={
            "quickstart": Config().quickstart.model_copy(update={"output": tmp_path, "open": asked})
        }
    )
    page = stage.quickstart(config)
    assert opened == ([page.as_uri()] if opens else [])


def test_a_package_that_is_not_whole_is_told(tmp_path):
    with pytest.raises(UserError, match="install it again"):
        load_shipped(tmp_path)


def test_captions_are_text_and_not_markup():
    picture = Image.new("RGB", (8, 8))
    text = render([ImagePair(1, picture, picture, "<b onload='x'>\"bold\"</b>")], {})
    assert "<b " not in text and Page(text).pictures[0]["alt"] == "Seen: <b onload='x'>\"bold\"</b>"


def test_everything_shipped_is_in_the_wheel():
    """Files are found by the patterns of pyproject's package-data."""
    import fnmatch

    try:
        import tomllib
    except ModuleNotFoundError:
        pytest.skip("tomllib is in Python 3.11 and later")
    root = Path(stage.__file__).parents[1]
    settings = tomllib.loads((root.parents[1] / "pyproject.toml").read_text())
    patterns = settings["tool"]["setuptools"]["package-data"]["braingen"]
    files = [file.relative_to(root).as_posix() for file in SHIPPED.rglob("*") if file.is_file()]
    assert len(files) >= 18
    assert [
        file
        for file in files
        if not any(fnmatch.fnmatch(file, pattern.replace("**/", "")) for pattern in patterns)
    ] == []
