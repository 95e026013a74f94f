"""The report as people meet it: in a browser, on a laptop and on a phone, in the light and in the
dark.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from integration.chromium import Page, chromium_page, find_chromium
import pytest
from unit.fake_report_inputs import write_fake_run

from braingen.report.write import report

pytestmark = pytest.mark.skipif(
    find_chromium() is None,
    reason="no Chromium or Chrome on this machine (apt-get install chromium)",
)

IMAGES = 30
CONTRAST = """(() => {
  const probe = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
  const rgba = (colour) => {
    probe.clearRect(0, 0, 1, 1); probe.fillStyle = colour; probe.fillRect(0, 0, 1, 1);
    return [...probe.getImageData(0, 0, 1, 1).data];
  };
  const light = ([r, g, b]) => [r, g, b].map((c) => c / 255)
    .map((c) => c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
    .reduce((sum, c, k) => sum + c * [0.2126, 0.7152, 0.0722][k], 0);
  const ground = (element) => {
    for (let e = element; e; e = e.parentElement) {
      const c = rgba(getComputedStyle(e).backgroundColor);
      if (c[3] > 250) return c;
    }
    return [255, 255, 255];
  };
  const low = new Set();
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement;
    if (!walker.currentNode.textContent.trim() || !element.checkVisibility()
        || element.closest('script, style, .hidden, .skip')) continue;
    const style = getComputedStyle(element);
    const ink = element.closest('svg') ? style.fill : style.color;
    const [a, b] = [light(rgba(ink)), light(ground(element))].sort((x, y) => y - x);
    const ratio = (a + 0.05) / (b + 0.05);
    const large = parseFloat(style.fontSize) >= 24;
    const words = walker.currentNode.textContent.trim().slice(0, 30);
    const what = `${element.tagName}.${element.className} ${words}`;
    if (ratio < (large ? 3 : 4.5)) low.add(`${ratio.toFixed(2)} ${what}`);
  }
  return [...low];
})()"""
SMALL_TARGETS = """[...document.querySelectorAll(
    'button, select, summary, nav a, .segments label, .tick')]
  .filter((e) => e.checkVisibility())
  .map((e) => [e, e.getBoundingClientRect()])
  .filter(([e, box]) => box.height < 43.5 || box.width < 40)
  .map(([e, box]) =>
    `${e.tagName}.${e.className} ${e.textContent.trim().slice(0, 20)} ${box.height}`)"""
VISIBLE = "[...document.querySelectorAll('.cards .card')].filter((card) => card.checkVisibility())"
ORDER = f"{VISIBLE}.map((card) => Number(card.dataset.order))"


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return report(write_fake_run(tmp_path_factory.mktemp("report"), IMAGES))


@pytest.fixture(scope="module")
def browser() -> Iterator[Page]:
    with chromium_page() as page:
        yield page


@pytest.fixture
def laptop(browser: Page, file: Path) -> Page:
    browser.screen(1280, 800)
    browser.open(file)
    return browser


def choose(page: Page, name: str, value: str) -> None:
    page.evaluate(f"document.querySelector('[name={name}][value={value}]').click()")


def test_it_loads_without_a_request_or_a_complaint(laptop: Page) -> None:
    assert laptop.requests() == []
    assert laptop.complaints() == []
    broken = (
        "[...document.images].filter((i) => i.checkVisibility() && (!i.complete || i.naturalWidth"
        " === 0)).length"
    )
    assert laptop.evaluate(broken) == 0
    assert laptop.evaluate(f"{VISIBLE}.length") == 24


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize(
    ("width", "height", "phone"),
    [(1280, 800, False), (820, 1180, True), (390, 844, True), (320, 640, True)],
)
def test_everything_fits_and_can_be_read(
    browser: Page, file: Path, width: int, height: int, phone: bool, dark: bool
) -> None:
    browser.screen(width, height, dark=dark, phone=phone)
    browser.open(file)
    browser.evaluate(
        "document.querySelector('details').open = true; document.querySelector('#parts"
        " details').open = true"
    )
    assert browser.evaluate("document.documentElement.scrollWidth") <= width
    outside = (
        "[...document.querySelectorAll('main *')].filter((e) => e.checkVisibility() &&"
        " !e.closest('pre, .hidden, svg') && e.getBoundingClientRect().right > innerWidth +"
        " 1).map((e) => e.tagName + '.' + e.className)"
    )
    assert browser.evaluate(outside) == []
    assert browser.evaluate(CONTRAST) == []
    if phone:
        assert browser.evaluate(SMALL_TARGETS) == []


def test_best_and_worst_first(laptop: Page) -> None:
    laptop.evaluate("document.querySelector('.more button').click()")
    assert laptop.evaluate(ORDER) == list(range(IMAGES))
    values = (
        f"{VISIBLE}.map((card) =>"
        " JSON.parse(card.dataset.sort)[document.querySelector('[name=by]').value])"
    )
    for order, sign in (("best", -1), ("worst", 1)):
        choose(laptop, "order", order)
        for by in ("overall", "mse", "clip_cos"):
            laptop.evaluate(f"document.querySelector('[name=by]').value = '{by}'")
            laptop.evaluate(
                "document.querySelector('[name=by]').dispatchEvent(new Event('change', {bubbles:"
                " true}))"
            )
            shown = laptop.evaluate(values)
            known = [value for value in shown if value is not None]
            assert known == sorted(known, key=lambda value: sign * value)
            assert shown[len(known) :] == [None] * (
                IMAGES - len(known)
            )  # those without the score come last
    choose(laptop, "order", "all")
    assert laptop.evaluate(ORDER) == list(range(IMAGES))


def test_filter_by_object(laptop: Page) -> None:
    wrong = [number for number in range(IMAGES) if number % 4 == 0]
    choose(laptop, "show", "wrong")
    assert laptop.evaluate(ORDER) == wrong
    assert f"Showing {len(wrong)} of {len(wrong)}; {IMAGES} in total." in laptop.evaluate(
        "document.querySelector('.count').textContent"
    )
    choose(laptop, "show", "right")
    assert laptop.evaluate(f"{VISIBLE}.length") == IMAGES - len(wrong)


def test_controls_can_be_put_away(laptop: Page) -> None:
    count = (
        f"{VISIBLE}.flatMap((card) => [...card.querySelectorAll('img')]).filter((i) =>"
        " i.checkVisibility()).length"
    )
    assert laptop.evaluate(count) == 4 * 24
    laptop.evaluate("document.querySelector('[name=controls]').click()")
    assert laptop.evaluate(count) == 2 * 24


def test_a_picture_opens_large_and_the_arrows_turn_pages(laptop: Page) -> None:
    laptop.evaluate(f"{VISIBLE}[1].querySelector('img').click()")
    place = "document.querySelector('.viewer .place').textContent"
    assert laptop.evaluate("document.querySelector('.viewer').open") is True
    assert laptop.evaluate(place) == "2 of 24"
    for key, code in (("ArrowRight", 39), ("ArrowLeft", 37), ("ArrowLeft", 37), ("ArrowLeft", 37)):
        laptop.call(
            "Input.dispatchKeyEvent", type="keyDown", key=key, code=key, windowsVirtualKeyCode=code
        )
    assert laptop.evaluate(place) == "24 of 24"
    laptop.evaluate("document.querySelector('[data-close]').click()")
    assert laptop.evaluate("document.querySelector('.viewer').open") is False


def test_the_embedding_decoders_own_turn(laptop: Page) -> None:
    feedback = "document.querySelector('.feedback').textContent"
    seen_of_drawn = (
        "(() => { const generated = document.querySelector('.generated').src; const card ="
        " [...document.querySelectorAll('.cards .card')].find((c) => c.querySelector('.brain"
        " img').src === generated); return"
        " [...document.querySelectorAll('.answer img')].findIndex((i)"
        " => i.src === card.querySelector('.seen img').src); })()"
    )
    for played in range(1, 11):
        place = laptop.evaluate(seen_of_drawn)
        assert place in (0, 1)
        answer = place if played % 2 else 1 - place
        laptop.evaluate(f"document.querySelectorAll('.answer')[{answer}].click()")
        assert laptop.evaluate(feedback).startswith("Correct." if played % 2 else "Incorrect.")
        assert f"{(played + 1) // 2} of {played}" in laptop.evaluate(feedback)
        if played < 10:
            laptop.evaluate("document.querySelector('.next').click()")
    assert laptop.evaluate("document.querySelector('.next').textContent") == "Restart"


def test_without_javascript_every_picture_is_there(browser: Page, file: Path) -> None:
    browser.screen(1280, 800)
    browser.call("Emulation.setScriptExecutionDisabled", value=True)
    try:
        browser.open(file)
        assert browser.evaluate(f"{VISIBLE}.length") == IMAGES
        assert browser.evaluate("document.querySelector('.controls').checkVisibility()") is False
    finally:
        browser.call("Emulation.setScriptExecutionDisabled", value=False)
