"""Accuracy, preference and ratings, per rater and per image, with intervals and agreement.

R raters, U units: an image with a method (identification, similarity), an image (preference).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from braingen.evaluation import tables as table
from braingen.evaluation.uncertainty import Interval
from braingen.human_eval.answers import Answer, RaterCheck, Result
from braingen.human_eval.plan import SEEN, Plan
from braingen.human_eval.statistics import (
    Level,
    Share,
    exact_p,
    exact_share,
    krippendorff_alpha,
    mean_over_raters_and_images,
)
from braingen.runtime.errors import UserError
from braingen.runtime.untrusted import markdown_cell
from braingen.types import Score

PEOPLE, SIMULATED = "human", "simulated_rater"
"""How score names begin; answers of simulated raters never count as human."""
HURRIED = 400.0
"""Milliseconds: a median answer time below it is noted."""
ONE_SIDED = 0.8
"""A share of one side above it is noted."""


class TaskResult(NamedTuple):
    """One figure of a study."""

    task: str
    method: str
    """Whose reconstructions; in preference the method that is preferred, over the other one."""
    value: float
    low: float | None
    """Ends of the exact (Clopper-Pearson) 95 % interval over answers; None for ratings, which are
    no shares.
    """
    high: float | None
    wide: Interval | None
    """The value with its 95 % interval; raters and images are both resampled."""
    p: float | None
    """Exact two-sided binomial test against one half."""
    answers: int
    raters: int
    images: int


class RaterAgreement(NamedTuple):
    """Agreement of raters in a task."""

    task: str
    alpha: float | None
    """Krippendorff's alpha; None where it is not defined."""
    level: Level
    raters: int
    units: int
    """Units that at least two raters answered."""


class Analysis(NamedTuple):
    """A study's results."""

    who: str
    """`PEOPLE` or `SIMULATED`."""
    draft: bool
    """Whether the study was built without a consent text."""
    findings: tuple[TaskResult, ...]
    agreement: tuple[RaterAgreement, ...]
    raters: pd.DataFrame
    """A line per rater, task and method: value, low, high, hits, n."""
    images: pd.DataFrame
    """The same per image."""
    files: pd.DataFrame
    """A line per result file: rater, trials, checks, failed, used, reason."""
    notes: tuple[str, ...]
    """Sentences that readers of the figures need."""


def _value(task: str, method: str) -> Callable[[Answer], float]:
    """Value of an answer: 1 or 0 for correct or preferred, else the rating."""
    if task == "similarity":
        return lambda answer: float(answer.answer)
    wanted = method if task == "preference" else SEEN
    return lambda answer: float(answer.chosen == wanted)


class _Matrix(NamedTuple):
    """Answers of a task."""

    answers_RU: np.ndarray
    image_U: np.ndarray
    raters: list[str]


def _matrix(
    results: Sequence[Result], task: str, methods: Sequence[str], value: Callable[[Answer], float]
) -> _Matrix:
    units = list(
        dict.fromkeys(
            (answer.image, answer.method)
            for result in results
            for answer in result.answers
            if answer.task == task and answer.kind == "test" and answer.method in methods
        )
    )
    column = {unit: k for k, unit in enumerate(units)}
    answers_RU = np.full((len(results), len(units)), np.nan)
    for row, result in enumerate(results):
        for answer in result.answers:
            if answer.task == task and answer.kind == "test" and answer.method in methods:
                answers_RU[row, column[answer.image, answer.method]] = value(answer)
    return _Matrix(
        answers_RU,
        np.array([image for image, _ in units], dtype=np.int64),
        [result.rater for result in results],
    )


def _groups(plan: Plan) -> list[tuple[str, str, tuple[str, ...]]]:
    """(task, method in the result, methods in the answers) of every figure."""
    found: list[tuple[str, str, tuple[str, ...]]] = []
    for task in plan.tasks:
        if task == "preference":
            found.append((task, plan.methods[0], ("",)))
        else:
            found += [(task, method, (method,)) for method in plan.methods]
    return found


def _share_or_mean(task: str, values: np.ndarray) -> Share:
    known = values[np.isfinite(values)]
    if task == "similarity":
        return Share(float(known.mean()) if len(known) else None, None, None, 0, len(known))
    return exact_share(int(known.sum()), len(known))


