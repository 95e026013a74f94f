"""What a study asks: the pictures, and every trial with what is shown and which answer is right.

Every image of a study is once the picture to be named and once the distractor, so that having seen
a picture before says nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import hashlib
import json
from typing import Any, NamedTuple

import numpy as np

from braingen.runtime.errors import UserError

SEEN, OTHER, NOISE = "seen", "other", "noise"
"""Roles of pictures that are not a method's: the one that was seen, another test image, and noise
that resembles nothing.
"""
RATINGS = 7
"""Steps of the similarity scale."""
SAME_AT_LEAST, NOISE_AT_MOST = 6, 2
"""What an attentive rater gives two equal pictures, and a picture beside noise."""
FEWEST = 4
"""Images below which there is nothing to study."""


class Trial(NamedTuple):
    """One question; all raters are asked the same ones."""

    id: str
    task: str
    """identification | preference | similarity."""
    kind: str
    """test, or check: an attention check, whose answer is obvious."""
    image: int
    """Image id."""
    method: str
    """Whose reconstruction it is; empty in preference, and in attention checks."""
    cue: str
    """Picture above the options; empty without one."""
    options: tuple[str, str]
    """The two pictures."""
    roles: tuple[str, str]
    """What the two pictures are: seen, other, noise or the name of a method."""
    right: str
    """Role that is the right choice; in attention checks of similarity high or low; empty where no
    answer is right.
    """


class Plan(NamedTuple):
    """A whole study."""

    study: str
    """Its identity: a hash of everything below, pictures included."""
    seed: int
    draft: bool
    """Built without a consent text: for trying out."""
    simulated: bool
    """Whether pictures and brain are simulated."""
    of_run: str
    """Fingerprint of the run's own pictures where the first method is what it drew from brain
    activity: the figures then belong to its scores, as long as the pictures are these. Else empty.
    """
    tasks: tuple[str, ...]
    methods: tuple[str, ...]
    baselines: tuple[str, ...]
    """For every method: random or oracle where it is the run's own control, else empty."""
    per_rater: int
    """Images a rater is asked about in every task; 0 for all."""
    failed_checks: int
    """Attention checks a rater may fail."""
    pictures: dict[str, str]
    """Name of a picture -> hash of its file."""
    trials: tuple[Trial, ...]


class Choice(NamedTuple):
    """Images of a study."""

    asked: tuple[int, ...]
    spare: tuple[int, ...]
    """Images for attention checks and examples; others than those asked about where there are
    enough.
    """


def choose_images(ids: Sequence[int], count: int, spare: int, seed: int) -> Choice:
    """Draw the images of a study.

    Parameters
    ----------
    ids : Sequence[int]
        Images that every method has.
    count : int
        Images to ask about.
    spare : int
        Images for attention checks.
    seed : int
        Of the draw.

    Raises
    ------
    UserError
        When there are fewer than `FEWEST` images.
    """
    if len(ids) < FEWEST:
        raise UserError(
            f"A study needs at least {FEWEST} images that all methods have; there are {len(ids)}."
        )
    order = (
        np.random.default_rng(seed).permutation(np.sort(np.asarray(ids, dtype=np.int64))).tolist()
    )
    asked, rest = order[:count], order[count:]
    return Choice(tuple(asked), tuple((rest + asked)[:spare]))


def pictures_needed(
    choice: Choice, methods: Sequence[str], tasks: Sequence[str]
) -> list[tuple[str, int]]:
    """(what, image id) of every picture of a study; what is seen, noise or a method's name."""
    needed = [(SEEN, image) for image in dict.fromkeys(choice.asked + choice.spare)]
    needed += [(method, image) for method in methods for image in choice.asked]
    return needed + (
        [(NOISE, image) for image in choice.spare[1::2]] if "similarity" in tasks else []
    )


def make_trials(
    choice: Choice,
    methods: Sequence[str],
    tasks: Sequence[str],
    name: Mapping[tuple[str, int], str],
) -> tuple[Trial, ...]:
    """Every trial of a study.

    Parameters
    ----------
    choice : Choice
        Images; their order is random already, the distractor of an image is the next one in it, in
        a circle.
    methods : Sequence[str]
        One or two names.
    tasks : Sequence[str]
        Which questions.
    name : Mapping[tuple[str, int], str]
        (what, image id) -> name of the picture.
    """
    trials: list[Trial] = []

    def add(
        task: str,
        kind: str,
        image: int,
        method: str,
        cue: str,
        options: tuple[str, str],
        roles: tuple[str, str],
        right: str,
    ) -> None:
        trial_id = " ".join(
            filter(None, (task, "check" if kind == "check" else method, str(image)))
        )
        trials.append(Trial(trial_id, task, kind, image, method, cue, options, roles, right))

    following = dict(zip(choice.asked, (*choice.asked[1:], choice.asked[0])))
    around = dict(zip(choice.spare, (*choice.spare[1:], choice.spare[0])))
    for task in tasks:
        for image in choice.asked:
            seen = name[SEEN, image]
            drawn = [name[method, image] for method in methods]
            if task == "preference":
                add(
                    task,
                    "test",
                    image,
                    "",
                    seen,
                    (drawn[0], drawn[1]),
                    (methods[0], methods[1]),
                    "",
                )
                continue
            for method, picture in zip(methods, drawn):
                if task == "identification":
                    add(
                        task,
                        "test",
                        image,
                        method,
                        picture,
                        (seen, name[SEEN, following[image]]),
                        (SEEN, OTHER),
                        SEEN,
                    )
                else:
                    add(task, "test", image, method, "", (seen, picture), (SEEN, method), "")
        for number, image in enumerate(choice.spare):
            seen, other = name[SEEN, image], name[SEEN, around[image]]
            if task != "similarity":
                add(task, "check", image, "", seen, (seen, other), (SEEN, OTHER), SEEN)
            elif number % 2:
                add(task, "check", image, "", "", (seen, name[NOISE, image]), (SEEN, NOISE), "low")
            else:
                add(task, "check", image, "", "", (seen, seen), (SEEN, SEEN), "high")
    return tuple(trials)


def check_passed(trial: Trial, answer: str, chosen: str) -> bool:
    """Whether an attention check was answered as anybody who looks would."""
    if trial.right == "high":
        return int(answer) >= SAME_AT_LEAST
    return int(answer) <= NOISE_AT_MOST if trial.right == "low" else chosen == trial.right


def identity_of(content: Mapping[str, Any]) -> str:
    """Ten letters that stand for a study."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:10]


def plan_as_json(plan: Plan) -> dict[str, Any]:
    """A plan as JSON values."""
    return {**plan._asdict(), "trials": [trial._asdict() for trial in plan.trials]}


def plan_from_json(content: Mapping[str, Any]) -> Plan:
    """The inverse of `plan_as_json`; further keys are left out."""
    values = {key: content[key] for key in Plan._fields}
    trials = tuple(
        Trial(**{**trial, "options": tuple(trial["options"]), "roles": tuple(trial["roles"])})
        for trial in content["trials"]
    )
    lists = {key: tuple(values[key]) for key in ("tasks", "methods", "baselines")}
    return Plan(**{**values, **lists, "trials": trials})
