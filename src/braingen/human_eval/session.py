"""Trials of one rater, their order and sides.

They are a function of the study's seed and the rater's code, in the browser (`assets/session.js`)
and here. A session can therefore be continued after a break, and an edited rater code is detected:
the sides in the file do not match it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, TypeVar

from braingen.human_eval.plan import Plan, Trial

Item = TypeVar("Item")
_MASK = 0xFFFFFFFF


def hash32(text: str) -> int:
    """FNV-1a of the UTF-8 bytes, 32 bits: for seeds and for detecting edits, not for security."""
    value = 0x811C9DC5
    for byte in text.encode():
        value = ((value ^ byte) * 0x01000193) & _MASK
    return value


class Draw:
    """Random numbers by mulberry32, the same in Python and JavaScript."""

    def __init__(self, seed: str) -> None:
        self._state = hash32(seed)

    def below(self, end: int) -> int:
        """A whole number from 0 to end - 1."""
        self._state = (self._state + 0x6D2B79F5) & _MASK
        value = self._state
        value = ((value ^ (value >> 15)) * (value | 1)) & _MASK
        value ^= (value + (((value ^ (value >> 7)) * (value | 61)) & _MASK)) & _MASK
        return ((value ^ (value >> 14)) * end) >> 32

    def shuffled(self, items: Sequence[Item]) -> list[Item]:
        """The items in random order (Fisher-Yates, from the end)."""
        order = list(items)
        for last in range(len(order) - 1, 0, -1):
            other = self.below(last + 1)
            order[last], order[other] = order[other], order[last]
        return order


class ShownTrial(NamedTuple):
    """A trial as one rater sees it."""

    trial: Trial
    flipped: bool
    """Whether the trial's first option is on the right."""

    @property
    def left(self) -> str:
        """What is on the left."""
        return self.trial.roles[1 if self.flipped else 0]

    @property
    def right(self) -> str:
        """What is on the right."""
        return self.trial.roles[0 if self.flipped else 1]


def session(plan: Plan, rater: str) -> list[ShownTrial]:
    """All trials of a rater, in order.

    In identification a rater sees every image once, with one method, because a second trial would
    be answered from memory. With two methods, each rater gets a random half of the images from
    each. Attention checks are spread evenly.
    """
    draw = Draw(f"{plan.seed}/{rater}")
    shown: list[ShownTrial] = []
    for task in plan.tasks:
        tests = [trial for trial in plan.trials if trial.task == task and trial.kind == "test"]
        images = draw.shuffled(list(dict.fromkeys(trial.image for trial in tests)))
        if plan.per_rater:
            images = images[: plan.per_rater]
        methods = draw.shuffled(plan.methods)
        if task == "identification":
            wanted = {(image, methods[k % len(methods)]) for k, image in enumerate(images)}
            tests = [trial for trial in tests if (trial.image, trial.method) in wanted]
        else:
            tests = [trial for trial in tests if trial.image in set(images)]
        order = draw.shuffled(tests)
        checks = draw.shuffled(
            [trial for trial in plan.trials if trial.task == task and trial.kind == "check"]
        )
        places = []
        for k in range(len(checks)):
            first, end = len(order) * k // len(checks), len(order) * (k + 1) // len(checks)
            places.append(first + draw.below(max(1, end - first)))
        for place, check in reversed(list(zip(places, checks))):
            order.insert(place, check)
        flips = draw.shuffled([bool(k % 2) for k in range(len(order))])
        shown += [ShownTrial(trial, flipped) for trial, flipped in zip(order, flips)]
    return shown
