"""What messages, docstrings and docs name exists: flags, commands, settings, functions."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path
import re

import pytest
from unit.told_commands import ROOT

from braingen.commands import all_commands
from braingen.config import Config
from braingen.config.names import resolve
from braingen.config.overrides import SHORTHANDS
from braingen.runtime.errors import UserError

COMMANDS = all_commands()

pytestmark = pytest.mark.slow  # left out of `make quick`

OF_OTHER_PROGRAMS = {
    "config",
    "help",
    "version",
    "h",  # of every command
    "multi_gpu",
    "num_processes",
    "num_machines",
    "machine_rank",
    "main_process_ip",
    "main_process_port",
    "mixed_precision",
    "cpu",
    "deepspeed_config_file",
    "use_deepspeed",
    "use_fsdp",
    "zero_stage",
    "config_file",  # accelerate launch
    "upgrade",
    "index-url",
    "extra-index-url",
    "no-deps",
    "system",
    "locked",
    "python",
    "frozen",
    "require-hashes",
    "user",  # pip and uv
    "no-cov",
    "durations",
    "depth",
    "porcelain",
    "local-dir",
    "include",
    "repo-type",
    "exclude",
    "logdir",
    "recursive",
    "no-sign-request",
    "signal",
    "requeue",
    "array",
    "gres",
    "time",
    "mem",
    "cpus-per-task",
    "nodes",
    "ntasks",
    "ntasks-per-node",
    "job-name",
    "partition",
    "output",
    "dependency",
    "parsable",
    "export",
    "standalone",
    "nproc-per-node",
    "nproc_per_node",
    "to-scanner",
    "requirement",
    "editable",  # torchrun, FreeSurfer, pip
    "rm",
    "gpus",
    "build-arg",
    "nv",
    "bind",  # Docker, Apptainer
    "flag",
    "no-flag",
    "name",
    "field",
    "no",
    "no-ckpt_saving",
    "hidden",  # placeholders, and a published flag in a table of departures
}
"""Of accelerate, pip, uv, git, pytest, aws, huggingface-cli, Slurm, Docker and Apptainer."""


def sources() -> list[Path]:
    return sorted((ROOT / "src").rglob("*.py"))


@cache
def literals() -> list[tuple[str, str]]:
    """(file and line, text) of every string in the sources; f-strings in one piece, with … for what
    is put in.
    """
    found = []
    for path in sources():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        inside = {
            id(part)
            for node in ast.walk(tree)
            if isinstance(node, ast.JoinedStr)
            for part in ast.walk(node)
            if part is not node
        }
        name = path.relative_to(ROOT)
        for node in ast.walk(tree):
            where = f"{name}:{getattr(node, 'lineno', 0)}"
            if isinstance(node, ast.JoinedStr):
                parts = [
                    str(part.value) if isinstance(part, ast.Constant) else "…"
                    for part in node.values
                ]
                found.append((where, "".join(parts)))
            elif (
                isinstance(node, ast.Constant)
                and isinstance(node.value, str)
                and id(node) not in inside
            ):
                found.append((where, node.value))
    return found


@cache
def pages() -> list[tuple[str, str]]:
    """Every line of README and docs."""
    files = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    return [
        (f"{path.relative_to(ROOT)}:{number}", line)
        for path in files
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
    ]


ADDS_A_FLAG = ("add_argument", "addoption")


@cache
def argparse_flags() -> set[str]:
    """Flags of the programs of this repository that have their own."""
    found = set()
    for folder in ("src", "scripts", "benchmarks", "examples", "tests"):
        for path in (ROOT / folder).rglob("*.py"):
            text = path.read_text(encoding="utf-8")
            if not any(name in text for name in ADDS_A_FLAG):
                continue
            for node in ast.walk(ast.parse(text)):
                if isinstance(node, ast.Call) and getattr(node.func, "attr", "") in ADDS_A_FLAG:
                    found |= {
                        arg.value.lstrip("-")
                        for arg in node.args
                        if isinstance(arg, ast.Constant) and str(arg.value).startswith("--")
                    }
    return found


@cache
def is_flag(name: str) -> bool:
    plain = name.replace("-", "_")
    if {name, plain} & (OF_OTHER_PROGRAMS | argparse_flags() | set(SHORTHANDS)):
        return True
    plain = plain.removeprefix("no_")
    candidates = [
        plain,
        f"no_{plain}",
        *(f"{command.own}.{plain}" for command in COMMANDS.values() if command.own),
    ]
    candidates += [
        f"{section}.{plain}" for section in Config.model_fields
    ]  # several sections may have it: the command decides
    for candidate in candidates:
        try:
            resolve(candidate)
        except UserError:
            continue
        return True
    return False


def flags_in(text: str) -> list[str]:
    return [
        name
        for name in re.findall(r"(?<![\w\-/.=&|])--([A-Za-z][\w\-]*)(?!…)", text)
        if not is_flag(name.rstrip("-_"))
    ]


def commands_in(text: str) -> list[str]:
    named = re.findall(
        r"`(?:bash |python -m )?braingen ([a-z][a-z\-]*)(?![\w.…])", text
    ) + re.findall(r"^ {0,8}braingen ([a-z][a-z\-]*)(?![\w.])", text, re.M)
    return [name for name in named if name not in COMMANDS]


SECTIONS = "|".join(Config.model_fields)


def settings_in(text: str) -> list[str]:
    """Settings that are given a value, or stand in backquotes, and do not exist."""
    named = re.findall(rf"(?<![\w/.])({SECTIONS})\.([a-z]\w*)(?= ?=(?!=))", text)
    named += re.findall(rf"`({SECTIONS})\.([a-z]\w*)`", text)
    lost = []
    for section, field in named:
        if field in (
            "tex",
            "svg",
            "identify",
            "yaml",
            "json",
            "csv",
            "html",
            "md",
            "py",
            "safetensors",
            "png",
        ):
            continue
        try:
            resolve(f"{section}.{field}")
        except UserError:
            lost.append(f"{section}.{field}")
    return lost


@cache
def identifiers() -> set[str]:
    """Every name there is in the code of the repository, and the names of its files."""
    found: set[str] = set()
    for folder in ("src", "scripts", "benchmarks", "examples"):
        for path in (ROOT / folder).rglob("*.py"):
            found.add(path.stem)
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                for field in ("name", "id", "attr", "arg", "asname"):
                    if isinstance(value := getattr(node, field, None), str):
                        found |= set(value.split("."))
                if isinstance(node, ast.ImportFrom) and node.module:
                    found |= set(node.module.split("."))
            text = path.read_text(encoding="utf-8")
            found |= set(
                re.findall(r"""["']([A-Za-z_]\w*)["']""", text)
            )  # keys of records and files
            found |= set(re.findall(r"""["'][a-z]*\{\w+\}(_\w+)["']""", text))
    found |= {"text_levels", "image_levels", "force_zeros_for_empty_prompt", "random_2"} | {
        path.stem for path in (ROOT / "tests").rglob("*.py")
    }  # put together; diffusers'
    return found | {name for path in sources() for name in path.relative_to(ROOT).parts}


