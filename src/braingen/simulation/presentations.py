"""When which picture is shown: NSD's design at any size, and what a subject answers.

Every picture is shown three times. The order is the same for all subjects (the shared test pictures
come at the same moments), only the other pictures differ. About half of a picture's presentations
fall close together, the others anywhere, so that a session holds some 1.28 trials per picture, as
NSD's do.

T trials in all, N pictures.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from braingen.data import nsd
from braingen.runtime.errors import UserError

_CLOSE_SHARE = 0.5  # of the presentations lie close to the others of their picture
_CLOSE = 0.25  # sd of their distance, in sessions
# of the sessions: the older, smaller test set was made when three of NSD's forty were held back
_OLD_TEST_SHARE = 37 / 40


class Design(NamedTuple):
    """Which picture is shown in which trial."""

    sessions: int
    trials_per_session: int
    test_images: int
    own_images: int
    """Pictures of a subject that are for training; some of them are shown less than three times
    when trials do not come out even.
    """
    place_T: np.ndarray
    """Picture of every trial, numbered within the subject: test pictures first, then its own;
    int64.
    """

    @property
    def trials(self) -> int:
        """Presentations in all."""
        return self.sessions * self.trials_per_session

    @property
    def images(self) -> int:
        """Pictures that one subject sees."""
        return self.test_images + self.own_images

    @property
    def test_T(self) -> np.ndarray:
        """Whether a trial shows a test picture."""
        return self.place_T < self.test_images

    def image_ids(self, number: int) -> np.ndarray:
        """Ids of the pictures that a subject sees, in the order of their places.

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
        """Rows of the betas that belong to a session, counted from 0."""
        return slice(session * self.trials_per_session, (session + 1) * self.trials_per_session)

    @property
    def old_test_sessions(self) -> int:
        """Sessions, from the first, whose test trials are in the older test set."""
        return max(1, int(self.sessions * _OLD_TEST_SHARE))


def make_design(seed: int, sessions: int, trials_per_session: int, test_images: int) -> Design:
    """Plan the experiment.

    Raises
    ------
    UserError
        When the test pictures leave fewer than 3 trials for training pictures.
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
    shown = np.arange(len(place)) < trials  # the last picture loses what does not fit
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
    """The table that NSD's samples are cut from: T x 17, float64, columns as `nsd.BEHAV_COLUMNS`.

    A subject says whether it has seen the picture before, is right in about 85 % of the trials, and
    takes some 0.8 s.
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
    says_old = old == right
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
        "total1": ~says_old,
        "total2": says_old,
        "button": 1 + says_old,
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
