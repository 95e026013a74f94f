"""The list of wires that `make mutants` cuts fits the code and names tests that exist."""

from __future__ import annotations

from pathlib import Path
import re
import sys

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[2]


def test_every_wire_is_found_once_and_its_test_exists(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import mutants

    wires = tomllib.loads((ROOT / "benchmarks" / "wires.toml").read_text(encoding="utf-8"))["cut"]
    wrong = []
    for wire in wires:
        try:
            mutants.cut(wire)
        except SystemExit as error:
            wrong.append(str(error))
        for test in wire["tests"].split():
            file, _, name = test.partition("::")
            path, name = ROOT / "tests" / file, name.partition("[")[0]
            known = path.read_text(encoding="utf-8") if path.is_file() else None
            if known is None or (name and not re.search(rf"def {name}\b", known)):
                wrong.append(f"{wire['wire']}: there is no test {test}")
    assert not wrong, "\n".join(wrong)
