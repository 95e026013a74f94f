"""axe-core, the library that browsers' accessibility checks use, in a page of headless Chromium.

AXE_CORE names an axe.min.js; else npm fetches one version of it once, which the user's cache keeps.
Without npm or a network its tests are skipped with the reason.
"""

from __future__ import annotations

from functools import cache
import hashlib
import json
import os
from pathlib import Path
import shutil
import subprocess
import tarfile
import tempfile

from integration.chromium import Page
import pytest

VERSION = "4.14.1"
SHA256 = "29348999450cdf2849a8e70b7912fc2da85a849da39c0d0d5394f51d4a9ed95c"
"""Of axe.min.js in that version."""
SERIOUS = ("serious", "critical")
RUN = """axe.run(document, {resultTypes: ['violations'], iframes: false}).then(({violations}) =>
  JSON.stringify(violations.map(({id, impact, help, nodes}) => ({id, impact, help,
    places: nodes.slice(0, 5).map((node) => node.html.slice(0, 160) + ' | '
      + (node.any.concat(node.all, node.none)[0]?.message ?? '')), count: nodes.length}))))"""


def kept() -> Path:
    """Where the script is kept between runs."""
    home = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    return home / "braingen-tests" / f"axe-core-{VERSION}.min.js"


@cache
def axe_script() -> str:
    """The script; skips the calling test where it cannot be had."""
    if named := os.environ.get("AXE_CORE"):
        return Path(named).read_text(encoding="utf-8")
    path = kept()
    if not path.is_file():
        npm = shutil.which("npm")
        if npm is None:
            pytest.skip(f"axe-core is not in {path.parent}, and there is no npm to fetch it")
        with tempfile.TemporaryDirectory() as folder:
            try:
                subprocess.run(
                    [npm, "pack", f"axe-core@{VERSION}", "--silent"],
                    cwd=folder,
                    check=True,
                    capture_output=True,
                    timeout=120,
                )
            except (OSError, subprocess.SubprocessError) as error:
                pytest.skip(f"axe-core cannot be fetched from npm ({type(error).__name__})")
            with tarfile.open(next(Path(folder).glob("*.tgz"))) as archive:
                member = archive.extractfile("package/axe.min.js")
                assert member is not None
                data = member.read()
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f"{path.name}.{os.getpid()}")
        partial.write_bytes(data)
        partial.replace(path)
    data = path.read_bytes()
    assert hashlib.sha256(data).hexdigest() == SHA256, (
        f"{path} is not axe-core {VERSION}: remove it"
    )
    return data.decode("utf-8")


def serious_findings(page: Page) -> list[str]:
    """Serious and critical findings of the page as it is now, one line each."""
    page.evaluate(f"{axe_script()};undefined")
    found = json.loads(page.evaluate(RUN))
    return [
        f"{each['id']} ({each['impact']}, {each['count']} places): {each['help']}\n    "
        + "\n    ".join(each["places"])
        for each in found
        if each["impact"] in SERIOUS
    ]
