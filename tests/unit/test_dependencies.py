"""What is imported under src/ and what pyproject.toml asks for are the same, both ways; extras are
told in one sentence when missing.
"""

from __future__ import annotations

import ast
from importlib.machinery import ModuleSpec
import importlib.util
from pathlib import Path
import re
import sys

import pytest

from braingen.runtime import extras
from braingen.runtime.errors import UserError
from braingen.runtime.extras import EXTRAS

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomli")

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
MODULES = {
    "pillow": "PIL",
    "pyyaml": "yaml",
    "scikit-learn": "sklearn",
    "scikit-image": "skimage",
    "huggingface-hub": "huggingface_hub",
}
"""Distribution -> the module it is imported as, where the names differ."""
LOADED_BY_ANOTHER = {
    "tensorboard": "accelerate, as run.tracker says",
    "xformers": "diffusers, as lora.attention says",
    "pyarrow": "pandas, for tables of trials",
}
"""Modules that are used without an import of ours, and by whom."""


def names(requirements: list[str]) -> set[str]:
    """Distributions of a list of requirements; extras of our own are left out."""
    found = {
        re.match(r"[\w.-]+", requirement)[0].lower().replace("_", "-")
        for requirement in requirements
    }  # type: ignore[index]
    return found - {"braingen"}


def modules(requirements: list[str]) -> set[str]:
    return {MODULES.get(name, name) for name in names(requirements)}


def imported(folder: Path) -> dict[str, list[str]]:
    """Module that is neither of Python nor of this project -> files that import it."""
    found: dict[str, list[str]] = {}
    for path in sorted(folder.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            whole = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.module and not node.level:
                whole = [node.module]
            for module in {name.split(".")[0] for name in whole}:
                if module not in sys.stdlib_module_names and module != "braingen":
                    found.setdefault(module, []).append(str(path.relative_to(ROOT)))
    return found


def test_what_is_imported_is_asked_for_and_what_is_asked_for_is_imported() -> None:
    found = imported(ROOT / "src")
    optional = {module for parts in EXTRAS.values() for module in parts}
    needed = modules(PROJECT["dependencies"])
    assert {
        module: files for module, files in found.items() if module not in needed | optional
    } == {}
    assert (needed | optional) - set(found) == set(LOADED_BY_ANOTHER)
    assert not needed & optional


def test_extras_are_those_of_pyproject() -> None:
    listed = {
        extra: modules(needs)
        for extra, needs in PROJECT["optional-dependencies"].items()
        if extra not in ("dev", "docs")
    }
    assert listed == {extra: set(parts) for extra, parts in EXTRAS.items()}


def test_tests_import_only_what_dev_brings() -> None:
    folders = (ROOT / "tests", ROOT / "benchmarks")
    own = {path.stem for folder in folders for path in folder.rglob("*.py")} | {
        "unit",
        "parity",
        "integration",
        "tomli",
        "tomllib",
    }
    optional = PROJECT["optional-dependencies"]
    brought = modules(
        [
            *PROJECT["dependencies"],
            *optional["dev"],
            *optional["interpret"],
            *optional["track"],
            *optional["explore"],
        ]
    )
    assert {
        module: files
        for module, files in imported(ROOT / "tests").items()
        if module not in brought | own
    } == {}
    assert "braingen[interpret,track,explore]" in optional["dev"]


def test_the_lock_file_pins_all_that_tests_need() -> None:
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    pinned = names([line for line in lines if not line.startswith("#")])
    optional = PROJECT["optional-dependencies"]
    wanted = [
        *PROJECT["dependencies"],
        *optional["dev"],
        *optional["interpret"],
        *optional["track"],
        *optional["explore"],
        *optional["docs"],
    ]
    assert names(wanted) <= pinned


@pytest.fixture
def hidden(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Modules that cannot be found, as if they were not installed."""
    gone: set[str] = set()
    find = importlib.util.find_spec

    def look(name: str, package: str | None = None) -> ModuleSpec | None:
        return None if name.split(".")[0] in gone else find(name, package)

    monkeypatch.setattr(extras, "find_spec", look)
    return gone


@pytest.mark.parametrize(
    ("command", "module"),
    [(name, module) for name in ("interpret", "explore") for module in EXTRAS[name]],
)
def test_a_command_without_its_extra_is_one_sentence(
    command: str, module: str, hidden: set[str], monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    from braingen.cli import main

    hidden.add(module)
    for name in [name for name in sys.modules if re.match(r"braingen\.(interpret|explorer)", name)]:
        monkeypatch.delitem(sys.modules, name)
    assert main([command]) == 2
    said = capsys.readouterr().err
    assert (
        f"braingen {command} needs {module}, which is not installed: pip install"
        f" 'braingen[{command}]'" in said
    )
    assert "Traceback" not in said


def test_without_tensorboard_curves_go_to_the_file_and_this_is_printed(
    hidden: set[str], tmp_path: Path, capsys
) -> None:
    from braingen.config import load_config
    from braingen.runtime.device import accelerator_of

    config = load_config(None, {"run.device": "cpu"})
    assert accelerator_of(config, tmp_path, 1).log_with
    hidden.add("tensorboard")
    assert not accelerator_of(config, tmp_path, 1).log_with
    assert "metrics.jsonl alone" in capsys.readouterr().out


def test_every_extra_that_is_missing_is_named(hidden: set[str]) -> None:
    hidden |= {"captum", "nilearn"}
    with pytest.raises(
        UserError, match="The map needs captum and nilearn, which are not installed"
    ):
        extras.need("interpret", "The map")
