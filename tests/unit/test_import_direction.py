"""Imports go downward only: the folder listing is the flow, and data flows one way."""

from __future__ import annotations

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
import subprocess
import sys

SOURCE = Path(__file__).parents[2] / "src" / "braingen"
TIERS = (
    {"runtime", "config", "types"},
    {"data"},
    {"encoders", "pretrained"},
    {"targets"},
    {"encoding_model"},
    {"routing"},
    {"generation"},
    {"training"},
    {"simulation"},
    {"evaluation"},
    {"report"},
    {"interpret", "human_eval"},
    {"experiments", "diagnostics", "compat"},
    {"demo"},
    {"explorer"},
    {"commands"},
    {"cli"},
)
TIER_OF = {part: height for height, tier in enumerate(TIERS) for part in tier}
# run folders know settings, settings raise the errors of the runtime; records name each other's
# types only
NEIGHBOURS_ALLOWED = TIERS[0]
HEAVY = {
    "peft": {"generation"},
    "transformers": {"pretrained", "targets", "evaluation", "generation", "simulation"},
    "captum": {"interpret"},
    "nilearn": {"interpret"},
}


def _parts() -> list[tuple[str, Path]]:
    return [
        (path.relative_to(SOURCE).parts[0].removesuffix(".py"), path)
        for path in sorted(SOURCE.rglob("*.py"))
    ]


def _imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def test_every_part_has_its_tier():
    assert {part for part, _ in _parts()} - {"__init__", "__main__"} <= set(TIER_OF)


def test_imports_go_downward_only():
    wrong = []
    for part, path in _parts():
        if part not in TIER_OF:
            continue
        for name in _imports(path):
            if not name.startswith("braingen.") or name.split(".")[1] not in TIER_OF:
                continue
            other = name.split(".")[1]
            if (
                other != part
                and other not in NEIGHBOURS_ALLOWED
                and TIER_OF[other] >= TIER_OF[part]
            ):
                wrong.append(f"{path.relative_to(SOURCE)} imports {name}")
    assert not sorted(set(wrong))


def test_heavy_libraries_live_in_few_places():
    wrong = []
    for part, path in _parts():
        for name in _imports(path):
            library = name.split(".")[0]
            if library in HEAVY and part not in HEAVY[library]:
                wrong.append(f"{path.relative_to(SOURCE)} imports {library}")
    assert not sorted(set(wrong))


def test_importing_braingen_loads_no_heavy_library():
    code = (
        "import sys, braingen, braingen.cli, braingen.config;"
        "print([m for m in ('torch', 'diffusers', 'pandas', 'h5py') if m in sys.modules])"
    )
    assert (
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout.strip()
        == "[]"
    )


def _loaded_with(path: Path, modules: set[str]) -> set[str]:
    """Modules of braingen that importing a file loads: not those in functions or for types only."""

    def names(body: list[ast.stmt]) -> set[str]:
        found = set()
        for node in body:
            if isinstance(node, ast.ImportFrom) and node.module:
                inside = {f"{node.module}.{alias.name}" for alias in node.names} & modules
                found |= inside or {node.module}
            elif isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
            elif isinstance(node, ast.If) and "TYPE_CHECKING" not in ast.unparse(node.test):
                found |= names(node.body) | names(node.orelse)
            elif isinstance(node, ast.Try | ast.With | ast.ClassDef | ast.For):
                found |= names(node.body)
        return found

    return names(ast.parse(path.read_text()).body) & modules


def test_no_modules_import_each_other_in_a_ring():
    files = {}
    for _, path in _parts():
        dotted = ".".join(("braingen", *path.relative_to(SOURCE).with_suffix("").parts))
        files[dotted.removesuffix(".__init__")] = path
    # a folder that registers its files loads all of them
    loads = {name: _loaded_with(path, set(files)) for name, path in files.items()}
    registry = "braingen.evaluation.pixel_metrics"
    loads["braingen.evaluation.metrics"] |= {
        name for name in files if name.startswith(f"{registry}.")
    }
    try:
        TopologicalSorter(loads).prepare()
    except CycleError as error:
        raise AssertionError(" -> ".join(error.args[1])) from None


def test_files_that_register_themselves_can_be_imported_first():
    folder = SOURCE / "evaluation" / "pixel_metrics"
    for path in sorted(folder.glob("[!_]*.py")):
        code = f"import braingen.evaluation.pixel_metrics.{path.stem}"
        subprocess.run([sys.executable, "-c", code], check=True)
    code = (
        "from braingen.evaluation.pixel_metrics import pixel_metrics as found;"
        "from braingen.evaluation.metrics import METRICS;"
        "assert set(found()) <= set(METRICS), found()"
    )
    for first in ("found(); ", ""):
        start = "from braingen.evaluation.pixel_metrics import pixel_metrics as found; "
        subprocess.run([sys.executable, "-c", start + first + code], check=True)
