"""A study and its answers without pictures, for tests of what is made of answers."""

from __future__ import annotations

from collections.abc import Sequence
import json
from pathlib import Path
from typing import Any

import numpy as np

from braingen.evaluation.human_ratings import fingerprint
from braingen.human_eval.analysis import analyse, as_json
from braingen.human_eval.answers import as_csv, check_raters, read_result, row_of
from braingen.human_eval.plan import Plan, choose_images, identity_of, make_trials, pictures_needed
from braingen.human_eval.session import session

TASKS = ("identification", "preference", "similarity")


def fake_plan(
    ids: Sequence[int],
    methods: tuple[str, ...] = ("brain", "other_one"),
    tasks: tuple[str, ...] = TASKS,
    **others: Any,
) -> Plan:
    """A plan about some images."""
    choice = choose_images(ids, others.pop("count", len(ids)), min(4, len(ids)), seed=0)
    names = {
        key: f"{number:04d}" for number, key in enumerate(pictures_needed(choice, methods, tasks))
    }
    content = {
        "seed": 0,
        "draft": False,
        "simulated": True,
        "of_run": "",
        "tasks": tasks,
        "methods": methods,
        "baselines": ("",) * len(methods),
        "per_rater": 0,
        "failed_checks": 1,
        "pictures": dict.fromkeys(names.values(), "0"),
        "trials": make_trials(choice, methods, tasks, names),
        **others,
    }
    return Plan(study=identity_of({key: str(value) for key, value in content.items()}), **content)


def answer_rows(
    plan: Plan, rater: str, share: float = 0.8, attentive: bool = True, seed: int = 0, **about: str
) -> list[list[str]]:
    """Answers of somebody who is right, prefers the first method, or rates 5, in a share of the
    trials, and else the contrary or 2.
    """
    generator = np.random.default_rng([seed, *rater.encode()])
    known = {
        "rater": rater,
        "session": "aa",
        "simulated": "0",
        "rt_ms": "1500",
        "input": "mouse",
        "time": "2026-01-02T03:04:05Z",
        "screen": "1280x800@1",
        **about,
    }
    rows = []
    for number, shown in enumerate(session(plan, rater), 1):
        trial = shown.trial
        good = attentive if trial.kind == "check" else bool(generator.random() < share)
        if trial.task == "similarity":
            low = trial.right == "low"
            answer = {
                True: "7" if trial.right == "high" else "1" if low else "5",
                False: "5" if low else "2",
            }[good]
        else:
            wanted = trial.right or plan.methods[0]
            answer = "left" if (shown.left == wanted) == good else "right"
        rows.append(row_of(plan, shown, number, answer, known))
    return rows


def write_fake_study(
    run: Path, images: Sequence[int], scratch: Path, raters: int = 4, simulated: str = "0"
) -> None:
    """Leave RUN/study.json as `braingen human-eval analyse` does."""
    plan = fake_plan(
        images, of_run=fingerprint(run, choose_images(images, len(images), 0, 0).asked)
    )
    scratch.mkdir(parents=True, exist_ok=True)
    results = []
    for number in range(raters):
        path = scratch / f"P{number}.csv"
        path.write_text(
            as_csv(answer_rows(plan, f"P{number}", attentive=number > 0, simulated=simulated))
        )
        results.append(read_result(path, plan))
    content = as_json(plan, analyse(plan, check_raters(results, plan), 200, 0))
    (run / "study.json").write_text(json.dumps(content))
