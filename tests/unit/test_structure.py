"""The shape of the package: names used once, short command files, no over-long modules."""

from __future__ import annotations

import ast
from collections import defaultdict
from pathlib import Path
import re

from unit.once import ONCE

SOURCE = Path(__file__).parents[2] / "src" / "braingen"
LONGEST = 400
"""Lines of a module without a reason to be longer."""
REASONS = {
    "encoders/prior/network.py": "one network; its layers are used nowhere else",
    "config/encoders.py": "the settings of every encoder, a class each",
    "evaluation/features.py": "the published networks, one registry",
    "evaluation/uncertainty.py": "intervals and tests that share their resamples",
    "generation/pipeline.py": "one DiffusionPipeline, most of it docstrings",
    "generation/reconstruct.py": "one stage",
    "human_eval/study.py": "four steps of one command",
    "pretrained/sdxl.py": "loading and checking of one kind of folder",
    "runtime/files.py": "atomic files and what can go wrong with them",
    "runtime/model_card.py": "one kind of file: its facts, its text, what is not to be said",
    "runtime/run_folder.py": "one class: a run folder",
    "simulation/cortex.py": "one simulated cortex",
    "training/encoder.py": "one stage: losses, validation, schedule and task of the encoders",
}
METAPHORS = re.compile(r"\b(listen|heard|said|told)\b")


def modules() -> list[tuple[str, str]]:
    return [
        (path.relative_to(SOURCE).as_posix(), path.read_text(encoding="utf-8"))
        for path in sorted(SOURCE.rglob("*.py"))
    ]


def test_no_public_class_name_stands_for_two_things():
    places = defaultdict(list)
    for name, text in modules():
        for node in ast.parse(text).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places[node.name].append(name)
    assert {name: found for name, found in places.items() if len(found) > 1} == {}


def test_long_modules_have_a_reason_and_reasons_have_a_long_module():
    long = {name for name, text in modules() if text.count("\n") > LONGEST}
    assert long == set(REASONS)


def test_commands_are_short():
    commands = {name: text.count("\n") for name, text in modules() if name.startswith("commands/")}
    assert sum(commands.values()) < 1200
    helpers = {"commands/help.py", "commands/completion.py", "commands/base.py"}
    assert {name for name, lines in commands.items() if lines > 60} <= helpers


def test_what_is_printed_once_is_printed_to_every_test():
    once = set()
    for name, text in modules():
        for node in ast.walk(ast.parse(text)):
            if (
                isinstance(node, ast.FunctionDef)
                and any("cache" in ast.unparse(each) for each in node.decorator_list)
                and isinstance(node.returns, ast.Constant)
                and node.returns.value is None
            ):
                module = name.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
                once.add((f"braingen.{module}", node.name))
    assert once == set(ONCE)


def test_no_metaphors_of_speech():
    found = [
        f"{name}: {line.strip()}"
        for name, text in modules()
        for line in text.splitlines()
        if METAPHORS.search(line)
    ]
    assert not found, "\n".join(found)
