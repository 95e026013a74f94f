"""`braingen human-eval`: from a run to pages, answers, tables and report; what is missing, changed
or not allowed is said in one sentence.
"""

from __future__ import annotations

import json
from pathlib import Path
import shutil

from PIL import Image
import pytest
from unit.fake_report_inputs import write_fake_run

from braingen.config import Config
from braingen.config.evaluation import HumanEvalConfig
from braingen.evaluation.human_ratings import read_study, scores_in
from braingen.human_eval import consent, site
from braingen.human_eval.study import study
from braingen.report.inputs import read_inputs
from braingen.report.page import render
from braingen.runtime.errors import UserError

pytestmark = pytest.mark.slow  # left out of `make quick`


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Config:
    config = write_fake_run(tmp_path_factory.mktemp("study"), 12, epochs=2)
    (config.run.folder / "study.json").unlink()
    return config


@pytest.fixture
def config(made: Config, tmp_path: Path) -> Config:
    """A run folder of its own, with settings of a small study."""
    run = Path(shutil.copytree(made.run.folder, tmp_path / "run"))
    settings = HumanEvalConfig(
        study_images=8,
        checks=2,
        method_b=str(run / "reconstructions" / "random"),
        raters=2,
        draft=True,
    )
    return made.model_copy(
        update={"run": made.run.model_copy(update={"folder": run}), "human_eval": settings}
    )


def with_study(config: Config, **values: object) -> Config:
    return config.model_copy(update={"human_eval": config.human_eval.model_copy(update=values)})


def test_consent_comes_first(config: Config) -> None:
    folder = config.run.folder / "study"
    with pytest.raises(
        UserError,
        match=(
            r"still has 11 places to fill in, the first being"
            r" '\[FILL IN: name of the institution\]'"
        ),
    ):
        study(with_study(config, draft=False), "build")
    assert not (folder / "site").exists()
    text = (folder / "consent.md").read_text()
    (folder / "consent.md").write_text(consent.GAP.sub("<Uni & Co>", text))
    page = study(with_study(config, draft=False), "build")
    assert "Draft" not in page.read_text()
    assert (
        "&lt;Uni &amp; Co&gt;"
        in json.loads((folder / "site" / "plan.js").read_text().split(" = ", 1)[1].rstrip(";\n"))[
            "consent"
        ]
    )
    (folder / "consent.md").write_text(" \n")
    with pytest.raises(UserError, match="is empty"):
        study(config, "build")


def test_consent_as_html() -> None:
    html = consent.as_html("# A\n\ntwo\nlines\n\n- one\n- two\n  more\n\n[FILL IN: x] <b>")
    assert (
        html
        == "<h1>A</h1>\n<p>two lines</p>\n<ul><li>one</li><li>two more</li></ul>\n<p><mark>[FILL"
        " IN: x]</mark> &lt;b&gt;</p>"
    )


def test_from_run_to_table_and_report(config: Config, capsys: pytest.CaptureFixture[str]) -> None:
    run = config.run.folder
    page = study(config, "build")
    assert "Draft" in page.read_text()
    names = [path.stem for path in (page.parent / "pictures").iterdir()]
    assert sorted(names) == [f"{k:04d}" for k in range(len(names))]  # file names tell nothing
    assert {Image.open(path).size for path in (page.parent / "pictures").iterdir()} == {(224, 224)}
    assert "src=" not in (page.parent / site.ONE_FILE).read_text().split("<script>")[0]
    study(config, "check")
    study(config, "simulate")
    study(config, "check")
    analysis = json.loads(study(config, "analyse").read_text())
    assert (
        analysis["who"] == "simulated_rater"
        and analysis["study"] == json.loads((run / "study" / "plan.json").read_text())["study"]
    )
    score = scores_in(read_study(run))["simulated_rater_identification"]
    assert (
        score.chance == 0.5 and 4 <= score.n <= 8 and score.random is not None
    )  # the second method is the run's own control
    text = render(read_inputs(run, config.data.root))
    assert (
        "The raters are simulated" in text
        and "Simulated raters: which was seen" in text
        and "People: which" not in text
    )
    picture = run / "reconstructions" / "brain" / f"{analysis['images'][0]:06d}.png"
    Image.new("RGB", (128, 128), "red").save(picture)  # drawn anew
    assert read_study(run) == {"stale": True}
    study(config, "analyse")
    assert "leave it out: the reconstructions were generated again" in capsys.readouterr().out
    assert "generated again since" in render(read_inputs(run, config.data.root))


def test_a_study_of_other_pictures_stays_out_of_the_runs_scores(
    config: Config, tmp_path: Path
) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    for path in (config.run.folder / "reconstructions" / "brain").glob("*.png"):
        shutil.copy(path, mine / f"image_{int(path.stem)}.png")
    here = with_study(
        config,
        method_a=str(mine),
        method_b="",
        study_folder=str(tmp_path / "elsewhere"),
        seen=str(mine),
    )
    study(here, "build")
    study(here, "simulate")
    analysis = json.loads(study(here, "analyse").read_text())
    assert analysis["methods"] == ["mine"] and not (config.run.folder / "study.json").exists()
    assert (
        analysis["findings"][0]["value"] > 0.7
    )  # drawing and picture are the same here; a tenth are lapses
    assert [row["task"] for row in analysis["findings"]] == ["identification", "similarity"]


def test_check_names_what_was_changed(config: Config) -> None:
    folder = study(config, "build").parent
    (folder / "study.js").write_text("alert(1)")
    with pytest.raises(
        UserError, match=r"study\.js was changed since the study was built: build the study again"
    ):
        study(config, "check")
    study(config, "build")
    next((folder / "pictures").iterdir()).unlink()
    with pytest.raises(UserError, match="is missing"):
        study(config, "check")
    study(config, "build")
    study(config, "simulate")
    path = folder.parent / "results" / "simulated-1.csv"
    lines = path.read_text().splitlines(keepends=True)
    lines[3] = lines[3].replace(",seen,", ",other,", 1)
    path.write_text("".join(lines))
    with pytest.raises(UserError, match="1 of 2 result files cannot be used"):
        study(config, "check")


def test_a_study_with_answers_is_not_replaced(config: Config) -> None:
    study(config, "build")
    study(config, "simulate")
    study(config, "build")  # the same one may be
    with pytest.raises(UserError, match="holds 2 result files of study"):
        study(with_study(config, study_images=7), "build")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"method_a": "/nowhere"}, "/nowhere does not exist"),
        ({"name_a": "same", "name_b": "same"}, "Both methods are called 'same'"),
        ({"name_a": "seen"}, "cannot be called 'seen'"),
        ({"method_b": "", "tasks": ("preference",)}, "compares two methods, but only one is given"),
    ],
)
def test_what_cannot_be_built_is_said(config: Config, values: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        study(with_study(config, **values), "build")


def test_what_is_not_there_is_said(config: Config) -> None:
    for action in ("check", "analyse", "simulate"):
        with pytest.raises(UserError, match="there is no study in"):
            study(config, action)
    study(config, "build")
    with pytest.raises(UserError, match="There are no result files in"):
        study(config, "analyse")
