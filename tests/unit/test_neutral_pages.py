"""Pages that ask people do not tell the answer: labels, names of files, order and markup are the
same whichever it is.
"""

from __future__ import annotations

import re

import pytest
from unit.told_commands import ROOT

PACKAGE = ROOT / "src" / "braingen"
PAGES = sorted(
    path
    for folder in ("human_eval/assets", "report/templates")
    for path in (PACKAGE / folder).rglob("*")
    if path.suffix in (".js", ".html", ".j2", ".md") and "jspsych" not in path.parts
)
AMBIGUOUS = re.compile(
    r"\bthe right (one|picture|image|drawing|side|answer)\b|\bright picture\b|\b(in)?correct"
    r" (one|picture|image)\b",
    re.I,
)


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_no_page_calls_a_picture_the_right_one(path):
    found = [
        line.strip()[:120]
        for line in path.read_text(encoding="utf-8").splitlines()
        if AMBIGUOUS.search(line)
    ]
    assert not found


def test_labels_are_a_and_b():
    text = (PACKAGE / "human_eval/assets/study.js").read_text(encoding="utf-8")
    assert 'k ? "image B, on the right" : "image A, on the left"' in text
    game = (PACKAGE / "report/templates/game.html.j2").read_text(encoding="utf-8")
    assert re.findall(r'class="answer" aria-label="([^"]*)"', game) == [
        "Image A was seen",
        "Image B was seen",
    ]


def test_the_markup_of_a_question_knows_nothing_of_the_answer():
    text = (PACKAGE / "human_eval/assets/study.js").read_text(encoding="utf-8")
    question = text[text.index("const question =") : text.index("const timeline =")]
    assert set(re.findall(r"trial\.(\w+)", question)) <= {"task", "cue"}
    assert set(re.findall(r"picture\(([\w\[\].]+),", question)) == {
        "trial.cue",
        "pictures[0]",
        "pictures[1]",
        "choice",
    }
    assert "[...used].sort()" in text  # pictures are loaded in the order of their random names