QUOTED = re.compile(r"`{1,2}(?:braingen\.)?([A-Za-z_][\w.]*?)(\(\))?`{1,2}")


def functions_in(text: str) -> list[str]:
    """Names of functions and classes in backquotes, with an underscore or brackets, that are
    nowhere in the code.
    """
    lost = []
    for name, brackets in QUOTED.findall(text):
        last = name.rstrip(".").split(".")[-1]
        looks = not name.startswith("test_") and (
            brackets or ("_" in name.strip("_") and "." not in name) or name.startswith("braingen.")
        )
        if looks and last not in identifiers() and last not in ("yaml", "json", "py", "md"):
            lost.append(name)
    return lost


def test_the_search_itself():
    assert flags_in("leave it out with --ablate, or --no-captions, --batch_size 3, --folder=x") == [
        "ablate"
    ]
    assert commands_in("run `braingen check_images` or `braingen train image`") == [
        "check"
    ] or commands_in("`braingen checks x`") == ["checks"]
    assert settings_in("set training.nothing=3 or `training.max_lr`, training.max_lr=1") == [
        "training.nothing"
    ]
    assert functions_in("see `check_pictures_of\u005fall` and `load_config`, `fit()`") == [
        "check_pictures_of_all"
    ]


SEARCHES = {
    "flags": flags_in,
    "commands": commands_in,
    "settings": settings_in,
    "functions": functions_in,
}


@pytest.mark.parametrize("what", SEARCHES)
def test_messages_and_docstrings_name_what_exists(what):
    lost = [f"{where} {name}" for where, text in literals() for name in SEARCHES[what](text)]
    assert not lost, "\n".join(lost)


@pytest.mark.parametrize("what", [name for name in SEARCHES if name != "functions"])
def test_docs_name_what_exists(what):
    lost = [f"{where} {name}" for where, text in pages() for name in SEARCHES[what](text)]
    assert not lost, "\n".join(lost)


def test_commands_are_functions_that_exist():
    for command in COMMANDS.values():
        assert callable(command.run)
