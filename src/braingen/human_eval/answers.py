"""Result files: one CSV per rater, written by the page or the simulated rater, read strictly.

Every row is checked against the trial that the rater was shown (`session.py`). This detects edited
ids, rows of another study and exchanged rater codes. A checksum per row detects other accidental
edits.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
import csv
import io
from pathlib import Path
import re
from typing import NamedTuple

from braingen.human_eval.plan import RATINGS, Plan, check_passed
from braingen.human_eval.session import ShownTrial, hash32, session
from braingen.runtime.errors import UserError
from braingen.runtime.text_files import read_text
from braingen.runtime.untrusted import one_line

COLUMNS = (
    "study",
    "rater",
    "session",
    "simulated",
    "draft",
    "number",
    "task",
    "trial",
    "kind",
    "image",
    "method",
    "left",
    "right",
    "answer",
    "chosen",
    "correct",
    "rt_ms",
    "input",
    "time",
    "screen",
    "checksum",
)
"""Columns of a result file, in order; `docs/human_eval.md` describes each."""
SIDES = ("left", "right")
_CODE = re.compile(r"[A-Za-z0-9_-]{1,32}")
"""Rater codes that the page accepts."""


class Answer(NamedTuple):
    """One answered trial."""

    task: str
    trial: str
    kind: str
    image: int
    method: str
    """Method of the reconstruction; empty in preference, see `chosen`."""
    answer: str
    """left, right, or 1 to 7."""
    chosen: str
    """Role of the chosen image; empty for a rating."""
    passed: bool | None
    """Whether an attention check was passed; None in test trials."""
    milliseconds: float


class Result(NamedTuple):
    """One result file."""

    path: Path
    rater: str
    session: str
    simulated: bool
    draft: bool
    answers: tuple[Answer, ...]
    started: str
    """When the first answer was given (ISO 8601)."""
    expected: int
    """Trials of this rater's session."""
    problems: tuple[str, ...]
    """Reasons why the file is unusable, one sentence each."""

    @property
    def checks(self) -> int:
        """Attention checks answered."""
        return sum(answer.passed is not None for answer in self.answers)

    @property
    def failed(self) -> int:
        """Attention checks failed."""
        return sum(answer.passed is False for answer in self.answers)


def checksum(row: Sequence[str]) -> str:
    """Value of the last column: a hash of the others."""
    return f"{hash32(chr(31).join(row)):08x}"


def row_of(
    plan: Plan, shown: ShownTrial, number: int, answer: str, about: Mapping[str, str]
) -> list[str]:
    """One line of a result file.

    Parameters
    ----------
    number : int
        Position of the trial in the session, from 1.
    answer : str
        Left, right, or 1 to 7.
    about : Mapping[str, str]
        Columns that the trial does not determine: rater, session, simulated, rt_ms, input, time,
        screen.
    """
    trial = shown.trial
    chosen = {"left": shown.left, "right": shown.right}.get(answer, "")
    correct = "" if trial.right in ("", "high", "low") else str(int(chosen == trial.right))
    if trial.right in ("high", "low"):
        correct = str(int(check_passed(trial, answer, chosen)))
    values = {
        "study": plan.study,
        "draft": str(int(plan.draft)),
        "number": str(number),
        "task": trial.task,
        "trial": trial.id,
        "kind": trial.kind,
        "image": str(trial.image),
        "method": trial.method,
        "left": shown.left,
        "right": shown.right,
        "answer": answer,
        "chosen": chosen,
        "correct": correct,
        **about,
    }
    row = [values[name] for name in COLUMNS[:-1]]
    return [*row, checksum(row)]


