"""axe-core, which finds what people with disabilities cannot use; it is not shipped with the tests.

`npm pack axe-core` fetches it; AXE_CORE names its axe.min.js.
"""

from __future__ import annotations

import os
from pathlib import Path

from integration.chromium import Page

PLACES = ("node_modules/axe-core/axe.min.js",)
"""Where it is looked for below the repository."""


def find_axe() -> Path | None:
    """Path of axe.min.js, or None."""
    root = Path(__file__).parents[2]
    named = os.environ.get("AXE_CORE", "")
    places = [Path(named)] if named else [root / place for place in PLACES]
    return next((place for place in places if place.is_file()), None)


def serious_findings(page: Page) -> list[str]:
    """Findings that axe calls serious or critical, on the page as it is now."""
    path = find_axe()
    assert path is not None
    page.evaluate(path.read_text(encoding="utf-8") + "; true")
    found = page.evaluate("axe.run(document, {resultTypes: ['violations']})")
    return [
        f"{each['impact']} {each['id']}: {each['help']}: "
        + "; ".join(str(node["target"]) + " " + node["html"][:120] for node in each["nodes"][:4])
        for each in found["violations"]
        if each["impact"] in ("serious", "critical")
    ]
