"""Mutation testing: change one expression of a loop at a time and see whether the quick tests fail.

    pip install mutmut
    python benchmarks/mutants.py --out mutants.jsonl                     a sample of every module of
                                                                         benchmarks/mutants.toml
    python benchmarks/mutants.py --out after.jsonl --again mutants.jsonl
                the survivors of an earlier run, with the present tests
    python benchmarks/mutants.py --out mutants.jsonl --summary           the scores, and the
                                                                         survivors
    python benchmarks/mutants.py --out wires.jsonl --wires               cuts every wire of
                                                                         benchmarks/wires.toml, one
                                                                         at a time

The changes are those of mutmut. mutmut's own runner leaves out decorated functions
(`torch.no_grad()`) and measures the tests with its own import path; here every mutant runs in a
forked process that has the libraries imported already, and a mutated module is handed out in place
of the file, which is never changed. Changes of texts, of error messages and of defaults are left
out. The result file has one line per mutant; a run that is stopped goes on where it was.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Iterator
import difflib
import importlib.abc
import importlib.machinery
import importlib.util
from itertools import pairwise
import json
import os
from pathlib import Path
import random
import re
import signal
import sys
import time
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "braingen"
TIMEOUT = 300
"""Seconds after which a mutant counts as noticed: it hangs."""


class Mutant(NamedTuple):
    """One change of one module."""

    module: str
    """Path below src/braingen."""
    function: str
    line: int
    change: str
    """Removed and added lines, as in a diff."""
    code: str
    """The whole changed module."""

    @property
    def key(self) -> str:
        return f"{self.module}: {self.change}"


def candidates(module: str) -> Iterator[Any]:
    """Mutations of a module that can be wires: no texts, error messages, annotations or
    defaults.
    """
    import libcst as cst
    from libcst.metadata import PositionProvider
    from mutmut.mutation import file_mutation
    from mutmut.mutation.mutators import mutation_operators
    from mutmut.mutation.pragma_handling import get_ignored_lines

    class Visitor(file_mutation.MutationVisitor):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            self.places: list[tuple[str, int]] = []
            self._stack: list[str] = []

        def on_visit(self, node: cst.CSTNode) -> bool:
            if isinstance(node, (cst.FunctionDef, cst.ClassDef)):
                self._stack.append(node.name.value)
            return super().on_visit(node)

        def on_leave(self, original_node: cst.CSTNode) -> None:
            if isinstance(original_node, (cst.FunctionDef, cst.ClassDef)):
                self._stack.pop()
            super().on_leave(original_node)

        def _create_mutations(self, node: cst.CSTNode) -> None:
            before = len(self.mutations)
            super()._create_mutations(node)
            line = (
                self.get_metadata(PositionProvider, node).start.line
                if before < len(self.mutations)
                else 0
            )
            self.places += [(".".join(self._stack), line)] * (len(self.mutations) - before)

        def _skip_node_and_children(self, node: cst.CSTNode) -> bool:
            if isinstance(node, cst.FunctionDef):
                return False  # decorated functions too
            if isinstance(node, (cst.Raise, cst.Decorator, cst.Param, cst.BaseString)):
                return True
            return super()._skip_node_and_children(node)

    code = (SOURCE / module).read_text(encoding="utf-8")
    wrapper = cst.MetadataWrapper(cst.parse_module(code))
    visitor = Visitor(mutation_operators, get_ignored_lines(module, code, wrapper, None), None)
    tree = wrapper.visit(visitor)
    for mutation, (function, line) in zip(visitor.mutations, visitor.places):
        if (
            function and not function[0].isupper()
        ) or "." in function:  # inside a function or a method
            yield tree, code, mutation, function, line


def made(module: str, candidate: Any) -> Mutant | None:
    """The mutant of a candidate; None where the result is the same code or none at all."""
    tree, code, mutation, function, line = candidate
    changed = tree.deep_replace(mutation.original_node, mutation.mutated_node).code
    lines = list(difflib.unified_diff(code.splitlines(), changed.splitlines(), n=0, lineterm=""))[
        2:
    ]
    change = "\n".join(
        text[0] + " " + text[1:].strip() for text in lines if not text.startswith("@@")
    )
    try:
        compile(changed, module, "exec")
    except SyntaxError:
        return None
    return Mutant(module, function, line, change, changed) if change else None


def sample(module: str, count: int, seed: int) -> list[Mutant]:
    """Mutants of a module drawn at random, the same for the same seed and code."""
    found = list(candidates(module))
    order = random.Random(f"{seed}/{module}").sample(range(len(found)), len(found))
    chosen: dict[str, Mutant] = {}
    for number in order:
        if len(chosen) == count:
            break
        mutant = made(module, found[number])
        if mutant is not None:
            chosen.setdefault(mutant.key, mutant)
    return list(chosen.values())


def again(entry: dict[str, Any]) -> Mutant | None:
    """A mutant of an earlier run in the present code; None where the changed lines are no longer
    there.
    """
    code = (SOURCE / entry["module"]).read_text(encoding="utf-8").splitlines()
    change = entry["change"].splitlines()
    old, new = ([text[2:] for text in change if text[0] == sign] for sign in "-+")
    stripped = [text.strip() for text in code]
    places = [
        place
        for place in range(len(code) - len(old) + 1)
        if stripped[place : place + len(old)] == old
    ]
    if not places or not old:
        return None
    place = min(places, key=lambda place: abs(place + 1 - entry["line"]))
    indent = [text[: len(text) - len(text.lstrip())] for text in code[place : place + len(old)]]
    lines = [indent[min(number, len(old) - 1)] + text for number, text in enumerate(new)]
    changed = "\n".join([*code[:place], *lines, *code[place + len(old) :], ""])
    try:
        compile(changed, entry["module"], "exec")
    except SyntaxError:
        return None
    return Mutant(entry["module"], entry["function"], place + 1, entry["change"], changed)


def pattern(text: str) -> re.Pattern[str]:
    """Matches the same code however its lines are broken.

    Formatters break lines inside brackets and then add a comma and brackets of their own. Nothing
    else may differ.
    """
    words = re.findall(r"\w+|[^\w\s]", text)
    parts = [re.escape(words[0])]
    for before, word in pairwise(words):
        both = before[-1].isalnum() and word[0].isalnum()
        comma = ",?" if word in ")]}" and before != "," else ""
        parts.append((r"\s+" if both else comma + r"\s*") + re.escape(word))
    return re.compile("".join(parts))


def cut(wire: dict[str, str]) -> Mutant:
    """The module of a wire with the wire cut; an error where the code has changed."""
    code = (SOURCE / wire["module"]).read_text(encoding="utf-8")
    old, new = wire["old"], wire["new"]
    places = [(code.index(old), code.index(old) + len(old))] if code.count(old) == 1 else []
    if not places:  # broken into other lines
        places = [match.span() for match in pattern(old).finditer(code)]
        new = new.strip()
    if len(places) != 1:
        sys.exit(
            f"{wire['module']} holds {len(places)} times, instead of once: {old}\n"
            f"({wire['wire']}; the code has changed, the entry has to follow)"
        )
    ((first, last),) = places
    changed = code[:first] + new + code[last:]
    try:
        compile(changed, wire["module"], "exec")
    except SyntaxError as error:
        sys.exit(f"{wire['module']} cannot be compiled when cut: {wire['wire']} ({error})")
    line = code[:first].count("\n") + 1
    return Mutant(wire["module"], wire["wire"], line, f"- {old}\n+ {wire['new']}", changed)


def dotted(module: str) -> str:
    """A module as it is imported."""
    return "braingen." + module.removesuffix(".py").replace("/", ".")


class Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Hands out one changed module."""

    def __init__(self, mutant: Mutant) -> None:
        self.mutant = mutant
        self.name = dotted(mutant.module)

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> Any:
        if fullname != self.name:
            return None
        return importlib.util.spec_from_loader(
            fullname, self, origin=str(SOURCE / self.mutant.module)
        )

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> None:
        return None

    def exec_module(self, module: Any) -> None:
        module.__file__ = str(SOURCE / self.mutant.module)
        exec(compile(self.mutant.code, module.__file__, "exec"), module.__dict__)


