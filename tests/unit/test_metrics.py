"""One registry of scores: an unregistered one is an error wherever scores go, and never better when
higher by default.
"""

from __future__ import annotations

from pathlib import Path
import re

import numpy as np
import pandas as pd
import pytest

from braingen.cli import main
from braingen.config.overrides import parse_overrides
from braingen.evaluation import compare, metrics
from braingen.evaluation import tables as table
from braingen.evaluation.curves import Curve, Point, markdown
from braingen.evaluation.evaluate import note_absent_controls
from braingen.evaluation.features import recipes
from braingen.evaluation.metric_table import score_images
from braingen.evaluation.metric_type import ALIKE, GROUPS, Metric
from braingen.evaluation.metrics import METRICS, metric
from braingen.evaluation.uncertainty import Comparison, Summary
from braingen.report import tables
from braingen.report.compared import _ordered
from braingen.runtime.errors import UserError

ROOT = Path(__file__).parents[2]
POINT = Point("way", 1, "unheard_of", Summary(0, 0, 0, None, None, 1, 1), None)


PICTURES = np.random.default_rng(0).random((2, 3, 16, 16)).astype(np.float32)


class Network:
    """A comparison network whose score nobody registered."""

    name, weights = "unheard_of", "0"

    def features(self, images_B3HW):
        raise AssertionError("nothing is computed for a score that is not registered")


def run_folder(folder: Path, *scores: str) -> Path:
    folder.mkdir()
    columns = {name: np.linspace(0, 1, 6) for name in scores} | {
        "object_true": ["cat"] * 6,
        "object_predicted": ["dog"] * 6,
    }
    pd.DataFrame(columns, index=pd.Index(range(6), name="image")).to_csv(
        folder / "scores_paired.csv"
    )
    return folder


PLACES = {
    "sheet": lambda: score_images(PICTURES, [1, 2], PICTURES, [1, 2], [Network()]),  # type: ignore[list-item]
    "table": lambda: table.markdown([table.TableRow("m", "p", 1, {"unheard_of": 0.5})]),
    "latex": lambda: table.latex([table.TableRow("m", "p", 1, {"unheard_of": 0.5})]),
    "csv": lambda: table.comma_separated([table.TableRow("m", "p", 1, {"unheard_of": 0.5})]),
    "best and worst": lambda: table.best_and_worst(pd.DataFrame({"unheard_of": [0.0, 1.0]})),
    "curve": lambda: markdown(Curve("t", "x", {"way": "w"}, [POINT])),
    "verdict": lambda: compare.conclusion(
        Comparison("unheard_of", "a", "b", 1, 0.5, 2, 0.001, 0.001, 9)
    ),
    "report": lambda: tables.score_rows({"unheard_of": {"value": 0.5}}),
    "report, an image": lambda: tables.image_scores({"image": "1", "unheard_of": "0.5"}),
    "report, direction": lambda: tables.direction("unheard_of"),
    "report, comparisons": lambda: _ordered([{"score": "unheard_of"}]),
}


@pytest.mark.parametrize("place", PLACES)
def test_a_score_that_is_not_registered_is_an_error(place: str) -> None:
    with pytest.raises(
        UserError, match=r"There is no score '(two_way_)?unheard_of' in the registry"
    ):
        PLACES[place]()


def test_compare_names_the_column_it_does_not_know(tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "run", "pixcorr", "two_way_clap")
    with pytest.raises(
        UserError,
        match=(
            r"scores_paired\.csv: There is no score 'two_way_clap' .* Did you mean two_way_clip\?"
        ),
    ):
        compare.read_run(folder)


def test_compare_leaves_no_score_out(tmp_path: Path) -> None:
    assert list(compare.read_run(run_folder(tmp_path / "run", *METRICS)).table) == list(METRICS)


