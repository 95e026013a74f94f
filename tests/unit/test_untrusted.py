"""Whatever comes from a file is data: names do not reach other files, cells are no formulas, text
is no markup.
"""

from __future__ import annotations

import ast
import csv
import io
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from rich.table import Table
from rich.text import Text
from unit.fake_human_eval import answer_rows, fake_plan
from unit.fake_scans import write_fake_scans
from unit.told_commands import ROOT

from braingen.cli import main
from braingen.data.volumes import VoxelPlaces, load_places, save_places
from braingen.human_eval.analysis import analyse, markdown
from braingen.human_eval.answers import COLUMNS, as_csv, check_raters, checksum, read_result
from braingen.human_eval.study import _print_files
from braingen.runtime.console import Progress, add_row, console, track
from braingen.runtime.data_layout import Layout
from braingen.runtime.errors import UserError
from braingen.runtime.untrusted import (
    csv_cell,
    csv_text,
    csv_value,
    folder_name,
    markdown_cell,
    one_line,
    path_below,
)

OUTSIDE = [
    "../private.png",
    "a/../../private.png",
    "../../private.png",
    "/etc/passwd",
    "\\private.png",
    "C:\\private.png",
    "C:private.png",
    "..\\private.png",
    "a\\..\\..\\private.png",
    "//host/share/x.png",
    "",
    " ",
    "a\0b.png",
    "a\nb.png",
    "a" * 300 + ".png",
    "..",
    "x/" * 3000 + "a.png",
    "link.png",
    "folder_link/private.png",
]


@pytest.mark.parametrize("name", [*OUTSIDE, None, 3, ["a"]])
def test_no_name_leads_out_of_the_folder(tmp_path, name):
    root, private = tmp_path / "scans", tmp_path / "private"
    root.mkdir()
    private.mkdir()
    (private / "private.png").touch()
    (root / "link.png").symlink_to(private / "private.png")
    (root / "folder_link").symlink_to(private)
    with pytest.raises(UserError, match="the table names") as told:
        path_below(root, name, "the table")
    assert len(str(told.value)) < 600 and "\n" not in str(told.value)


@pytest.mark.parametrize(
    "name",
    [
        "a.png",
        "set 1/ä 熊 🙂.png",
        "-rf.png",
        "a..b.png",
        ".hidden.png",
        "=1+1.png",
        "inner_link.png",
        "~/a.png",
    ],
)
def test_names_below_the_folder_are_taken_as_they_are(tmp_path, name):
    (tmp_path / "real.png").touch()
    (tmp_path / "inner_link.png").symlink_to("real.png")
    assert path_below(tmp_path, name, "the table") == tmp_path / name


@pytest.mark.parametrize("name", ["../../private.png", "ABSOLUTE", "link.png"])
def test_pictures_outside_the_scans_are_not_taken_into_the_data(tmp_path, capsys, name):
    fake = write_fake_scans(tmp_path / "scans")
    private = tmp_path / "private.png"
    first = fake.root / "stimuli" / fake.shown["01"][0][0]
    private.write_bytes(first.read_bytes())
    (fake.root / "stimuli" / "link.png").symlink_to(private)
    absolute = name == "ABSOLUTE"
    name = str(private) if absolute else name
    for table in fake.root.rglob("*_events.tsv"):
        table.write_text(
            table.read_text(encoding="utf-8").replace(fake.shown["01"][0][0], name),
            encoding="utf-8",
        )
    (fake.root / "captions.json").unlink(missing_ok=True)
    assert (
        main(
            [
                "prepare",
                "--scans",
                str(fake.root),
                "--data_path",
                str(tmp_path / "out"),
                "--no-captions",
            ]
        )
        == 2
    )
    told = capsys.readouterr().err
    if absolute:  # looked for by its last part among the stimuli, and nowhere else
        assert "private.png is missing" in told
    else:
        assert "_events.tsv" in told and name[:30] in told  # long names are shortened
    assert not Layout.of(tmp_path / "out").images().exists()


