"""Text is UTF-8 whatever the locale, and no key stands twice: in every file that is read, by every
reader there is.
"""

from __future__ import annotations

import ast
import json
import os
from pathlib import Path
import subprocess
import sys

import pytest

from braingen.config import load_config
from braingen.runtime.errors import UserError
from braingen.runtime.text_files import parse_json, parse_yaml, read_json, read_text, read_yaml

pytestmark = pytest.mark.slow  # left out of `make quick`

ROOT = Path(__file__).parents[2]
FOLDERS = ("src", "scripts", "examples", "benchmarks")
OTHER_OPENERS = {
    "archive",
    "unit",
    "Image",
    "tarfile",
    "zipfile",
    "os",
    "h5py",
    "browser",
    "webbrowser",
    "self",
}
OWN_READERS = {  # JSON that is no file of its own: a header, a note, a line of metrics
    "braingen/runtime/text_files.py",
    "braingen/pretrained/weight_files.py",
    "braingen/targets/text_form.py",
    "braingen/generation/resumable.py",
    "braingen/generation/lora_files.py",
    "braingen/runtime/lock.py",
    "braingen/runtime/run_folder.py",
    "braingen/report/inputs.py",
    "braingen/runtime/state.py",
    "braingen/simulation/backbones/clip.py",
    "braingen/simulation/backbones/build.py",
}