@pytest.mark.parametrize("p", [1.23e-05, 0.123])
@pytest.mark.parametrize("runs", [["runs/first", "runs/second"], ["a[/x]", "b" * 90, "c"]])
def test_printed_comparisons_fit_a_terminal_of_80_columns(runs, p, monkeypatch, capsys) -> None:
    """Nothing is cut off or broken but a name longer than the line."""
    monkeypatch.setenv("COLUMNS", "80")
    pairs = [(one, other) for k, one in enumerate(runs) for other in runs[k + 1 :]]
    found = [
        Comparison(score, one, other, -1.2345, -2.3456, -1.1234, p, p, 9)
        for score in METRICS
        for one, other in pairs
    ]
    compare.print_comparisons(found)
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80 and "…" not in "".join(lines)
    whole = "".join(lines).replace(" ", "")
    for score in METRICS:
        verdict = compare.conclusion(found[0]._replace(score=score)).split()
        figures = ["-1.2345", "-2.3456", "to", "-1.1234", f"{p}", *verdict]
        begins = [line.split()[0] for line in lines if line.split()[1:] == figures]
        one_line = 24
        if len(score) <= one_line:
            assert begins.count(score) == len(pairs)
        else:  # the rest of the name is the line below
            assert sum(score.startswith(begun) for begun in begins) >= len(pairs)
    assert all(f"{one}minus{other}" in whole for one, other in pairs)


def test_a_registered_score_is_taken_everywhere_with_its_direction(
    tmp_path: Path, monkeypatch
) -> None:
    """One entry is all that a new score needs."""
    monkeypatch.setitem(
        METRICS,
        "haze",
        Metric("Haze", "Haze of the picture", "how pale it is", ALIKE, 9, higher_is_better=False),
    )
    assert "Haze ↓" in table.markdown([table.TableRow("m", "p", 1, {"haze": 0.5})])
    assert "haze,lower" in table.comma_separated([table.TableRow("m", "p", 1, {"haze": 0.5})])
    assert compare.conclusion(Comparison("haze", "a", "b", 1, 0.5, 2, 0.001, 0.001, 9)) == "worse"
    ((group, (row,)),) = tables.score_rows({"haze": {"value": 0.5}})
    assert (group, row.title) == (
        ALIKE,
        "Haze of the picture",
    ) and row.meaning == "how pale it is; lower is better"
    assert list(compare.read_run(run_folder(tmp_path / "run", "haze")).table) == ["haze"]
    best, worst = table.best_and_worst(pd.DataFrame({"haze": [0.0, 1.0]}), 1)
    assert (list(best), list(worst)) == ([0], [1])


def test_every_entry_is_complete_and_none_is_told_twice() -> None:
    places = [(each.group, each.place) for each in METRICS.values()]
    assert len(set(places)) == len(places) and {group for group, _ in places} == set(GROUPS)
    assert (
        len({each.title for each in METRICS.values()})
        == len({each.words for each in METRICS.values()})
        == len(METRICS)
    )
    assert all(each.meaning for each in METRICS.values())


def test_every_network_and_judge_has_its_score() -> None:
    for name, recipe in recipes().items():
        metric(name if getattr(recipe, "use", "two_way") != "two_way" else f"two_way_{name}")


def test_the_table_in_the_docs_is_the_registry() -> None:
    text = (ROOT / "docs/scores.md").read_text()
    rows = re.findall(r"^\| (`[^|]*`) \| [^|]* \| (higher|lower|lower, higher) \|$", text, re.M)
    found = {}
    for keys, better in rows:
        names, ways = re.findall(r"`(\w+)`", keys), better.split(", ")
        found |= dict(zip(names, ways if len(ways) == len(names) else ways * len(names)))
    assert found == {
        name: "higher" if each.higher_is_better else "lower" for name, each in METRICS.items()
    }


def test_help_lists_the_scores(capsys) -> None:
    assert main(["evaluate", "--help"]) == 0
    printed = capsys.readouterr().out
    assert all(f"  {name}: " in printed for name in METRICS) and "lower is better" in printed


def test_the_fields_columns_come_first() -> None:
    assert [METRICS[name].title for name in metrics.FIELD] == [
        "PixCorr",
        "SSIM",
        "Alex(2)",
        "Alex(5)",
        "Incep",
        "CLIP",
        "Eff",
        "SwAV",
    ]


@pytest.mark.parametrize(
    ("scored", "told"),
    [
        (["brain"], "random and oracle, whose"),
        (["brain", "oracle"], "Without scores: random, whose"),
        (["brain", "random", "oracle"], None),
    ],
)
def test_evaluate_tells_how_empty_controls_are_filled(scored, told, capsys) -> None:
    note_absent_controls(Path("runs/mine"), scored)
    out = capsys.readouterr().out
    if told is None:
        assert out == ""
        return
    assert told in out and "`braingen reconstruct --folder runs/mine`" in out
    flags = {"random": "--random_fmri", "oracle": "--oracle"}
    for name, flag in flags.items():
        assert (flag in out) == (name not in scored)
        _, overrides = parse_overrides([flag])
        assert overrides == {"generation.source": name}