def as_csv(rows: Iterable[Sequence[str]]) -> str:
    """A result file as text."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows(rows)
    return out.getvalue()


def read_result(path: Path, plan: Plan) -> Result:
    """Read and validate one result file; semicolons and byte-order marks are accepted.

    Faults are recorded in `Result.problems`, so that one file does not stop the others.
    """
    rows, wrong = _rows(path)
    if not rows:
        return Result(path, "", "", False, False, (), "", 0, (wrong,))
    rater = rows[0]["rater"]
    expected = session(plan, rater)
    problems = _of_the_file(rows, plan)
    answers: list[Answer] = []
    if not problems:
        for line, row in enumerate(rows, 2):
            fault = _of_the_row(row, expected)
            if fault:
                problems.append(f"line {line}: {fault}")
            else:
                answers.append(_answer(row, expected[int(row["number"]) - 1]))
        numbers = [row["number"] for row in rows]
        twice = sorted(
            {number for number in numbers if numbers.count(number) > 1},
            key=lambda text: (len(text), text),
        )
        if twice:
            problems.append(
                f"{len(twice)} trials are answered more than once, e.g. number {twice[0]}"
            )
    return Result(
        path=path,
        rater=rater,
        session=rows[0]["session"],
        simulated=rows[0]["simulated"] != "0",
        draft=rows[0]["draft"] != "0",
        answers=tuple(answers),
        started=rows[0]["time"],
        expected=len(expected),
        problems=tuple(problems),
    )


def _rows(path: Path) -> tuple[list[dict[str, str]], str]:
    """Rows of a result file, or the reason why there are none."""
    try:
        text = read_text(path, "give the CSV file that the study page saved")
        first = text.partition("\n")[0]
        reader = csv.DictReader(
            io.StringIO(text), delimiter=";" if first.count(";") > first.count(",") else ","
        )
        if tuple(reader.fieldnames or ()) != COLUMNS:
            return (
                [],
                (
                    "not a result file of a study: its first line is not"
                    f" `{','.join(COLUMNS[:4])},...`"
                ),
            )
        rows = [
            {name: (value or "").strip() for name, value in row.items() if name in COLUMNS}
            for row in reader
        ]
    except (UserError, OSError, csv.Error) as error:
        return [], f"not a result file of a study: {error}"
    return rows, "it holds no answers"


def _of_the_file(rows: Sequence[Mapping[str, str]], plan: Plan) -> list[str]:
    for name in ("study", "rater", "session", "simulated", "draft"):
        values = list(dict.fromkeys(row[name] for row in rows))
        if len(values) > 1:
            return [f"column {name} has {len(values)} values in one file: {', '.join(values[:3])}"]
    if not _CODE.fullmatch(rows[0]["rater"]):
        return [
            f"the rater's code {one_line(rows[0]['rater'], 40)!r} is not 1 to 32 letters, digits, -"
            " or _, which the page accepts"
        ]
    if rows[0]["study"] != plan.study:
        return [
            f"answers of another study ({rows[0]['study']}; this one is {plan.study}): was the"
            " study built again in the meantime?"
        ]
    return []


def _of_the_row(row: Mapping[str, str], expected: Sequence[ShownTrial]) -> str:
    """The fault of a row, or an empty string."""
    if not re.fullmatch(r"[0-9]{1,6}", row["number"]) or not 1 <= int(row["number"]) <= len(
        expected
    ):
        return (
            f"number {row['number']!r} is not one of the {len(expected)} trials of rater"
            f" {row['rater']}"
        )
    shown = expected[int(row["number"]) - 1]
    trial = shown.trial
    must = {
        "task": trial.task,
        "trial": trial.id,
        "kind": trial.kind,
        "image": str(trial.image),
        "method": trial.method,
        "left": shown.left,
        "right": shown.right,
    }
    other = [name for name, value in must.items() if row[name] != value]
    if other:
        name = other[0]
        return (
            f"{name} is {row[name]!r}, but rater {row['rater']} was shown {must[name]!r} there:"
            " were ids or the rater's code edited?"
        )
    allowed = (
        [str(step) for step in range(1, RATINGS + 1)] if trial.task == "similarity" else list(SIDES)
    )
    if row["answer"] not in allowed:
        return f"answer {row['answer']!r} is none of {', '.join(allowed)}"
    if not re.fullmatch(r"([0-9]{1,12}(\.[0-9]{0,6})?)?", row["rt_ms"]):
        return f"rt_ms is {one_line(row['rt_ms'], 40)!r}, not a time in milliseconds"
    if row["checksum"] != checksum([row[name] for name in COLUMNS[:-1]]):
        return "the row was changed after the page had written it (its checksum does not match)"
    return ""


def _answer(row: Mapping[str, str], shown: ShownTrial) -> Answer:
    trial = shown.trial
    chosen = {"left": shown.left, "right": shown.right}.get(row["answer"], "")
    passed = check_passed(trial, row["answer"], chosen) if trial.kind == "check" else None
    return Answer(
        trial.task,
        trial.id,
        trial.kind,
        trial.image,
        trial.method,
        row["answer"],
        chosen,
        passed,
        float(row["rt_ms"] or "nan"),
    )


class RaterCheck(NamedTuple):
    """A result, and whether it counts."""

    result: Result
    reason: str
    """Why it does not count; empty if it does."""


def check_raters(results: Sequence[Result], plan: Plan) -> list[RaterCheck]:
    """Select results: complete, unedited, attentive, first of their rater; simulated ones last.

    Simulated raters count only where there are no people.
    """
    people = any(not result.simulated for result in results)
    taken: dict[str, Result] = {}
    found = []
    for result in sorted(results, key=lambda each: (each.started, each.path.name)):
        earlier = taken.get(result.rater)
        if result.problems:
            more = f" (and {len(result.problems) - 1} more)" if len(result.problems) > 1 else ""
            reason = result.problems[0] + more
        elif len(result.answers) < result.expected:
            reason = f"incomplete: {len(result.answers)} of {result.expected} trials"
        elif earlier is not None and earlier.answers == result.answers:
            reason = f"a copy of {earlier.path.name}"
        elif earlier is not None:
            reason = f"rater {result.rater} took part more than once; {earlier.path.name} counts"
        elif result.failed > plan.failed_checks:
            reason = (
                f"failed {result.failed} of {result.checks} attention checks; {plan.failed_checks}"
                " may be failed"
            )
        elif result.simulated and people:
            reason = "a simulated rater, and there are people"
        else:
            reason = ""
        if not result.problems and len(result.answers) == result.expected:
            taken.setdefault(result.rater, result)
        found.append(RaterCheck(result, reason))
    return found