def analyse(plan: Plan, found: Sequence[RaterCheck], resamples: int, seed: int) -> Analysis:
    """Compute the figures of all results that count.

    Raises
    ------
    UserError
        When no result counts; the message gives the reasons.
    """
    used = [checked.result for checked in found if not checked.reason]
    if not used:
        why = "; ".join(
            f"{checked.result.path.name}: {checked.reason}" for checked in list(found)[:3]
        )
        raise UserError(f"None of {len(found)} result files counts ({why or 'there are none'}).")
    findings, per_rater, per_image, agreement = [], [], [], []
    for task, method, methods in _groups(plan):
        matrix = _matrix(used, task, methods, _value(task, method))
        wide = mean_over_raters_and_images(matrix.answers_RU, matrix.image_U, resamples, seed)
        share = _share_or_mean(task, matrix.answers_RU)
        if share.value is None:
            continue
        p = exact_p(share.hits, share.n) if task != "similarity" else None
        asked = np.isfinite(matrix.answers_RU)
        images = len(np.unique(matrix.image_U[asked.any(0)]))
        findings.append(
            TaskResult(
                task,
                method,
                share.value,
                share.low,
                share.high,
                wide,
                p,
                share.n,
                int(asked.any(1).sum()),
                images,
            )
        )
        for rater, answers_U in zip(matrix.raters, matrix.answers_RU):
            per_rater.append(
                {
                    "rater": rater,
                    "task": task,
                    "method": method,
                    **_share_or_mean(task, answers_U)._asdict(),
                }
            )
        for image in np.unique(matrix.image_U):
            share_of_image = _share_or_mean(task, matrix.answers_RU[:, matrix.image_U == image])
            per_image.append(
                {"image": int(image), "task": task, "method": method, **share_of_image._asdict()}
            )
    for task in plan.tasks:
        methods = ("",) if task == "preference" else plan.methods
        matrix = _matrix(used, task, methods, _value(task, plan.methods[0]))
        level: Level = "ordinal" if task == "similarity" else "nominal"
        units = int((np.isfinite(matrix.answers_RU).sum(0) > 1).sum())
        agreement.append(
            RaterAgreement(
                task, krippendorff_alpha(matrix.answers_RU, level), level, len(used), units
            )
        )
    files = pd.DataFrame([_line(checked) for checked in found])
    return Analysis(
        who=SIMULATED if used[0].simulated else PEOPLE,
        draft=plan.draft,
        findings=tuple(findings),
        agreement=tuple(agreement),
        raters=pd.DataFrame(per_rater),
        images=pd.DataFrame(per_image),
        files=files,
        notes=tuple(_notes(plan, found, used)),
    )


def _line(checked: RaterCheck) -> dict[str, str | int | float]:
    result = checked.result
    times = [answer.milliseconds for answer in result.answers if np.isfinite(answer.milliseconds)]
    return {
        "file": result.path.name,
        "rater": result.rater,
        "simulated": int(result.simulated),
        "trials": len(result.answers),
        "expected": result.expected,
        "checks": result.checks,
        "failed": result.failed,
        "median_ms": float(np.median(times)) if times else float("nan"),
        "used": int(not checked.reason),
        "reason": checked.reason,
    }


def _notes(plan: Plan, found: Sequence[RaterCheck], used: Sequence[Result]) -> list[str]:
    notes = []
    if used[0].simulated:
        notes.append(
            "All raters are simulated: these figures test the procedure and are not about people."
        )
    if plan.simulated:
        notes.append("Images and brain activity are simulated.")
    if plan.draft and not used[0].simulated:
        notes.append(
            "The study is a draft without a consent text: its answers are for testing, not for"
            " publication."
        )
    left_out = [checked for checked in found if checked.reason]
    for checked in left_out:
        notes.append(f"Left out: {checked.result.path.name}: {checked.reason}.")
    for result in used:
        sides = [answer.answer for answer in result.answers if answer.answer in ("left", "right")]
        times = [
            answer.milliseconds for answer in result.answers if np.isfinite(answer.milliseconds)
        ]
        if len(sides) > 9 and max(sides.count("left"), sides.count("right")) > ONE_SIDED * len(
            sides
        ):
            side = max(("left", "right"), key=sides.count)
            notes.append(
                f"Rater {result.rater} chose the {side} image in {sides.count(side)} of"
                f" {len(sides)} trials; it counts."
            )
        if times and np.median(times) < HURRIED:
            notes.append(
                f"Rater {result.rater} took {np.median(times):.0f} ms for an answer (median); it"
                " counts."
            )
    return notes


