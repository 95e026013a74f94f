"""Regions that are the same in every person."""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import adjusted_mutual_info_score
import torch

from braingen.config import load_config
from braingen.encoders.linear_readout import LinearReadout
from braingen.encoding_model.model import EncodingModel
from braingen.encoding_model.responses import average_array
from braingen.encoding_model.shared_regions import (
    PULL,
    PersonVoxels,
    _paired,
    _Person,
    _tuning,
    pieces,
    shared_regions,
)
from braingen.training import linear_fit
from braingen.types import Trials

REGIONS, FEATURES, RANK, IMAGES, REPEATS = 4, 24, 5, 240, 2


class Made(NamedTuple):
    """One person's trials, and the regions that were planted."""

    region_V: np.ndarray
    features_NP: np.ndarray
    image_T: np.ndarray
    response_TV: np.ndarray

    @property
    def voxels(self) -> PersonVoxels:
        known = average_array(self.response_TV, self.image_T)
        model = EncodingModel.fit({"embedding": self.features_NP}, known, np.ones((1, 1)))
        signal_NV = model.predict({"embedding": self.features_NP})
        return PersonVoxels(model, self.response_TV - signal_NV[self.image_T])


def made_up(person: int, lacks: int | None = None, noise: float = 1.0) -> Made:
    """Regions read a subspace of the features each, the same in everybody; sizes, weights, images
    and trials are a person's own.
    """
    draws = np.random.default_rng([7, person])
    sizes_A = draws.integers(20, 45, REGIONS)
    if lacks is not None:
        sizes_A[lacks] = 0
    region_V = draws.permutation(np.repeat(np.arange(REGIONS), sizes_A))
    axes = np.random.default_rng(1).normal(size=(REGIONS, RANK, FEATURES))
    weights_VP = np.einsum("vr,vrp->vp", draws.normal(size=(len(region_V), RANK)), axes[region_V])
    features_NP = draws.normal(size=(IMAGES, FEATURES)).astype(np.float32)
    signal_NV = features_NP @ weights_VP.T
    signal_NV /= signal_NV.std(0)
    image_T = np.repeat(np.arange(IMAGES), REPEATS)
    gain_TA = 1 + 0.6 * draws.normal(size=(len(image_T), REGIONS))
    response_TV = gain_TA[:, region_V] * (signal_NV[image_T] + 1) - 1
    response_TV += noise * draws.normal(size=response_TV.shape)
    return Made(region_V, features_NP, image_T, response_TV.astype(np.float32))


def as_planted(people: list[Made], found: list[np.ndarray]) -> float:
    """Share of the voxels that lie in the planted region for which their number stands most often
    in all people together.
    """
    table = np.zeros((REGIONS, REGIONS))
    for person, region_V in zip(people, found):
        np.add.at(table, (region_V, person.region_V), 1)
    return table.max(1).sum() / table.sum()


@pytest.fixture(scope="module")
def people() -> list[Made]:
    return [made_up(1), made_up(2), made_up(3, lacks=2)]


def test_a_number_is_the_same_region_in_everybody_even_where_one_is_missing(people):
    everyone = {"embedding": np.concatenate([person.features_NP for person in people])}
    found = shared_regions([person.voxels for person in people], everyone, REGIONS)
    for person, region_V in zip(people, found):
        assert adjusted_mutual_info_score(person.region_V, region_V) > 0.9
    assert as_planted(people, found) > 0.95
    again = shared_regions([person.voxels for person in people], everyone, REGIONS)
    assert all(np.array_equal(a, b) for a, b in zip(found, again))


def test_pieces_are_voxels_that_fluctuate_together(people):
    person = people[0]
    piece_V, together_CC, region_V = pieces(person.voxels.left_TV, REGIONS)
    assert piece_V.max() + 1 == len(together_CC) == round(2.5 * REGIONS)
    assert set(np.unique(region_V)) <= set(range(REGIONS))
    planted = [np.bincount(person.region_V[piece_V == each]) for each in range(len(together_CC))]
    assert sum(each.max() for each in planted) > 0.97 * len(piece_V)
    same = np.equal.outer(*[[each.argmax() for each in planted]] * 2)
    np.fill_diagonal(same, False)
    large = np.outer(*[[each.sum() > 4 for each in planted]] * 2)
    assert together_CC[same & large].min() > together_CC[~same & large].max()


def test_two_identical_people_have_identical_regions(people):
    twice = [people[0].voxels] * 2
    found = shared_regions(twice, {"embedding": people[0].features_NP}, REGIONS)
    assert np.array_equal(*found)


def test_few_voxels_are_enough():
    few = made_up(4)
    voxels = few._replace(response_TV=few.response_TV[:, :3]).voxels
    found = shared_regions([voxels, voxels], {"embedding": few.features_NP}, 16)
    assert [each.shape for each in found] == [(3,), (3,)]


