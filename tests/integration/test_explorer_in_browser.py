"""The explorer as people meet it: in a browser, on a laptop and on a phone, by keyboard alone, with
nothing asked of other machines.
"""

from __future__ import annotations

from collections.abc import Iterator
import time
from typing import Any

from integration.axe import axe_script, serious_findings
from integration.chromium import Page, chromium_page, find_chromium
import numpy as np
from PIL import Image
import pytest
from unit.explorer_server import Served, served

from braingen.config import load_config
from braingen.explorer.explored_run import ExploredRun
from braingen.explorer.session import Session
from braingen.explorer.shipped import shipped_run

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        find_chromium() is None,
        reason="no Chromium or Chrome on this machine (apt-get install chromium)",
    ),
]

STEPS = 2
READY = "!document.body.classList.contains('busy') && !!document.querySelector('#levels img')"
KEYS = {"ArrowRight": 39, "ArrowLeft": 37, "ArrowDown": 40, "Tab": 9, " ": 32, "Enter": 13}
FOCUSED = "(document.activeElement.id || document.activeElement.value || '')"


@pytest.fixture(scope="module")
def run() -> ExploredRun:
    return shipped_run(load_config(None, {"run.device": "cpu"}), STEPS)


@pytest.fixture(scope="module")
def server(run: ExploredRun) -> Iterator[Served]:
    other = run._replace(name="Another run", generation=run.generation._replace(seed=1))
    with served(Session([run, other], 2)) as found:
        yield found


@pytest.fixture(scope="module")
def browser() -> Iterator[Page]:
    with chromium_page("--enable-unsafe-swiftshader") as page:
        yield page


@pytest.fixture
def laptop(browser: Page, server: Served) -> Page:
    return opened(browser, server, 1280, 800)


def opened(browser: Page, server: Served, width: int, height: int, **screen: bool) -> Page:
    browser.screen(width, height, **screen)
    browser.visit(server.address)
    wait_for(browser, READY)
    return browser


def wait_for(page: Page, expression: str, seconds: float = 120.0) -> None:
    until = time.monotonic() + seconds
    while not page.evaluate(expression):
        assert time.monotonic() < until, f"waited in vain for {expression}"
        time.sleep(0.05)


def press(page: Page, key: str) -> None:
    code = KEYS[key]
    text: dict[str, Any] = {"text": " "} if key == " " else {}
    for kind in ("keyDown", "keyUp"):
        page.call(
            "Input.dispatchKeyEvent",
            type=kind,
            key=key,
            code=key if key != " " else "Space",
            windowsVirtualKeyCode=code,
            **(text if kind == "keyDown" else {}),
        )


def tab_to(page: Page, identifier: str) -> None:
    for _ in range(200):
        if page.evaluate(FOCUSED) == identifier:
            return
        press(page, "Tab")
    raise AssertionError(f"{identifier} is not reached by Tab")


def source(page: Page, identifier: str) -> str:
    return page.evaluate(f"document.getElementById('{identifier}').src")


def choose(page: Page, identifier: str, value: str) -> None:
    page.evaluate(
        f"(() => {{ const e = document.getElementById('{identifier}'); e.value = '{value}';"
        " e.dispatchEvent(new Event('change', {bubbles: true})); })()"
    )


def test_nothing_is_asked_of_another_machine_and_nothing_is_complained_about(laptop, server):
    laptop.evaluate("document.getElementById('brain').scrollIntoView()")
    wait_for(laptop, "document.getElementById('brain').dataset.painted > 0")
    for kind in ("contribution", "tuning", "experts"):
        before = laptop.evaluate("document.getElementById('brain').dataset.painted")
        choose(laptop, "map-kind", kind)
        wait_for(laptop, f"document.getElementById('brain').dataset.painted > {before}")
    asked = laptop.requests()
    assert any("niivue" in url for url in asked) and any("/api/map.nii" in url for url in asked)
    assert [url for url in asked if not url.startswith((server.address, "blob:"))] == []
    # how software draws 3-D is of no concern: "GPU stall due to ReadPixels"
    assert [each for each in laptop.complaints() if "GL Driver Message" not in each] == []
    broken = (
        "[...document.images].filter((i) => i.checkVisibility() && i.naturalWidth === 0).length"
    )
    assert laptop.evaluate(broken) == 0


