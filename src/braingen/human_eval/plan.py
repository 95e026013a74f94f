"""Images and trials of a study.

Every image is the target of one trial and the distractor of another, so that familiarity with an
image gives no information.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import hashlib
import json
from typing import Any, NamedTuple

import numpy as np

from braingen.runtime.errors import UserError

SEEN, OTHER, NOISE = "seen", "other", "noise"
"""Roles of images that no method generated: the seen image, another test image, and noise."""
RATINGS = 7
"""Steps of the similarity scale."""
SAME_AT_LEAST, NOISE_AT_MOST = 6, 2
"""Ratings that pass a check: two equal images, and an image with noise."""
FEWEST = 4
"""Smallest number of images of a study."""


class Trial(NamedTuple):
    """One question."""

    id: str
    task: str
    """identification | preference | similarity."""
    kind: str
    """test, or check: an attention check with an obvious answer."""
    image: int
    """Image id."""
    method: str
    """Method of the reconstruction; empty in preference and in attention checks."""
    cue: str
    """Image above the options; empty without one."""
    options: tuple[str, str]
    """The two images."""
    roles: tuple[str, str]
    """Roles of the two images: seen, other, noise or the name of a method."""
    right: str
    """Role of the correct choice; high or low in similarity checks; empty where none is correct."""


class Plan(NamedTuple):
    """A whole study."""

    study: str
    """Identity: a hash of all fields below, images included."""
    seed: int
    draft: bool
    """Built with an incomplete consent text: for testing."""
    simulated: bool
    """Whether images and brain activity are simulated."""
    of_run: str
    """Fingerprint of the run's reconstructions if they are the first method, else empty; the scores
    of the run include the study only while the fingerprint matches.
    """
    tasks: tuple[str, ...]
    methods: tuple[str, ...]
    baselines: tuple[str, ...]
    """For every method: random or oracle if it is a control of the run, else empty."""
    per_rater: int
    """Images per rater and task; 0 for all."""
    failed_checks: int
    """Attention checks a rater may fail."""
    pictures: dict[str, str]
    """Name of an image -> hash of its file."""
    trials: tuple[Trial, ...]


class Choice(NamedTuple):
    """Images of a study."""

    asked: tuple[int, ...]
    spare: tuple[int, ...]
    """Images for attention checks; distinct from those asked about if there are enough."""


def choose_images(ids: Sequence[int], count: int, spare: int, seed: int) -> Choice:
    """Sample the images of a study.

    Parameters
    ----------
    ids : Sequence[int]
        Images that every method has.
    count : int
        Images to ask about.
    spare : int
        Images for attention checks.
    seed : int
        Random seed.

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
    """(role, image id) of every image of a study; the role is seen, noise or a method's name."""
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
        Images in random order; the distractor of an image is the next one, cyclically.
    methods : Sequence[str]
        One or two names.
    tasks : Sequence[str]
        Tasks, in order.
    name : Mapping[tuple[str, int], str]
        (role, image id) -> name of the image.
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
            generated = [name[method, image] for method in methods]
            if task == "preference":
                add(
                    task,
                    "test",
                    image,
                    "",
                    seen,
                    (generated[0], generated[1]),
                    (methods[0], methods[1]),
                    "",
                )
                continue
            for method, picture in zip(methods, generated):
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
    """Whether an attention check is passed."""
    if trial.right == "high":
        return int(answer) >= SAME_AT_LEAST
    return int(answer) <= NOISE_AT_MOST if trial.right == "low" else chosen == trial.right


def identity_of(content: Mapping[str, Any]) -> str:
    """Identity of a study: ten hexadecimal digits of a hash."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:10]


def plan_as_json(plan: Plan) -> dict[str, Any]:
    """A plan as JSON values."""
    return {**plan._asdict(), "trials": [trial._asdict() for trial in plan.trials]}


def plan_from_json(content: Mapping[str, Any]) -> Plan:
    """The inverse of `plan_as_json`; other keys are ignored."""
    values = {key: content[key] for key in Plan._fields}
    trials = tuple(
        Trial(**{**trial, "options": tuple(trial["options"]), "roles": tuple(trial["roles"])})
        for trial in content["trials"]
    )
    lists = {key: tuple(values[key]) for key in ("tasks", "methods", "baselines")}
    return Plan(**{**values, **lists, "trials": trials})