def scores_of(plan: Plan, analysis: Analysis) -> dict[str, Score]:
    """Rows of the metric table for the first method; a control of the same run fills its column."""
    scores = {}
    for finding in analysis.findings:
        if finding.method != plan.methods[0]:
            continue
        others = {
            baseline: other.value
            for baseline, method in zip(plan.baselines, plan.methods)
            for other in analysis.findings
            if baseline and other.task == finding.task and other.method == method
        }
        share = finding.task != "similarity"
        wide = finding.wide
        scores[f"{analysis.who}_{finding.task}"] = Score(
            value=finding.value,
            low=finding.low if share else (wide.low if wide else None),
            high=finding.high if share else (wide.high if wide else None),
            random=others.get("random"),
            oracle=others.get("oracle"),
            ridge=None,
            chance=0.5 if share else None,
            n=finding.images,
            pool=2 if share else None,
        )
    return scores


def as_json(plan: Plan, analysis: Analysis) -> dict[str, Any]:
    """Results for report and tables as JSON values; per-image figures stay in their CSV."""

    def records(frame: pd.DataFrame) -> list[dict[str, Any]]:
        return [
            {
                key: None if isinstance(value, float) and not np.isfinite(value) else value
                for key, value in row.items()
            }
            for row in frame.to_dict("records")
        ]

    return {
        "study": plan.study,
        "who": analysis.who,
        "draft": analysis.draft,
        "simulated": plan.simulated,
        "methods": list(plan.methods),
        "failed_checks": plan.failed_checks,
        "fingerprint": plan.of_run,
        "images": list(dict.fromkeys(trial.image for trial in plan.trials if trial.kind == "test")),
        "findings": [
            {**each._asdict(), "wide": each.wide._asdict() if each.wide else None}
            for each in analysis.findings
        ],
        "agreement": [each._asdict() for each in analysis.agreement],
        "raters": records(analysis.raters),
        "files": records(analysis.files),
        "notes": list(analysis.notes),
        "scores": table.as_json(scores_of(plan, analysis)),
    }


def markdown(analysis: Analysis) -> str:
    """The figures as a Markdown table, with notes."""
    who = "simulated raters" if analysis.who == SIMULATED else "people"
    lines = [
        f"| {who} | method | value | exact 95 % | over raters and images 95 % | p | answers |"
        " raters | images |"
    ]
    lines.append("| --- | --- | ---: | :---: | :---: | ---: | ---: | ---: | ---: |")
    for each in analysis.findings:
        exact = (
            "" if each.low is None or each.high is None else f"{each.low:.3f} to {each.high:.3f}"
        )
        wide = "" if each.wide is None else f"{each.wide.low:.3f} to {each.wide.high:.3f}"
        p = "" if each.p is None else ("< 0.001" if each.p < 0.001 else f"{each.p:.3f}")
        cells = [
            each.task,
            markdown_cell(each.method),
            f"{each.value:.3f}",
            exact,
            wide,
            p,
            str(each.answers),
            str(each.raters),
            str(each.images),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    lines += [
        "",
        "| agreement | Krippendorff's alpha | scale | raters | units |",
        "| --- | ---: | --- | ---: | ---: |",
    ]
    for agreed in analysis.agreement:
        alpha = "not defined" if agreed.alpha is None else f"{agreed.alpha:.3f}"
        lines.append(
            f"| {agreed.task} | {alpha} | {agreed.level} | {agreed.raters} | {agreed.units} |"
        )
    return "\n".join([*lines, "", *(f"* {markdown_cell(note)}" for note in analysis.notes)]) + "\n"
