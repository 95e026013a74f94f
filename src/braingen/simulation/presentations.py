"""Order of image presentations in NSD's design at any size, and the subject's responses.

Every image is shown three times. The order is equal for all subjects (shared test images are shown
at the same trials); only the other images differ. About half of an image's presentations are close
together, the others anywhere, so a session has about 1.28 trials per image, as in NSD.

T trials in all, N images.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from braingen.data import nsd
from braingen.runtime.errors import UserError

_CLOSE_SHARE = 0.5  # of the presentations lie close to the others of their image
_CLOSE = 0.25  # sd of their distance, in sessions
# of the sessions: the older, smaller test set was made when three of NSD's forty were held back
_OLD_TEST_SHARE = 37 / 40


class Design(NamedTuple):
    """Image of every trial."""

    sessions: int
    trials_per_session: int
    test_images: int
    own_images: int
    """Number of a subject's training images; some are shown less than three times."""
    place_T: np.ndarray
    """Image index of every trial within the subject: test images first, then training; int64."""

    @property
    def trials(self) -> int:
        """Presentations in all."""
        return self.sessions * self.trials_per_session

    @property
    def images(self) -> int:
        """Number of images that a subject sees."""
        return self.test_images + self.own_images

    @property
    def test_T(self) -> np.ndarray:
        """Whether a trial shows a test image."""
        return self.place_T < self.test_images

    def image_ids(self, number: int) -> np.ndarray:
        """Return the ids of a subject's images, in the order of their indices.

        Parameters
        ----------
        number : int
            Of the subject, from 1.
        """
        first = self.test_images + (number - 1) * self.own_images
        return np.concatenate(
            [np.arange(self.test_images), np.arange(first, first + self.own_images)]
        )

    def rows(self, session: int) -> slice:
        """Rows of the betas of a session, counted from 0."""
        return slice(session * self.trials_per_session, (session + 1) * self.trials_per_session)

    @property
    def old_test_sessions(self) -> int:
        """Number of first sessions whose test trials are in the older test set."""
        return max(1, int(self.sessions * _OLD_TEST_SHARE))


def make_design(seed: int, sessions: int, trials_per_session: int, test_images: int) -> Design:
    """Plan the presentations.

    Raises
    ------
    UserError
        When the test images leave fewer than 3 trials for training images.
    """
    trials, repeats = sessions * trials_per_session, nsd.PRESENTATIONS
    if trials - repeats * test_images < repeats:
        raise UserError(
            f"{sessions} sessions of {trials_per_session} trials are {trials}, but {test_images}"
            f" test images shown {repeats} times take {repeats * test_images}: nothing is left to"
            " train on; give more simulation.num_sessions or fewer simulation.num_test_images."
        )
    own = -(-(trials - repeats * test_images) // repeats)
    rng = np.random.default_rng([seed, 0, 0])
    moment = rng.random((test_images + own, 1)) + _CLOSE / sessions * rng.standard_normal(
        (test_images + own, repeats)
    )
    anywhere = rng.random((test_images + own, repeats))
    moment = np.where(rng.random((test_images + own, repeats)) < _CLOSE_SHARE, moment, anywhere) % 1
    place = np.repeat(np.arange(test_images + own), repeats)
    shown = np.arange(len(place)) < trials  # the last image loses its excess trials
    order = np.argsort(moment.ravel()[shown], kind="stable")
    design = Design(
        sessions, trials_per_session, test_images, own, place[shown][order].astype(np.int64)
    )
    training = (~design.test_T).reshape(sessions, trials_per_session).sum(axis=1)
    if training.min() < 2:
        raise UserError(
            f"Session {int(training.argmin())} would have {int(training.min())} training trials of"
            f" {trials_per_session}, and needs 2 to be z-scored: give more"
            " simulation.trials_per_session or fewer simulation.num_test_images."
        )
    return design


def behaviour(design: Design, seed: int, number: int) -> np.ndarray:
    """Simulate the behavioural table: T x 17, float64, columns as `nsd.BEHAV_COLUMNS`.

    The subject responds whether it has seen the image before, with 85 % accuracy in about 0.8 s.
    """
    rng = np.random.default_rng([seed, number, 3])
    T, per_session = design.trials, design.trials_per_session
    column = {name: index for index, name in enumerate(nsd.BEHAV_COLUMNS)}
    table = np.full((T, len(nsd.BEHAV_COLUMNS)), -1.0)
    trial = np.arange(T)
    session, within = np.divmod(trial, per_session)
    run, in_run = np.divmod(within, 63)  # NSD's runs hold 62 or 63 trials
    old = _seen_before(design.place_T)
    old_now = _seen_before(session * design.images + design.place_T)
    right, right_now = rng.random(T) < 0.85, rng.random(T) < 0.9
    answers_old = old == right
    values = {
        "image": design.image_ids(number)[design.place_T],
        "subject": number,
        "session": session + 1,
        "run": run + 1,
        "trial": in_run + 1,
        "global_trial": trial,
        "time": (
            737000 + 7 * session + within * 4 / 86400
        ),  # days, as MATLAB counts them: a trial is 4 s, a session a week
        "is_old": old,
        "is_correct": right,
        "rt": np.clip(rng.lognormal(np.log(800), 0.3, T), 250, 3500).round(),  # ms
        "change_mind": rng.random(T) < 0.01,
        "is_old_current": old_now,
        "is_correct_current": right_now,
        "total1": ~answers_old,
        "total2": answers_old,
        "button": 1 + answers_old,
        "is_shared1000": design.test_T,
    }
    for name, value in values.items():
        table[:, column[name]] = value
    return table


def _seen_before(what_T: np.ndarray) -> np.ndarray:
    """Whether the same number occurred in an earlier trial."""
    _, first = np.unique(what_T, return_index=True)
    seen = np.ones(len(what_T), dtype=bool)
    seen[first] = False
    return seen
