"""A study of people's answers: what is asked, what one rater sees, which files count, and figures
with an independent answer.
"""

from __future__ import annotations

from collections import Counter
import json
from pathlib import Path
import shutil
import subprocess

import numpy as np
import pytest
from unit.fake_human_eval import answer_rows, fake_plan

from braingen.evaluation.metrics import METRICS as TABLE_COLUMNS
from braingen.human_eval import rater, site, statistics
from braingen.human_eval.analysis import analyse, markdown, scores_of
from braingen.human_eval.answers import COLUMNS, Result, as_csv, check_raters, checksum, read_result
from braingen.human_eval.plan import SEEN, Plan, choose_images, plan_as_json, plan_from_json
from braingen.human_eval.session import Draw, session
from braingen.runtime.errors import UserError

NONE = float("nan")
KRIPPENDORFF_2011 = np.array(
    [
        [1, 2, 3, 3, 2, 1, 4, 1, 2, NONE, NONE, NONE],
        [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, NONE, 3],
        [NONE, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, NONE],
        [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, NONE],
    ]
)
"""Four observers, twelve units: the example of sections C and E of *Computing Krippendorff's
Alpha-Reliability* (2011).
"""

# --- statistics -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("level", "alpha"), [("nominal", 0.743), ("ordinal", 0.815), ("interval", 0.849)]
)
def test_alpha_is_that_of_the_literature(level: statistics.Level, alpha: float) -> None:
    assert statistics.krippendorff_alpha(KRIPPENDORFF_2011, level) == pytest.approx(alpha, abs=5e-4)


def test_alpha_of_the_binary_example() -> None:
    """Section A of the same text: two observers, ten units."""
    said = np.array([[0, 1, 0, 0, 0, 0, 0, 0, 1, 0], [1, 1, 1, 0, 0, 1, 0, 0, 0, 0]], float)
    assert statistics.krippendorff_alpha(said, "nominal") == pytest.approx(0.095, abs=5e-4)


def test_alpha_where_it_is_simple() -> None:
    generator = np.random.default_rng(0)
    truth = generator.integers(0, 2, 400).astype(float)
    assert statistics.krippendorff_alpha(
        np.stack([truth, truth, truth]), "nominal"
    ) == pytest.approx(1)
    assert (
        abs(
            statistics.krippendorff_alpha(
                generator.integers(0, 2, (3, 400)).astype(float), "nominal"
            )
            or 9
        )
        < 0.1
    )
    assert statistics.krippendorff_alpha(np.stack([truth, 1 - truth]), "nominal") == pytest.approx(
        -1, abs=0.01
    )
    assert statistics.krippendorff_alpha(np.ones((3, 5)), "nominal") is None  # nothing varies
    assert statistics.krippendorff_alpha(truth[None], "nominal") is None  # nobody to agree with
    assert statistics.krippendorff_alpha(np.full((2, 3), NONE), "ordinal") is None


@pytest.mark.parametrize(
    ("hits", "n", "low", "high"),
    [
        (0, 10, 0.0, 0.3085),
        (8, 10, 0.4439, 0.9748),
        (10, 10, 0.6915, 1.0),
        (15, 50, 0.1786, 0.4461),
    ],
)
def test_exact_intervals(hits: int, n: int, low: float, high: float) -> None:
    """Clopper and Pearson's limits as printed in tables; with none or all of ten, 1 - 0.025 ** (1 /
    10).
    """
    share = statistics.exact_share(hits, n)
    assert (share.value, share.low, share.high) == pytest.approx((hits / n, low, high), abs=5e-5)
    assert statistics.exact_share(0, 0) == (None, None, None, 0, 0)


def test_the_exact_test() -> None:
    assert statistics.exact_p(9, 10) == pytest.approx(2 * 11 / 1024)
    assert statistics.exact_p(5, 10) == 1 and statistics.exact_p(0, 0) is None


def test_the_interval_over_raters_and_images_is_wider_where_answers_hang_together() -> None:
    generator = np.random.default_rng(1)
    images = np.arange(30)
    independent = (generator.random((10, 30)) < 0.7).astype(float)
    by_image = np.tile(generator.random(30) < 0.7, (10, 1)).astype(float)
    by_rater = np.repeat((np.arange(10) < 7)[:, None], 30, 1).astype(float)
    found = [
        statistics.mean_over_raters_and_images(answers, images, 2000, 0)
        for answers in (independent, by_image, by_rater)
    ]
    widths = [each.high - each.low for each in found]
    exact = statistics.exact_share(210, 300)
    assert (
        widths[0] < widths[1] and widths[0] < widths[2] and widths[2] > 2 * (exact.high - exact.low)
    )
    assert statistics.mean_over_raters_and_images(by_rater, images, 50, 0).value == pytest.approx(
        0.7
    )
    assert (
        statistics.mean_over_raters_and_images(np.full((2, 3), NONE), np.arange(3), 10, 0) is None
    )