def test_subjects_that_are_trained_together_have_the_same_regions(people, monkeypatch):
    """Both fits of a subject are given its shared regions; one subject alone finds its own."""
    pair = people[:2]
    start = np.cumsum([0, *(len(person.features_NP) for person in pair)])
    features_NP = np.concatenate([person.features_NP for person in pair])
    measured, held_out = [], []
    for subject, (person, first) in enumerate(zip(pair, start), 1):
        table = pd.DataFrame(
            {"trial": np.arange(len(person.image_T)), "image": person.image_T + first}
        )
        left = person.image_T >= IMAGES - 80
        betas = SimpleNamespace(
            voxels=person.response_TV.shape[1],
            rows=lambda rows, person=person: person.response_TV[rows],
        )
        measured.append((Trials(table[~left], subject), betas))
        held_out.append(Trials(table[left], subject))
    truth_NR = torch.from_numpy(features_NP)
    rows = np.arange(len(features_NP))
    spaces = SimpleNamespace(of_ids=lambda ids: {"embedding": features_NP[ids]})
    monkeypatch.setattr(linear_fit, "FeatureSpaces", lambda *_: spaces)
    found: list[list[np.ndarray]] = []

    def recorded(*arguments):
        found.append(shared_regions(*arguments))
        return found[-1]

    monkeypatch.setattr(linear_fit, "shared_regions", recorded)
    given: list[np.ndarray | None] = []
    fit = linear_fit.fit_region_gains

    def fit_recorded(*arguments):
        given.append(arguments[-1])
        return fit(*arguments)

    monkeypatch.setattr(linear_fit, "fit_region_gains", fit_recorded)
    overrides = {"run.device": "cpu", "training.linear": "best"}
    config = load_config(None, {**overrides, "training.gain_regions": str(REGIONS)})

    def train(some: slice) -> LinearReadout:
        voxels = {trials.subject: betas.voxels for trials, betas in measured[some]}
        linear = LinearReadout(voxels, FEATURES, 1, FEATURES, regions=REGIONS)
        linear.set_basis(truth_NR[:, None])
        decoder = SimpleNamespace(linear=linear, device="cpu")
        for part, held in zip(measured[some], held_out[some]):
            linear_fit.fit_ridges(decoder, part, held, truth_NR, rows)
        linear_fit.take_better(
            decoder, measured[some], held_out[some], truth_NR, rows, config, None
        )
        return linear

    linear = train(slice(2))
    assert len(found) == 1 and len(given) == 4
    for subject, region_V in enumerate(found[0], 1):
        for without in (False, True):
            with linear.without_held_out() if without else nullcontext():
                router = linear.router(subject)
                assert router is not None
                assert router.region_V.tolist() == region_V.tolist()
    for region_V, each in zip([found[0][0]] * 2 + [found[0][1]] * 2, given):
        assert each is region_V
    train(slice(1))
    assert len(found) == 1 and given[4:] == [None, None]


def test_a_piece_is_drawn_to_those_it_fluctuates_with():
    """Tuning decides where it is clear, fluctuations where it is not."""
    piece_V = np.array([0, 0, 0, 1, 1, 2])
    together_CC = np.array([[0.0, 0, 0.9], [0, 0, 0.1], [0.9, 0.1, 0]])
    person = _Person(np.zeros((6, 2)), np.ones(6), piece_V, together_CC / PULL, np.zeros(6))
    likelihood_VA = np.array([[0.0, -9]] * 3 + [[-9, 0.0]] * 2 + [[0.0, 0.7]])
    region_V = person.shared_out(likelihood_VA, np.zeros(6, dtype=np.int64))
    assert region_V.tolist() == [0, 0, 0, 1, 1, 0]
    likelihood_VA[5] = [0.0, 0.9]
    region_V = person.shared_out(likelihood_VA, np.zeros(6, dtype=np.int64))
    assert region_V.tolist() == [0, 0, 0, 1, 1, 1]


def test_regions_are_numbered_by_what_they_are_tuned_to(people):
    """However a person's own regions are numbered at first."""
    draws = np.random.default_rng(3)
    tuned = [
        _Person(tuning_VK, weight_V, *pieces(each.voxels.left_TV, REGIONS))
        for each, (tuning_VK, weight_V) in zip(
            people, _tuning([each.voxels for each in people], {"embedding": people[0].features_NP})
        )
    ]
    renumbered = [
        each._replace(start_V=draws.permutation(REGIONS)[person.region_V])
        for each, person in zip(tuned, people)
    ]
    assert as_planted(people, _paired(renumbered, REGIONS)) == 1
