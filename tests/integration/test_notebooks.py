"""The committed notebooks run as they stand, but for the cell that installs the package."""

from __future__ import annotations

import json
from pathlib import Path
import re
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from unit.told_commands import ROOT

import braingen

NOTEBOOKS = sorted((ROOT / "examples" / "notebooks").glob("*.ipynb"))
CELL_FIELDS = {
    "code": {"cell_type", "execution_count", "id", "metadata", "outputs", "source"},
    "markdown": {"cell_type", "id", "metadata", "source"},
}


def cells(path: Path) -> list[dict[str, Any]]:
    return json.loads(path.read_text(encoding="utf-8"))["cells"]


def installs(cell: dict[str, Any]) -> bool:
    return "install" in cell["metadata"].get("tags", ())


@pytest.mark.long
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_whole_and_committed_without_output(path: Path) -> None:
    whole = json.loads(path.read_text(encoding="utf-8"))
    assert whole["nbformat"] == 4 and whole["nbformat_minor"] == 5
    for cell in whole["cells"]:
        assert set(cell) == CELL_FIELDS[cell["cell_type"]]
        assert cell.get("outputs", []) == [] and cell.get("execution_count") is None
    names = [cell["id"] for cell in whole["cells"]]
    assert len(names) == len(set(names)) and all(re.fullmatch(r"[\w-]{1,64}", n) for n in names)
    (install,) = [cell for cell in whole["cells"] if installs(cell)]
    text = "".join(install["source"])
    assert f'"braingen-{braingen.__version__}-py3-none-any.whl"' in text and "%pip" in text


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import matplotlib

    monkeypatch.chdir(tmp_path)
    display = ModuleType("IPython.display")
    shown: list[str] = []
    display.HTML = shown.append  # type: ignore[attr-defined]
    monkeypatch.setitem(
        sys.modules,
        "IPython",
        SimpleNamespace(display=display, get_ipython=lambda: None, version_info=(9, 0)),
    )
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    matplotlib.use("agg")
    scope: dict[str, Any] = {"__name__": "notebook"}
    for cell in cells(path):
        if cell["cell_type"] == "code" and not installs(cell):
            exec(compile("".join(cell["source"]), cell["id"], "exec"), scope)
    assert len(scope["output"].images) == 12
    assert shown and shown[0].lower().startswith("<!doctype html>")