# --- the plan -------------------------------------------------------------------------------------


def test_every_image_is_once_named_and_once_a_distractor() -> None:
    plan = fake_plan(range(100, 140), count=12)
    tests = [
        trial
        for trial in plan.trials
        if trial.task == "identification" and trial.kind == "test" and trial.method == "brain"
    ]
    assert Counter(trial.options[0] for trial in tests) == Counter(
        trial.options[1] for trial in tests
    )
    assert len(tests) == 12 and all(
        trial.options[0] != trial.options[1] and trial.roles == ("seen", "other") for trial in tests
    )


def test_checks_use_other_images_where_there_are_enough() -> None:
    many, few = fake_plan(range(40), count=20), fake_plan(range(5))
    for plan, separate in ((many, True), (few, False)):
        asked, checked = (
            {trial.image for trial in plan.trials if trial.kind == kind}
            for kind in ("test", "check")
        )
        assert asked.isdisjoint(checked) is separate
    with pytest.raises(UserError, match="at least 4 images"):
        choose_images([1, 2, 3], 3, 2, 0)


def test_a_plan_survives_json() -> None:
    plan = fake_plan(range(6))
    assert plan_from_json(json.loads(json.dumps(plan_as_json(plan)))) == plan


# --- what one rater sees --------------------------------------------------------------------------


def test_a_session_is_a_function_of_the_code() -> None:
    plan = fake_plan(range(30), count=20)
    assert session(plan, "P01") == session(plan, "P01")
    orders = {tuple(shown.trial.id for shown in session(plan, f"P{k:02d}")) for k in range(20)}
    assert len(orders) == 20


