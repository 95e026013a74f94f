"""Report, quickstart page and study have no serious finding of axe-core, in the light and in the
dark, on a laptop and on a phone.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from integration.axe import axe_script, serious_findings
from integration.chromium import Page, chromium_page, find_chromium
from PIL import Image
import pytest
from unit.fake_report_inputs import write_fake_run

from braingen.config.evaluation import HumanEvalConfig
from braingen.demo.quickstart import load_shipped
from braingen.human_eval.consent import GAP
from braingen.human_eval.study import study
from braingen.report.quickstart import ImagePair, render
from braingen.report.write import report

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        find_chromium() is None,
        reason="no Chromium or Chrome on this machine (apt-get install chromium)",
    ),
]

SCREENS = {"laptop": (1280, 800, False), "phone": (390, 844, True)}


@pytest.fixture(scope="module")
def browser() -> Iterator[Page]:
    axe_script()
    with chromium_page() as page:
        yield page


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The three pages, by what they are."""
    folder = tmp_path_factory.mktemp("pages")
    config = write_fake_run(folder, 8, epochs=2)
    found = {"report": report(config)}
    shipped = load_shipped()
    blank = [Image.new("RGB", (128, 128), "grey")] * len(shipped.ids)
    pairs = [ImagePair(*each) for each in zip(shipped.ids, shipped.seen, blank, shipped.captions)]
    found["quickstart"] = folder / "quickstart.html"
    found["quickstart"].write_text(render(pairs, shipped.scores), encoding="utf-8")
    (config.run.folder / "study.json").unlink()
    other = str(config.run.folder / "reconstructions" / "random")
    asked = HumanEvalConfig(study_images=4, checks=2, method_b=other, draft=True)
    config = config.model_copy(update={"human_eval": asked})
    study(config, "build")
    text = config.run.folder / "study" / "consent.md"
    filled = GAP.sub("the Institute for Testing", text.read_text(encoding="utf-8"))
    text.write_text(filled, encoding="utf-8")
    final = asked.model_copy(update={"draft": False})
    study(config.model_copy(update={"human_eval": final}), "build")
    found["study"] = config.run.folder / "study" / "index.html"
    return found


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("screen", SCREENS)
@pytest.mark.parametrize("name", ["report", "quickstart", "study"])
def test_no_serious_finding(
    browser: Page, pages: dict[str, Path], name: str, screen: str, dark: bool
) -> None:
    width, height, phone = SCREENS[screen]
    browser.screen(width, height, dark=dark, phone=phone)
    browser.open(pages[name])
    browser.evaluate("document.querySelectorAll('details').forEach((each) => each.open = true)")
    assert serious_findings(browser) == []
