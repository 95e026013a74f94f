"""A study as people meet it: opened from the disk in a browser, answered with keys, mouse and
fingers, saved, analysed, in the report.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
import csv
import json
from pathlib import Path
import time

from integration.chromium import Page, chromium_page, find_chromium
import pytest
from unit.fake_report_inputs import write_fake_run

from braingen.config import Config
from braingen.config.evaluation import HumanEvalConfig
from braingen.human_eval.answers import COLUMNS
from braingen.human_eval.consent import GAP
from braingen.human_eval.plan import Plan, plan_from_json
from braingen.human_eval.session import ShownTrial, session
from braingen.human_eval.site import ONE_FILE
from braingen.human_eval.study import study
from braingen.report.write import report

pytestmark = pytest.mark.skipif(
    find_chromium() is None,
    reason="no Chromium or Chrome on this machine (apt-get install chromium)",
)

BEGIN = "!!document.querySelector('.telling [data-choice]')"
ASKED = "!!document.querySelector('.asking [data-choice]:not([disabled])')"
SAVE = "!!document.querySelector('#save')"
ANSWERED = "document.querySelector('.where').textContent.split(' ')[0]"


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    """A run with a study of four images and two methods, its consent text filled in."""
    config = write_fake_run(tmp_path_factory.mktemp("study"), 8, epochs=2)
    (config.run.folder / "study.json").unlink()
    other = str(config.run.folder / "reconstructions" / "random")
    config = config.model_copy(
        update={"human_eval": HumanEvalConfig(study_images=4, checks=2, method_b=other, draft=True)}
    )
    study(config, "build")
    text = config.run.folder / "study" / "consent.md"
    text.write_text(GAP.sub("the Institute for Testing", text.read_text()))
    config = config.model_copy(
        update={"human_eval": config.human_eval.model_copy(update={"draft": False})}
    )
    study(config, "build")
    return config


@pytest.fixture(scope="module")
def browser() -> Iterator[Page]:
    with chromium_page() as page:
        yield page


def plan_of(config: Config) -> Plan:
    return plan_from_json(json.loads((config.run.folder / "study" / "plan.json").read_text()))


def wait_for(page: Page, expression: str, seconds: float = 60.0) -> None:
    until = time.monotonic() + seconds
    while not page.evaluate(expression):
        assert time.monotonic() < until, f"waited in vain for {expression}"
        time.sleep(0.02)


def press(page: Page, key: str) -> None:
    code = {"ArrowLeft": 37, "ArrowRight": 39, "Enter": 13}.get(key, ord(key[0]))
    text = {"text": "\r"} if key == "Enter" else {"text": key} if len(key) == 1 else {}
    page.call(
        "Input.dispatchKeyEvent",
        type="keyDown",
        key=key,
        code=key,
        windowsVirtualKeyCode=code,
        **text,
    )
    page.call("Input.dispatchKeyEvent", type="keyUp", key=key, code=key, windowsVirtualKeyCode=code)


def middle(page: Page, selector: str) -> tuple[float, float]:
    box = page.evaluate(
        f"(() => {{ const e = document.querySelector('{selector}'); e.scrollIntoView({{block:"
        " 'nearest'}); const b = e.getBoundingClientRect(); return [b.x + b.width / 2, b.y +"
        " b.height / 2]; })()"
    )
    return box[0], box[1]


def click(page: Page, selector: str) -> None:
    x, y = middle(page, selector)
    for kind in ("mousePressed", "mouseReleased"):
        page.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)


def touch(page: Page, selector: str) -> None:
    x, y = middle(page, selector)
    page.call("Input.dispatchTouchEvent", type="touchStart", touchPoints=[{"x": x, "y": y}])
    page.call("Input.dispatchTouchEvent", type="touchEnd", touchPoints=[])


def enter(page: Page, code: str, act: Callable[[Page, str], None]) -> None:
    """From consent to the first question."""
    act(page, "#agree")
    wait_for(page, "!!document.querySelector('#code')")
    act(page, "#code")
    page.call("Input.insertText", text=code)
    act(page, "form button")


def answer_of(shown: ShownTrial, plan: Plan) -> str:
    """What somebody answers who sees everything, likes the first method, and rates it 6 and the
    other 2.
    """
    trial = shown.trial
    if trial.task == "similarity":
        return {"high": "7", "low": "1"}.get(trial.right) or (
            "6" if trial.method == plan.methods[0] else "2"
        )
    return "left" if shown.left == (trial.right or plan.methods[0]) else "right"


def button(answer: str) -> str:
    sides = {"left": 0, "right": 1}
    choice = sides[answer] if answer in sides else int(answer) - 1
    return f'.asking [data-choice="{choice}"]'


def results(folder: Path) -> list[dict[str, str]]:
    until = time.monotonic() + 60
    while not (files := list(folder.glob("*.csv"))):
        assert time.monotonic() < until, "no file was saved"
        time.sleep(0.05)
    with open(files[0], newline="", encoding="utf-8") as handle:
        return list(csv.DictReader(handle))


def test_a_study_is_taken_saved_analysed_and_in_the_report(
    browser: Page, config: Config, tmp_path: Path
) -> None:
    folder, plan = config.run.folder / "study", plan_of(config)
    expected = session(plan, "P-1")
    browser.screen(1280, 800)
    browser.open(folder / "site" / "index.html")
    assert "the Institute for Testing" in browser.evaluate("document.body.innerText")
    enter(browser, "P-1", click)
    for number, shown in enumerate(expected):
        wait_for(browser, f"{BEGIN} || {ASKED}")
        if browser.evaluate(BEGIN):
            press(browser, "Enter")
        if number == 5:  # somebody closes the page, and comes back
            browser.attach()
            browser.screen(1280, 800)
            browser.open(folder / "site" / "index.html")
            enter(browser, "P-1", click)
            wait_for(browser, "!!document.querySelector('#on')")
            assert "5 of 22 questions" in browser.evaluate("document.body.innerText")
            click(browser, "#on")
            wait_for(browser, BEGIN)
            press(browser, "Enter")
        wait_for(browser, ASKED)
        assert browser.evaluate(ANSWERED) == str(number)
        pictures = browser.evaluate(
            "[...document.querySelectorAll('.option img, .pair img')].map((i) =>"
            " i.getAttribute('src'))"
        )
        places = [1, 0] if shown.flipped else [0, 1]
        assert pictures == [f"pictures/{shown.trial.options[place]}.webp" for place in places]
        broken = "[...document.images].filter((i) => !i.complete || i.naturalWidth === 0).length"
        assert browser.evaluate(broken) == 0
        answer = answer_of(shown, plan)
        if number % 2:
            click(browser, button(answer))
        else:
            press(browser, {"left": "ArrowLeft", "right": "ArrowRight"}.get(answer, answer))
        wait_for(
            browser,
            f"{SAVE} || {ANSWERED} === '{number + 1}' || !document.querySelector('.asking"
            " [data-choice]')",
        )
    wait_for(browser, SAVE)
    assert browser.requests() == [] and browser.complaints() == []
    browser.call(
        "Browser.setDownloadBehavior", behavior="allow", downloadPath=str(folder / "results")
    )
    click(browser, "#save")
    rows = results(folder / "results")
    assert tuple(rows[0]) == COLUMNS and len(rows) == len(expected) == 22
    assert [row["trial"] for row in rows] == [shown.trial.id for shown in expected]
    assert {row["input"] for row in rows} == {"key", "mouse"}
    assert all(
        row["rater"] == "P-1"
        and row["simulated"] == "0"
        and row["draft"] == "0"
        and int(row["rt_ms"]) > 200
        for row in rows
    )

    study(
        config, "check"
    )  # every row with its checksum, made in the browser, is what Python expects
    analysis = json.loads(study(config, "analyse").read_text())
    found = {(each["task"], each["method"]): each for each in analysis["findings"]}
    assert analysis["who"] == "human" and not analysis["draft"]
    assert (
        found["identification", "brain"]["value"] == 1
        and found["preference", "brain"]["value"] == 1
    )
    assert found["preference", "brain"]["low"] == pytest.approx(
        0.025 ** (1 / 4)
    )  # Clopper and Pearson, 4 of 4
    assert (
        found["similarity", "brain"]["value"] == 6 and found["similarity", "random"]["value"] == 2
    )
    browser.open(report(config))
    text = browser.evaluate("document.querySelector('#people').innerText")
    assert (
        "1 person rated the images, which are simulated." in text
        and "Which image was viewed? brain" in text
    )
    assert "People: which was seen" in browser.evaluate(
        "document.querySelector('#scores').innerText"
    )


PHONES = [(390, 844), (320, 568), (844, 390)]


def test_on_a_phone_in_one_file(browser: Page, config: Config, tmp_path: Path) -> None:
    """All by touch; everything fits on three screens, pictures are large, fingers find the
    buttons.
    """
    plan = plan_of(config)
    expected = session(plan, "phone")
    file = tmp_path / ONE_FILE  # alone: nothing lies beside it
    file.write_bytes((config.run.folder / "study" / "site" / ONE_FILE).read_bytes())
    browser.screen(390, 844, phone=True)
    browser.call("Emulation.setTouchEmulationEnabled", enabled=True)
    try:
        browser.open(file)
        enter(browser, "phone", touch)
        for number, shown in enumerate(expected):
            wait_for(browser, f"{BEGIN} || {ASKED}")
            if browser.evaluate(BEGIN):
                touch(browser, "[data-choice]")
                wait_for(browser, ASKED)
                for width, height in PHONES:
                    browser.screen(width, height, phone=True)
                    fits(browser, width, height)
                browser.screen(390, 844, phone=True)
            touch(browser, button(answer_of(shown, plan)))
            wait_for(
                browser,
                f"{SAVE} || {ANSWERED} === '{number + 1}' || !document.querySelector('.asking"
                " [data-choice]')",
            )
        wait_for(browser, SAVE)
        assert browser.requests() == [] and browser.complaints() == []
        browser.call(
            "Browser.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path / "saved")
        )
        touch(browser, "#save")
        rows = results(tmp_path / "saved")
        assert [row["answer"] for row in rows] == [answer_of(shown, plan) for shown in expected]
        assert {row["input"] for row in rows} == {"touch"} and rows[0]["screen"] == "390x844@2"
    finally:
        browser.call("Emulation.setTouchEmulationEnabled", enabled=False)


def fits(page: Page, width: int, height: int) -> None:
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate("document.documentElement.scrollHeight") <= height + 1, (width, height)
    sides = page.evaluate("[...document.images].map((i) => i.getBoundingClientRect().width)")
    assert min(sides) >= 0.3 * min(width, height), (width, height, sides)
    boxes = "[...document.querySelectorAll('.asking button')].map((b) => b.getBoundingClientRect())"
    assert page.evaluate(f"{boxes}.filter((box) => box.height < 44 || box.width < 36).length") == 0


def test_who_does_not_agree_is_not_asked(browser: Page, config: Config) -> None:
    browser.screen(1280, 800)
    browser.open(config.run.folder / "study" / "site" / "index.html")
    click(browser, "#refuse")
    assert "Nothing was recorded" in browser.evaluate("document.body.innerText")
    browser.open(config.run.folder / "study" / "site" / "index.html")
    enter(browser, "no spaces!", click)
    assert "letters, digits" in browser.evaluate("document.querySelector('.wrong').textContent")