def test_a_session_is_balanced() -> None:
    plan = fake_plan(range(60), count=40)
    for code in ("P01", "P02", "somebody-else"):
        shown = session(plan, code)
        asked = [
            each
            for each in shown
            if each.trial.task == "identification" and each.trial.kind == "test"
        ]
        assert (
            len({each.trial.image for each in asked}) == len(asked) == 40
        )  # every image once, whatever the method
        assert Counter(each.trial.method for each in asked) == {"brain": 20, "other_one": 20}
        for task in plan.tasks:
            flips = [each.flipped for each in shown if each.trial.task == task]
            assert abs(2 * sum(flips) - len(flips)) <= 1
            places = [
                k
                for k, each in enumerate(e for e in shown if e.trial.task == task)
                if each.trial.kind == "check"
            ]
            parts = [4 * place // len(flips) for place in places]
            assert max(Counter(parts).values()) <= 2  # attention checks do not come all at once
        tasks = [each.trial.task for each in shown]
        assert sorted(tasks, key=plan.tasks.index) == tasks


def test_sides_and_methods_do_not_go_together_over_raters() -> None:
    plan = fake_plan(range(30), count=20)
    sessions = [
        sorted(session(plan, f"P{k:03d}"), key=lambda shown: shown.trial.id) for k in range(200)
    ]
    flips = np.array(
        [[shown.flipped for shown in each if shown.trial.task == "similarity"] for each in sessions]
    )
    assert np.abs(flips.mean(0) - 0.5).max() < 4 * 0.5 / np.sqrt(200)
    neighbours = (flips[:-1] == flips[1:]).mean()  # codes that differ by one digit
    assert abs(neighbours - 0.5) < 0.05


def test_a_part_of_the_images_per_rater() -> None:
    plan = fake_plan(range(60), count=40, per_rater=10)
    tests = [each.trial for each in session(plan, "P01") if each.trial.kind == "test"]
    assert Counter(trial.task for trial in tests) == {
        "identification": 10,
        "preference": 10,
        "similarity": 20,
    }
    covered = {
        each.trial.image
        for k in range(30)
        for each in session(plan, f"P{k}")
        if each.trial.kind == "test"
    }
    assert len(covered) == 40


def test_numbers_are_drawn_evenly() -> None:
    draw = Draw("0/P01")
    counts = np.bincount([draw.below(10) for _ in range(10_000)], minlength=10)
    assert (
        len(counts) == 10 and ((counts - 1000) ** 2 / 1000).sum() < 30
    )  # chi squared, 9 degrees of freedom, p about 0.0004


@pytest.mark.skipif(
    shutil.which("node") is None, reason="no node; the browser test compares the same"
)
def test_javascript_draws_the_same(tmp_path: Path) -> None:
    plan = fake_plan(range(20), per_rater=7)
    (tmp_path / "plan.json").write_text(json.dumps(plan_as_json(plan)))
    script = (
        (site.ASSETS / "session.js").read_text()
        + "\nconst plan = JSON.parse(require('fs').readFileSync(process.argv[2]));"
        + "const sides = (code) => sessionOf(plan, code).map((s) => [s.trial.id, s.left, s.right]);"
        + "console.log(JSON.stringify(['P01', 'Ä-2'].map(sides)));"
    )
    (tmp_path / "run.js").write_text(script)
    words = ["node", str(tmp_path / "run.js"), str(tmp_path / "plan.json")]
    said = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    assert json.loads(said) == [
        [[s.trial.id, s.left, s.right] for s in session(plan, code)] for code in ("P01", "Ä-2")
    ]


# --- result files ---------------------------------------------------------------------------------

PLAN = fake_plan(range(12))


def write(folder: Path, rows: list[list[str]], name: str = "P01.csv") -> Path:
    path = folder / name
    path.write_text(as_csv(rows), encoding="utf-8")
    return path


def test_a_result_file_is_read_as_it_was_written(tmp_path: Path) -> None:
    result = read_result(write(tmp_path, answer_rows(PLAN, "P01")), PLAN)
    assert result.problems == () and result.rater == "P01" and not result.simulated
    assert len(result.answers) == result.expected == len(session(PLAN, "P01"))
    assert result.checks == 12 and result.failed == 0


def test_spreadsheets_may_save_it_again(tmp_path: Path) -> None:
    path = write(tmp_path, answer_rows(PLAN, "P01"))
    before = read_result(path, PLAN)
    path.write_text(
        "\ufeff" + path.read_text().replace(",", ";").replace("\n", "\r\n"), encoding="utf-8"
    )
    assert read_result(path, PLAN) == before


def column(name: str) -> int:
    return COLUMNS.index(name)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("image", "999", "image is '999', but rater P01 was shown"),
        ("trial", "identification brain 999", "were ids or the rater's code edited"),
        ("method", "mine", "method is 'mine'"),
        ("number", "400", "is not one of the"),
        ("answer", "9", "answer '9' is none of"),
        ("rt_ms", "12", "its checksum does not match"),
        ("correct", "1x", "its checksum does not match"),
        ("rater", "P02", "column rater has 2 values in one file: P01, P02"),
        ("session", "bb", "column session has 2 values"),
        ("study", "0123456789", "column study has 2 values"),
    ],
)
def test_edited_rows_are_named(tmp_path: Path, name: str, value: str, message: str) -> None:
    rows = answer_rows(PLAN, "P01")
    rows[5][column(name)] = value
    result = read_result(write(tmp_path, rows), PLAN)
    assert any(message in problem for problem in result.problems), result.problems


def test_an_exchanged_rater_code_betrays_itself(tmp_path: Path) -> None:
    """Even with checksums made anew: what the other rater would have been shown is known."""
    rows = [[*row[:1], "P02", *row[2:-1]] for row in answer_rows(PLAN, "P01")]
    result = read_result(write(tmp_path, [[*row, checksum(row)] for row in rows]), PLAN)
    assert "rater P02 was shown" in result.problems[0]


def test_answers_of_another_study_and_other_files(tmp_path: Path) -> None:
    other = fake_plan(range(13))
    assert (
        "answers of another study"
        in read_result(write(tmp_path, answer_rows(other, "P01")), PLAN).problems[0]
    )
    rows = answer_rows(PLAN, "P01")
    assert (
        "answered more than once, e.g. number 3"
        in read_result(write(tmp_path, [*rows, rows[2]]), PLAN).problems[0]
    )
    for content, message in (
        ("a,b\n1,2\n", "not a result file"),
        (",".join(COLUMNS) + "\n", "holds no answers"),
    ):
        (tmp_path / "x.csv").write_text(content)
        assert message in read_result(tmp_path / "x.csv", PLAN).problems[0]
    (tmp_path / "x.csv").write_bytes(b"\xff\xfe\x00")
    assert "is not UTF-8 text" in read_result(tmp_path / "x.csv", PLAN).problems[0]