def test_order_json_names_a_mask_beside_it(tmp_path):
    layout = Layout.of(tmp_path)
    save_places(layout, 1, VoxelPlaces(np.ones((2, 2, 2), bool), "C", np.eye(4), "made here"))
    path = layout.volumes(1) / "order.json"
    order = json.loads(path.read_text(encoding="utf-8"))
    for name in ("../nsdgeneral.nii.gz", "/nsdgeneral.nii.gz", 7):
        path.write_text(json.dumps(order | {"mask": name}), encoding="utf-8")
        with pytest.raises(UserError, match=r"order\.json names"):
            load_places(layout, 1)


def test_files_with_dots_in_their_names_have_folders_of_their_own():
    endings = (".npy", ".nii", ".nii.gz")
    assert folder_name("x/subj01.session01.npy", endings) == "subj01.session01"
    assert folder_name("subj01.session02.nii.gz", endings) == "subj01.session02"
    assert folder_name("Bär 熊 🙂.NPY", endings) == "Bär 熊 🙂"
    strange = [
        ".npy",
        "..npy",
        ".hidden.npy",
        "-rf.npy",
        "a\nb.npy",
        "a_b.npy",
        " .npy",
        "x" * 250 + ".npy",
        "x" * 251,
        "...",
        "\udcff.npy",
    ]
    names = [folder_name(name, endings) for name in strange]
    assert len(set(names)) == len(names)
    for name in names:
        assert (
            name
            and not name.startswith((".", "-"))
            and name.isprintable()
            and "/" not in name
            and len(name.encode()) <= 120
        )
        Path(name).joinpath("index.json")  # a part of a path


def test_cells_are_no_formulas_and_come_back():
    texts = [
        "=1+1",
        "+1",
        "-x",
        "@SUM(1)",
        "\t=1",
        "\n=1",
        " =1",
        "＝1",
        "'quoted",
        "plain",
        "a=b",
        "",
    ]
    for text in texts:
        assert csv_value(csv_cell(text)) == text
        assert not csv_cell(text).lstrip().startswith(("=", "+", "-", "@", "＝"))
    assert csv_cell(-1.5) == -1.5 and csv_cell("\r=1") == "'\n=1"
    table = pd.DataFrame(
        {"=name": texts, "number": np.linspace(-1, 1, len(texts)), "mixed": [-1.5, *texts[1:]]},
        index=pd.Index(texts, name="id"),
    )
    found = list(csv.reader(io.StringIO(csv_text(table))))
    assert found[0] == ["id", "'=name", "number", "mixed"]
    assert (
        [csv_value(row[0]) for row in found[1:]] == texts
        and float(found[1][2]) == -1
        and float(found[1][3]) == -1.5
    )
    assert not any(cell.startswith(("=", "@", "\t")) for row in found for cell in row)


def test_text_is_no_markup():
    assert one_line("a\x1b[31mb\nc\u202ed") == "a\ufffd[31mb\ufffdc\ufffdd"
    assert len(one_line("x" * 500, 80)) == 80
    assert markdown_cell("<script>|[a](b)`x_y\n|") == "&lt;script&gt;\\|\\[a\\](b)\\`x_y\ufffd\\|"