class Outcome(NamedTuple):
    """Of one run of tests."""

    passed: bool
    seconds: float
    imported: set[str]
    """Modules of the package that the tests imported."""
    failed: str
    """The test that failed first, as pytest calls it; empty where none did."""


class FirstFailure:
    """A plugin of pytest that remembers which test failed."""

    def __init__(self) -> None:
        self.test = ""

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.failed and not self.test:
            self.test = report.nodeid


def outcome(mutant: Mutant | None, tests: list[str]) -> Outcome:
    """Run tests with a change (without any for None) in a process of its own."""
    began = time.monotonic()
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        os.setsid()
        signal.alarm(TIMEOUT)
        nowhere = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2) if mutant is not None else (0,):
            os.dup2(nowhere, stream)
        if mutant is not None:
            sys.meta_path.insert(0, Finder(mutant))
        import pytest

        code, failure = 1, FirstFailure()
        try:
            code = int(
                pytest.main(
                    [*tests, "-x", "-q", "-p", "no:cacheprovider", f"--rootdir={ROOT}"],
                    plugins=[failure],
                )
            )
            imported = [name for name in sys.modules if name.startswith("braingen.")]
            os.write(writing, json.dumps([failure.test, imported]).encode())
        finally:
            os._exit(code)
    os.close(writing)
    with os.fdopen(reading, encoding="utf-8") as pipe:
        failed, imported = json.loads(pipe.read() or '["", []]')
    _, status = os.waitpid(child, 0)
    return Outcome(
        os.waitstatus_to_exitcode(status) == 0, time.monotonic() - began, set(imported), failed
    )