def results_of(folder: Path, plan: Plan, **files: list[list[str]]) -> list[Result]:
    return [read_result(write(folder, rows, f"{name}.csv"), plan) for name, rows in files.items()]


def test_which_files_count(tmp_path: Path) -> None:
    good = answer_rows(PLAN, "P01")
    found = check_raters(
        results_of(
            tmp_path,
            PLAN,
            a=good,
            b_copy=good,
            c_again=answer_rows(PLAN, "P01", seed=1, time="2026-02-02T00:00:00Z"),
            d_asleep=answer_rows(PLAN, "P02", attentive=False),
            e_short=answer_rows(PLAN, "P03")[:-1],
            f_robot=answer_rows(PLAN, "simulated-1", simulated="1"),
            g=answer_rows(PLAN, "P04"),
        ),
        PLAN,
    )
    reasons = {verdict.result.path.stem: verdict.reason for verdict in found}
    assert [name for name, reason in reasons.items() if not reason] == ["a", "g"]
    assert reasons["b_copy"] == "a copy of a.csv"
    assert "took part more than once; a.csv counts" in reasons["c_again"]
    assert reasons["d_asleep"] == "failed 12 of 12 attention checks; 1 may be failed"
    assert reasons["e_short"].startswith("incomplete: ")
    assert reasons["f_robot"] == "a simulated rater, and there are people"
    alone = check_raters(
        results_of(tmp_path, PLAN, f_robot=answer_rows(PLAN, "simulated-1", simulated="1")), PLAN
    )
    assert alone[0].reason == ""


# --- figures --------------------------------------------------------------------------------------


def test_figures_are_those_counted_by_hand(tmp_path: Path) -> None:
    rows = {code: answer_rows(PLAN, code, share=0.75) for code in ("P01", "P02", "P03")}
    found = check_raters(
        results_of(tmp_path, PLAN, **rows, asleep=answer_rows(PLAN, "P09", attentive=False)), PLAN
    )
    result = analyse(PLAN, found, 200, 0)
    tests = [
        dict(zip(COLUMNS, row))
        for each in rows.values()
        for row in each
        if row[column("kind")] == "test"
    ]
    for finding in result.findings:
        mine = [
            row
            for row in tests
            if row["task"] == finding.task and row["method"] in ("", finding.method)
        ]
        if finding.task == "similarity":
            assert (
                finding.value == pytest.approx(np.mean([float(row["answer"]) for row in mine]))
                and finding.low is None
            )
            continue
        hits = sum(
            row["chosen"] == (SEEN if finding.task == "identification" else finding.method)
            for row in mine
        )
        assert (finding.value, finding.low, finding.high) == statistics.exact_share(
            hits, len(mine)
        )[:3]
        assert finding.answers == len(mine) and finding.raters == 3
    per_rater = result.raters.query("rater == 'P02' and task == 'preference'").iloc[0]
    assert per_rater["hits"] == sum(
        row["chosen"] == "brain"
        for row in tests
        if row["rater"] == "P02" and row["task"] == "preference"
    )
    image = int(tests[0]["image"])
    per_image = result.images.query(f"image == {image} and task == 'preference'").iloc[0]
    assert per_image["n"] == 3 and per_image["low"] == pytest.approx(
        statistics.exact_share(int(per_image["hits"]), 3).low
    )
    assert any("asleep.csv: failed 12 of 12 attention checks" in note for note in result.notes)
    assert "P09" not in set(result.raters["rater"])


def test_agreement_follows_the_answers(tmp_path: Path) -> None:
    """Raters who answer alike agree fully, raters who answer at random do not."""
    plan = fake_plan(range(40), count=30, tasks=("preference",))
    alike, random = [], []
    for k in range(4):
        rows = answer_rows(plan, f"P{k}")
        for row, shown in zip(rows, session(plan, f"P{k}")):
            if shown.trial.kind == "test":
                wanted = "brain" if shown.trial.image % 3 else "other_one"
                row[column("answer")] = "left" if shown.left == wanted else "right"
        alike.append(
            read_result(
                write(tmp_path, [[*row[:-1], checksum(row[:-1])] for row in rows], f"a{k}.csv"),
                plan,
            )
        )
        random.append(
            read_result(write(tmp_path, answer_rows(plan, f"P{k}", share=0.5), f"r{k}.csv"), plan)
        )
    assert analyse(plan, check_raters(alike, plan), 50, 0).agreement[0].alpha == pytest.approx(1)
    assert abs(analyse(plan, check_raters(random, plan), 50, 0).agreement[0].alpha or 9) < 0.2