def without_encoding(source: str) -> list[str]:
    """Calls that read or write text in the locale's encoding."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        words = {word.arg: word.value for word in node.keywords}
        if "encoding" in words or None in words:
            continue
        of = node.func.value if isinstance(node.func, ast.Attribute) else None
        name = (
            node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        )
        modes = [
            each.value
            for each in [*node.args, *words.values()]
            if isinstance(each, ast.Constant) and isinstance(each.value, str)
        ]
        modes = [mode for mode in modes if mode and set(mode) <= set("rwaxbt+")]
        binary = any("b" in mode for mode in modes)
        if (
            (name in ("read_text", "write_text") and of is not None)
            or (
                name in ("open", "fdopen")
                and not binary
                and (
                    of is None
                    or name == "fdopen"
                    or getattr(of, "id", getattr(of, "attr", "")) not in OTHER_OPENERS
                )
            )
            or (name in ("NamedTemporaryFile", "TemporaryFile") and modes and not binary)
            or name in ("popen", "loadtxt", "savetxt", "genfromtxt", "FileHandler", "getoutput")
            or any(
                isinstance(words.get(word), ast.Constant) and words[word].value
                for word in ("text", "universal_newlines")
            )
        ):
            found.append(f"line {node.lineno}: {ast.unparse(node)[:80]}")
    return found


def test_the_search_itself():
    bad = (
        "Path(p).read_text()\np.write_text(x)\nopen(p)\nopen(p, 'w')\np.open('a')\nrun(c,"
        " text=True)\nos.fdopen(n, 'w')\nnp.loadtxt(p)"
    )
    assert len(without_encoding(bad)) == 8
    good = (
        "read_text(p)\np.read_text(encoding='utf-8')\nopen(p, 'rb')\nopen(p,"
        " mode='wb')\nImage.open(p)\nos.open(p, 0)\nrun(c)\nopen(p, encoding='utf-8')"
    )
    assert not without_encoding(good)


@pytest.mark.parametrize("folder", FOLDERS)
def test_nothing_is_read_or_written_in_the_encoding_of_the_locale(folder):
    files = sorted((ROOT / folder).rglob("*.py"))
    found = {
        str(path.relative_to(ROOT)): calls
        for path in files
        if (calls := without_encoding(path.read_text(encoding="utf-8")))
    }
    assert files and not found, found


@pytest.mark.slow
def test_json_and_yaml_files_are_read_by_readers_that_refuse_a_key_twice():
    wrong = []
    for path in sorted((ROOT / "src").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            call = ast.unparse(node.func)
            if call not in ("json.load", "yaml.safe_load", "yaml.load", "json.loads"):
                continue
            of_a_file = "read_text" in ast.unparse(node) and call == "json.loads"
            own = str(path.relative_to(ROOT / "src")) in OWN_READERS
            round_trip = call == "json.loads" and ast.unparse(node).startswith(
                "json.loads(json.dumps("
            )
            if not round_trip and (not own or (of_a_file and path.name != "build.py")):
                wrong.append(f"{path.name}:{node.lineno} {call}")
    assert not wrong


TWICE = {
    "a section": "training: {batch_size: 30}\ndata: {root: nowhere}\ntraining: {num_epochs: 1}\n",
    "a setting": "training:\n  batch_size: 30\n  num_epochs: 2\n  batch_size: 20\n",
    "a setting in braces": "training: {batch_size: 30, batch_size: 20}\n",
    "a quoted setting": "training:\n  batch_size: 30\n  'batch_size': 20\n",
}


@pytest.mark.parametrize("name", TWICE)
def test_what_stands_twice_in_a_config_is_refused(tmp_path, name):
    path = tmp_path / "twice.yaml"
    path.write_text(TWICE[name], encoding="utf-8")
    with pytest.raises(UserError, match=r"twice\.yaml .*stands twice, in lines \d+ and \d+"):
        load_config(path)


def test_anchors_and_merges_are_not_taken_for_keys_that_stand_twice():
    assert parse_yaml("a: &x {k: 1, l: 2}\nb: {<<: *x, k: 3}\nc: {<<: *x}") == {
        "a": {"k": 1, "l": 2},
        "b": {"k": 3, "l": 2},
        "c": {"k": 1, "l": 2},
    }


@pytest.mark.parametrize(
    "text",
    [
        "{a: 1, b: {c: {d: 1, d: 2}}}",
        "[{a: 1, a: 2}]",
        "? [1]\n: 2\n? [1]\n: 3",
        "a: 2024-13-45",
        "[" * 5000,
        "a: b: c",
        "\x00",
    ],
)
def test_yaml_that_is_none_is_a_value_error(text):
    with pytest.raises(ValueError, match=r"\w"):
        parse_yaml(text)


@pytest.mark.parametrize(
    "text", ['{"a": {"b": 1, "b": 2}}', '[{"a": 1, "a": 1}]', "[" * 100_000, "{", ""]
)
def test_json_that_is_none_is_a_value_error(text):
    with pytest.raises(ValueError, match=r"\w"):
        parse_json(text)


def test_files_are_read_as_utf_8_with_or_without_a_byte_order_mark(tmp_path):
    path = tmp_path / "file.json"
    for start in (b"", b"\xef\xbb\xbf"):
        path.write_bytes(start + '{"a": "Bär 熊"}'.encode())
        assert read_json(path) == read_yaml(path) == {"a": "Bär 熊"}
    path.write_bytes('{"a": "Bär"}'.encode("latin-1"))
    for reader in (read_text, read_json, read_yaml):
        with pytest.raises(UserError, match="is not UTF-8 text"):
            reader(path)
    with pytest.raises(UserError, match=r"none\.json is missing; do this"):
        read_json(tmp_path / "none.json", "do this")


@pytest.mark.parametrize(
    "locale", [{"LC_ALL": "C"}, {"LC_ALL": "POSIX", "PYTHONIOENCODING": "latin-1"}]
)
def test_the_command_line_works_where_the_locale_is_not_utf_8(tmp_path, locale):
    path = tmp_path / "Bär.yaml"
    path.write_text("run: {folder: Läufe 熊}\nfoo: {a: 1}\n", encoding="utf-8")
    environment = os.environ | {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"} | locale
    for words, code, told in (
        (["--config", str(path)], 2, b"foo"),
        (["--version"], 0, b""),
        (["config"], 0, b"training"),
    ):
        command = [sys.executable, "-m", "braingen.cli", *(["report", *words] if code else words)]
        done = subprocess.run(command, env=environment, capture_output=True, check=False)
        assert done.returncode == code and b"Traceback" not in done.stderr, done.stderr.decode()
        assert told in done.stdout + done.stderr
    code = (
        "from braingen.runtime.text_files import read_yaml; import sys;"
        " sys.stdout.buffer.write(read_yaml(sys.argv[1])['run']['folder'].encode())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], env=environment, capture_output=True, check=True
    )
    assert done.stdout.decode() == "Läufe 熊"


def test_provenance_and_metrics_of_a_run_keep_their_letters(tmp_path):
    code = (
        "from braingen.runtime.run_folder import Run; import sys\nwith Run.start(sys.argv[1],"
        " {'name': 'B\\xe4r \\u718a'}) as run:\n    run.log(1, caption='\\u718a');"
        " run.mark_finished({'a': '\\xe4'}); print(ascii((run.config, run.metrics, run.summary)))"
    )
    environment = os.environ | {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LC_ALL": "C"}
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "run")],
        env=environment,
        capture_output=True,
        check=True,
    )
    assert ast.literal_eval(done.stdout.decode()) == (
        {"name": "Bär 熊"},
        [{"step": 1, "caption": "熊"}],
        {"a": "ä"},
    )
    assert json.loads((tmp_path / "run" / "finished").read_text(encoding="utf-8")) == {"a": "ä"}