def test_the_policy_stops_requests_to_other_machines(laptop):
    laptop.events.clear()
    blocked = "fetch('http://192.0.2.1/').then(() => 'sent', () => 'blocked')"
    assert laptop.evaluate(blocked) == "blocked"
    assert "Content Security Policy" in " ".join(laptop.complaints())


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize(("width", "phone"), [(1280, False), (390, True), (320, True)])
def test_everything_fits(browser, server, width, phone, dark):
    page = opened(browser, server, width, 844, phone=phone, dark=dark)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    outside = (
        "[...document.querySelectorAll('main *')].filter((e) => e.checkVisibility() &&"
        " e.getBoundingClientRect().right > innerWidth + 1).map((e) => e.tagName + '#' + e.id)"
    )
    assert page.evaluate(outside) == []


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_axe_finds_nothing_serious(browser, server, width, dark):
    axe_script()  # skips where it cannot be had
    page = opened(browser, server, width, 844, phone=width < 400, dark=dark)
    page.evaluate("document.getElementById('brain').scrollIntoView()")
    wait_for(page, "document.getElementById('brain').dataset.painted > 0")
    assert serious_findings(page) == []


def test_the_keyboard_alone_chooses_moves_ablates_and_turns(laptop, run):
    first = source(laptop, "decoded")
    tab_to(laptop, str(run.images[0].image))  # the chosen radio button of the images
    press(laptop, "ArrowRight")
    assert laptop.evaluate("document.activeElement.value") == str(run.images[1].image)
    wait_for(laptop, f"document.getElementById('decoded').src !== {first!r} && {READY}")
    assert run.images[1].caption in laptop.evaluate(
        "document.getElementById('caption').textContent"
    )

    tab_to(laptop, "step")
    last = laptop.evaluate("document.getElementById('step').value")
    frame = source(laptop, "frame")
    press(laptop, "ArrowLeft")
    assert laptop.evaluate("document.getElementById('step').value") == str(int(last) - 1)
    assert source(laptop, "frame") != frame
    assert "diffusion time" in laptop.evaluate(
        "document.getElementById('step').getAttribute('aria-valuetext')"
    )

    tab_to(laptop, "level-0")
    press(laptop, " ")
    wait_for(laptop, "!document.getElementById('ablation-table').hidden")
    assert source(laptop, "after") != source(laptop, "before")
    tab_to(laptop, "clear")
    press(laptop, " ")
    wait_for(laptop, "document.getElementById('ablation-table').hidden")
    assert source(laptop, "after") == source(laptop, "before")

    tab_to(laptop, "canvas")
    wait_for(laptop, "document.getElementById('brain').dataset.painted > 0")
    painted = laptop.evaluate("document.getElementById('brain').dataset.painted")
    press(laptop, "Tab")
    assert laptop.evaluate("document.activeElement.dataset.turn") == "-20,0"
    press(laptop, " ")
    wait_for(laptop, f"document.getElementById('brain').dataset.painted > {painted}")


@pytest.mark.parametrize("kind", ["experts", "contribution", "tuning"])
def test_the_brain_is_coloured_and_what_is_outside_is_not(laptop, tmp_path, kind):
    laptop.evaluate("document.getElementById('canvas').scrollIntoView({block: 'center'})")
    wait_for(laptop, "document.getElementById('brain').dataset.painted > 0")
    if kind != "experts":
        before = laptop.evaluate("document.getElementById('brain').dataset.painted")
        choose(laptop, "map-kind", kind)
        wait_for(laptop, f"document.getElementById('brain').dataset.painted > {before}")
    laptop.evaluate(
        "new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))"
    )
    laptop.screenshot(tmp_path / "brain.png")
    box = laptop.evaluate(
        "(() => { const b = document.getElementById('canvas').getBoundingClientRect();"
        " return [b.left, b.top, b.right, b.bottom]; })()"
    )
    picture = Image.open(tmp_path / "brain.png").convert("RGB").crop([round(x) for x in box])
    pixels_N3 = np.asarray(picture).reshape(-1, 3).astype(int)
    share = (np.ptp(pixels_N3, axis=1) > 40).mean()
    assert 0.01 < share < 0.5


def test_a_change_while_an_image_is_made_shows_the_last_choice(laptop, run):
    for each in run.images[2:6]:
        laptop.evaluate(f"document.querySelector('#images input[value=\"{each.image}\"]').click()")
    wait_for(laptop, READY)
    last = run.images[5]
    assert laptop.evaluate("document.getElementById('caption').textContent") == last.caption
    alt = laptop.evaluate("document.getElementById('decoded').alt")
    assert alt == f"Decoded image {last.image}"


def test_two_runs_stand_side_by_side(laptop):
    wait_for(laptop, "!document.getElementById('comparison-body').hidden")
    assert source(laptop, "compared-0") == source(laptop, "decoded")
    assert source(laptop, "compared-1") != source(laptop, "compared-0")
    heads = laptop.evaluate("document.getElementById('column-1').textContent")
    assert heads == "Another run"


def test_a_refused_request_is_told(laptop):
    laptop.evaluate("document.getElementById('steps').value = 101")
    choose(laptop, "steps", "101")
    wait_for(laptop, "!document.getElementById('error').hidden")
    assert "steps" in laptop.evaluate("document.getElementById('error').textContent")