def warm() -> None:
    """Import the libraries, nothing of the package but what it prepares them with."""
    sys.path[:0] = [str(ROOT / "src"), str(ROOT / "tests")]
    import braingen  # noqa: F401

    for name in (
        "torch",
        "pandas",
        "h5py",
        "PIL.Image",
        "scipy.stats",
        "accelerate",
        "diffusers",
        "transformers",
        "peft",
        "rich",
        "yaml",
    ):
        __import__(name)
    import diffusers
    import torch

    torch.set_num_threads(1)
    for name in (
        "AutoencoderKL",
        "UNet2DConditionModel",
        "EulerDiscreteScheduler",
        "DiffusionPipeline",
    ):
        getattr(diffusers, name)
    loaded = [name for name in sys.modules if name.startswith("braingen.")]
    for name in loaded:
        del sys.modules[name]


def summary(results: list[dict[str, Any]]) -> str:
    """Scores per module, then what survives."""
    of: dict[str, list[bool]] = defaultdict(list)
    for each in results:
        of[each["module"]].append(each["killed"])
    lines = [
        f"{module}: {sum(killed)} of {len(killed)} noticed" for module, killed in sorted(of.items())
    ]
    every = [each["killed"] for each in results]
    lines.append(
        f"together: {sum(every)} of {len(every)} noticed ({sum(every) / max(1, len(every)):.1%})"
    )
    lines += [
        f"\n{each['module']}:{each['line']} {each['function']}\n{each['change']}"
        for each in results
        if not each["killed"]
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--out", type=Path, required=True, help="result file, one JSON object per mutant"
    )
    parser.add_argument("--sample", type=int, default=12, help="mutants of every module")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--again", type=Path, help="result file whose survivors are tried again")
    parser.add_argument("--modules", nargs="*", help="only these modules, e.g. training/encoder.py")
    parser.add_argument(
        "--wires",
        action="store_true",
        help="cut the wires of wires.toml instead of drawing mutants",
    )
    parser.add_argument(
        "--summary", action="store_true", help="print what the result file says and do nothing else"
    )
    options = parser.parse_args()
    options.out = options.out.absolute()
    options.again = options.again and options.again.absolute()
    options.out.parent.mkdir(parents=True, exist_ok=True)
    done = (
        [json.loads(line) for line in options.out.read_text(encoding="utf-8").splitlines()]
        if options.out.exists()
        else []
    )
    if options.summary:
        print(summary(done))
        return
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    tests: dict[str, list[str]] = tomllib.loads(
        (ROOT / "benchmarks" / "mutants.toml").read_text(encoding="utf-8")
    )["tests"]
    modules = [name for name in tests if not options.modules or name in options.modules]
    os.chdir(ROOT)
    work: list[tuple[Mutant, list[str]]] = []
    if options.wires:
        wires = tomllib.loads((ROOT / "benchmarks" / "wires.toml").read_text(encoding="utf-8"))[
            "cut"
        ]
        wires = [wire for wire in wires if not options.modules or wire["module"] in options.modules]
        work = [(cut(wire), wire["tests"].split()) for wire in wires]
    elif options.again:
        before = [
            json.loads(line) for line in options.again.read_text(encoding="utf-8").splitlines()
        ]
        alive = [
            again(entry) for entry in before if not entry["killed"] and entry["module"] in modules
        ]
        work = [(mutant, tests[mutant.module]) for mutant in alive if mutant is not None]
        print(f"{len(work)} of {len(alive)} survivors are still in the code")
        random.Random(options.seed).shuffle(
            work
        )  # so that a run that is stopped has tried some of every module
    else:
        work = [
            (mutant, tests[name])
            for name in modules
            for mutant in sample(name, options.sample, options.seed)
        ]
    warm()
    known = {f"{each['module']}: {each['change']}" for each in done}
    clean: dict[str, Outcome] = {}
    for mutant, paths in work:
        if mutant.key in known:
            continue
        chosen = [f"tests/{path}" for path in paths]
        if options.wires:  # each has tests of its own, which `make test` runs without a cut
            clean[" ".join(chosen)] = Outcome(True, 0.0, {dotted(mutant.module)}, "")
        first = clean.get(" ".join(chosen)) or clean.setdefault(
            " ".join(chosen), outcome(None, chosen)
        )
        if not first.passed:
            sys.exit(f"These tests fail without any change: {' '.join(chosen)}")
        if dotted(mutant.module) in first.imported:
            now = outcome(mutant, chosen)
        else:  # no test can notice what it never imports
            now = Outcome(True, 0.0, set(), "")
        entry = mutant._asdict() | {
            "killed": not now.passed,
            "by": now.failed,
            "seconds": round(now.seconds, 1),
        }
        del entry["code"]
        with options.out.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")
        word = "survives" if now.passed else "noticed "
        what = mutant.function if options.wires else mutant.change.splitlines()[-1][:90]
        print(word, f"{now.seconds:5.1f} s", mutant.module, mutant.line, what, flush=True)
    print(
        summary([json.loads(line) for line in options.out.read_text(encoding="utf-8").splitlines()])
    )


if __name__ == "__main__":
    main()