def test_simulated_answers_are_never_called_peoples(tmp_path: Path) -> None:
    found = check_raters(
        results_of(tmp_path, PLAN, a=answer_rows(PLAN, "simulated-1", simulated="1")), PLAN
    )
    result = analyse(PLAN, found, 50, 0)
    names = set(scores_of(PLAN, result))
    assert names == {f"simulated_rater_{task}" for task in PLAN.tasks} and names <= set(
        TABLE_COLUMNS
    )
    assert "are not about people" in markdown(result)
    people = analyse(
        PLAN, check_raters(results_of(tmp_path, PLAN, a=answer_rows(PLAN, "P01")), PLAN), 50, 0
    )
    assert set(scores_of(PLAN, people)) == {
        f"human_{task}" for task in PLAN.tasks
    } and "say nothing" not in markdown(people)
    assert set(scores_of(PLAN, people)) <= set(TABLE_COLUMNS)


def test_odd_raters_are_mentioned(tmp_path: Path) -> None:
    plan = fake_plan(range(30), count=20, tasks=("identification",), failed_checks=4)
    rows = answer_rows(plan, "P01", rt_ms="150")
    for row in rows:
        row[column("answer")] = "left"
    notes = analyse(
        plan,
        check_raters(
            results_of(tmp_path, plan, a=[[*r[:-1], checksum(r[:-1])] for r in rows]), plan
        ),
        50,
        0,
    ).notes
    assert any("chose the left image in 24 of 24 trials" in note for note in notes)
    assert any("took 150 ms for an answer" in note for note in notes)


def test_nothing_that_counts_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"None of 1 result files counts .*attention checks"):
        analyse(
            PLAN,
            check_raters(
                results_of(tmp_path, PLAN, a=answer_rows(PLAN, "P01", attentive=False)), PLAN
            ),
            50,
            0,
        )


# --- the simulated rater --------------------------------------------------------------------------


def painted(plan: Plan, noise: float) -> dict[str, np.ndarray]:
    """Pictures of a plan: random ones that were seen, and drawings that are these with noise."""
    generator = np.random.default_rng(0)
    seen = {}
    for trial in plan.trials:
        for name, role in zip(trial.options, trial.roles):
            if role == SEEN or role == "other":
                seen.setdefault(name, np.kron(generator.random((3, 4, 4)), np.ones((1, 8, 8))))
    made = dict(seen)
    for trial in plan.trials:
        if trial.task == "identification" and trial.kind == "test":
            made[trial.cue] = seen[trial.options[0]] + noise * generator.normal(size=(3, 32, 32))
        for name in trial.options:
            made.setdefault(name, generator.random((3, 32, 32)))
    return made


@pytest.mark.slow
def test_a_simulated_rater_sees_what_is_there(tmp_path: Path) -> None:
    plan = fake_plan(
        range(60), count=50, methods=("brain",), tasks=("identification", "similarity")
    )
    accuracy, ratings = [], []
    for noise in (0.05, 1.0, 8.0):
        eyes = rater.load_rater_features(plan, painted(plan, noise))
        result = read_result(
            write(tmp_path, rater.rate(plan, 1, eyes, 0.0, "2026-01-01T00:00:00Z")), plan
        )
        assert result.problems == () and result.simulated and result.failed == 0
        found = analyse(plan, check_raters([result], plan), 50, 0).findings
        accuracy.append(found[0].value)
        ratings.append(found[1].value)
    assert accuracy[0] == 1 and accuracy[0] >= accuracy[1] > accuracy[2]
    assert ratings[0] > ratings[1] > ratings[2]
    lapsing = rater.rate(
        plan, 1, rater.load_rater_features(plan, painted(plan, 0.05)), 1.0, "2026-01-01T00:00:00Z"
    )
    result = read_result(write(tmp_path, lapsing), plan)
    share = analyse(
        plan._replace(failed_checks=99),
        check_raters([result], plan._replace(failed_checks=99)),
        50,
        0,
    ).findings[0]
    assert share.low < 0.5 < share.high
