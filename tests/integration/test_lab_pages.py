"""The pages of docs/data can be typed as they stand, on small folders of their forms."""

from __future__ import annotations

import json
from pathlib import Path
import re
import shlex

import nibabel
import numpy as np
import pytest
from unit.lab_folders import MAKERS, example
from unit.told_commands import ROOT

from braingen.cli import main

PAGES = sorted((ROOT / "docs" / "data").glob("*.md"))
SMALL = ["encoder.hidden_dim=16", "prior.depth=1", "training.num_epochs=1"]
SMALL += ["training.checkpoint=held_out", "data.holdout_share=0.3", "--tracker", "none"]
MORE = {
    "train": SMALL,
    "doctor": ["encoder.hidden_dim=16"],
    "reconstruct": ["generation.steps=1"],
    "evaluate": ["evaluation.bootstrap=20", "evaluation.retrieval_draws=2"],
    "interpret": ["interpret.points=2", "--parts", "whole", "generation.steps=1"],
}
"""What makes a command small, by its name."""


def lines(page: Path) -> list[list[str]]:
    """Indented lines of a page that are typed, in words."""
    text = page.read_text(encoding="utf-8")
    return [shlex.split(line) for line in re.findall(r"^ {4}((?:braingen|python) .*)$", text, re.M)]


def paths(page: Path) -> list[str]:
    """Paths that a page says are there."""
    return re.findall(r"^ {4}((?:MYSCANS|MYTABLE|RAW)/\S+)", page.read_text("utf-8"), re.M)


def test_every_page_has_a_folder_of_its_form():
    assert {page.stem for page in PAGES} == set(MAKERS)
    text = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")
    assert all(f"(data/{page.name})" in text for page in PAGES)


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_can_be_typed_as_it_stands(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    MAKERS[page.stem](tmp_path)
    for path in paths(page):
        assert Path(path).is_file(), f"{page.name} speaks of {path}"
    typed = lines(page)
    assert [words[1] for words in typed if words[0] == "braingen"][:1] == ["prepare"]
    for words in typed:
        if words[0] == "python":
            module = example(Path(words[1]).stem)
            assert module.run(Path(words[2]), *words[3:]) > 0
            continue
        small = [*MORE.get(words[1], []), "--device", "cpu"] if words[1] != "prepare" else []
        if words[1] != "prepare" and "nsd_subj01" in words:
            continue  # wants Stable Diffusion XL
        assert main([*words[1:], *small]) == 0, words
    check(page.stem)


def check(page: str) -> None:
    """What the page promises."""
    data = Path("data/NSD" if page == "nsd" else "data/mine")
    entry = json.loads((data / "prepared.json").read_text("utf-8"))["subjects"]["1"]
    if page == "nsd":
        assert entry["trials"] == 42
        return
    found = entry["reliability"]
    assert found["same_picture"] > 0.5 and abs(found["other_picture"]) < 0.2
    assert Path("runs/mine/image/finished").is_file()
    if page == "glmsingle":
        text = Path("runs/mine/report.html").read_text(encoding="utf-8")
        assert '<section id="reliability"' in text and "0.8" in text
    if page == "nifti":
        images = sorted(Path("runs/mine/reconstructions/brain").glob("*.png"))
        table = (data / "pictures.tsv").read_text("utf-8")
        listed = [line.split("\t") for line in table.splitlines()]
        tested = {int(row[0]) for row in listed[1:] if row[listed[0].index("side")] == "test"}
        assert {int(path.stem) for path in images} == tested != set()
        scores = json.loads(Path("runs/mine/scores.json").read_text("utf-8"))
        assert all(scores["pixcorr"][column] is not None for column in ("random", "oracle"))
        for name in ("scores.csv", "scores.md", "scores.tex", "pictures.png", "report.html"):
            assert Path("runs/mine", name).is_file()
        assert Path("runs/mine/scores_per_image.csv").is_file()
    if page == "arrays":
        other = json.loads(Path("data/table/prepared.json").read_text("utf-8"))
        assert other["subjects"]["1"]["reliability"] == found
    if page == "surfaces":
        for side in "LR":
            path = data / "volumes" / "subj01" / f"noise_ceiling_hemi-{side}.func.gii"
            assert nibabel.load(path).darrays[0].data.shape == (10242,)
        maps = list(Path("runs/mine/interpret").rglob("*_hemi-L.func.gii"))
        assert maps and all(np.isfinite(nibabel.load(p).darrays[0].data).any() for p in maps)