@pytest.mark.slow
def test_printing_goes_through_consoles_that_know_no_markup():
    wrong = []
    for path in sorted((ROOT / "src").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if (
                isinstance(node, ast.ImportFrom)
                and (node.module or "").startswith("rich")
                and path.name != "console.py"
            ):
                wrong += [
                    f"{path.name}: {alias.name}"
                    for alias in node.names
                    if alias.name in ("Progress", "track", "print")
                ]
            if isinstance(node, ast.Call):
                call = ast.unparse(node.func)
                if (
                    call in ("Console", "rich.print") and path.name != "console.py"
                ) or call.endswith((".to_csv", ".from_markup")):
                    wrong.append(f"{path.name}:{node.lineno} {call}")
    # what is written for the simulated raw release are numbers and file names of our own
    assert [each for each in wrong if not each.startswith(("untrusted.py", "raw_release.py"))] == []


NASTY = [
    "[/x]",
    "[bold]",
    "[link=http://x]a[/link]",
    ":smile:",
    "<script>",
    "\x1b[31mred",
    "a\nb",
    "\\[/x]",
    "[",
]


@pytest.mark.parametrize("text", NASTY)
def test_consoles_tables_and_bars_show_text_as_it_is(capsys, text):
    console().print(text, soft_wrap=True)
    table = Table("name")
    add_row(table, text)
    console().print(table)
    shown = capsys.readouterr().out
    assert one_line(text) in shown.split("\n", 2)[2] and "\x1b" not in shown.split("\n", 2)[2]
    list(track([1], description=text))
    with Progress() as progress:
        progress.add_task(text, total=1)
        assert Text.from_markup(progress.tasks[0].description, emoji=False).plain == one_line(text)


def test_messages_hold_no_control_characters(capsys):
    assert main(["report", "--config", "a\x1b]0;title\x07b.yaml"]) == 2
    assert "\x1b" not in capsys.readouterr().err


CODES = [
    "[/x]",
    "",
    "a b",
    "x" * 33,
    "=1+1",
    "<script>alert(1)</script>",
    "ä",
    "../x",
    "a\x1b[31m",
    "[bold]",
]


@pytest.mark.parametrize("code", CODES)
def test_a_raters_strange_code_stops_nobody_elses_answers(tmp_path, capsys, code):
    plan = fake_plan(range(8))
    for name, rater in (("good", "anna"), ("bad", code)):
        (tmp_path / f"{name}.csv").write_text(as_csv(answer_rows(plan, rater)), encoding="utf-8")
    found = {
        verdict.result.path.stem: verdict
        for verdict in check_raters(
            [read_result(path, plan) for path in sorted(tmp_path.iterdir())], plan
        )
    }
    assert found["good"].reason == "" and "code" in found["bad"].reason
    analysed = analyse(plan, list(found.values()), 20, 0)
    assert "<script>" not in markdown(analysed) and analysed.findings[0].raters == 1
    cells = [
        cell
        for row in csv.reader(io.StringIO(csv_text(analysed.files, index=False)))
        for cell in row
    ]
    assert not any(cell.startswith(("=", "@", "+")) for cell in cells)
    _print_files(console(), list(found.values()))
    assert "\x1b" not in capsys.readouterr().out


OTHER_FILES = {
    "empty": b"",
    "no text": b"\xff\xfe\x00",
    "zeros": b"\0" * 100,
    "a table": b"a,b\n1,2\n",
    "only names": ",".join(COLUMNS).encode() + b"\n",
    "a huge cell": ",".join(COLUMNS).encode() + b"\n" + b"x" * 200_000 + b"\n",
    "a picture": b"\x89PNG\r\n\x1a\n" + bytes(range(256)),
}


@pytest.mark.parametrize("name", OTHER_FILES)
def test_a_file_that_is_no_result_counts_as_none_and_stops_nobody(tmp_path, name):
    path = tmp_path / "x.csv"
    path.write_bytes(OTHER_FILES[name])
    result = read_result(path, fake_plan(range(8)))
    assert result.problems and not result.answers


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("number", "²"),
        ("number", "9" * 5000),
        ("rt_ms", "abc"),
        ("rt_ms", "inf"),
        ("rt_ms", "-1"),
        ("rt_ms", "1e999"),
    ],
)
def test_numbers_in_a_result_file_are_numbers(tmp_path, column, value):
    plan = fake_plan(range(8))
    rows = answer_rows(plan, "anna")
    rows[0][COLUMNS.index(column)] = value
    rows[0][-1] = checksum(rows[0][:-1])
    (tmp_path / "x.csv").write_text(as_csv(rows), encoding="utf-8")
    assert len(read_result(tmp_path / "x.csv", plan).problems) == 1
