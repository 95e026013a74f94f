"""Averaging scores over several drawings of the same images."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from braingen.evaluation.averaged import Scored, averaged, intervals
from braingen.evaluation.identification import TwoWay
from braingen.evaluation.uncertainty import mean_interval, two_way_interval
from braingen.types import Score

IMAGES = 60


def score(value: float | None) -> Score:
    return Score(value, 0.0, 1.0, None, None, None, 0.5, IMAGES, None)


def drawing(seed: int) -> Scored:
    """Values and outcomes without any signal."""
    generator = np.random.default_rng(seed)
    values_N, beats_NN = generator.random(IMAGES), generator.random((IMAGES, IMAGES)) < 0.5
    np.fill_diagonal(beats_NN, False)
    table = pd.DataFrame({"pixcorr": values_N}, index=pd.Index(np.arange(IMAGES), name="image"))
    two_way = TwoWay(beats_NN)
    return Scored(
        {"pixcorr": score(float(values_N.mean())), "two_way_clip": score(two_way.value)},
        table,
        {"two_way_clip": two_way},
    )


def test_one_drawing_is_returned_as_it_is() -> None:
    assert averaged([drawing(0)]) == drawing(0).scores


def test_copies_of_one_drawing_have_its_value_and_its_interval() -> None:
    found, one = averaged([drawing(0)] * 3, 400), drawing(0)
    for name, interval in (
        ("pixcorr", mean_interval(one.table["pixcorr"].to_numpy(), 400)),
        ("two_way_clip", two_way_interval(one.identified["two_way_clip"].beats_NN, 400)),
    ):
        assert found[name][:3] == pytest.approx(interval, abs=1e-6)


def test_the_mean_of_independent_drawings_is_known_better_than_one() -> None:
    several = [drawing(seed) for seed in range(9)]
    found = averaged(several, 400)
    for name in ("pixcorr", "two_way_clip"):
        assert found[name].value == pytest.approx(
            np.mean([each.scores[name].value for each in several])
        )
    width = {
        count: np.subtract(
            *averaged(several[:count] * (2 if count == 1 else 1), 400)["pixcorr"][2:0:-1]
        )
        for count in (1, 9)
    }
    assert width[9] < width[1] / 2


def test_images_are_matched_by_id_and_what_one_lacks_is_left_out() -> None:
    one, other = drawing(0), drawing(1)
    turned = other._replace(table=other.table.iloc[::-1])
    assert averaged([one, turned], 50) == averaged([one, other], 50)
    lacking = other._replace(scores={"pixcorr": other.scores["pixcorr"]})
    assert set(averaged([one, lacking], 50)) == {"pixcorr"}


def test_images_that_a_score_does_not_ask_about_do_not_count() -> None:
    some, other = drawing(0), drawing(1)
    queries_N = np.arange(IMAGES) < 40
    partly = [each._replace(table=each.table.where(queries_N[:, None])) for each in (some, other)]
    mean_N = (some.table["pixcorr"] + other.table["pixcorr"]).to_numpy()[queries_N] / 2
    assert averaged(partly, 400)["pixcorr"][1:3] == pytest.approx(mean_interval(mean_N, 400)[1:])


def test_a_score_that_has_no_value_has_none_on_average() -> None:
    nothing = drawing(0)._replace(scores={"psnr": score(None)})
    found = averaged([nothing, nothing], 50)
    assert found["psnr"][:3] == (None, None, None)
    assert intervals({"pixcorr": score(float("inf"))}) == {
        "pixcorr": {"value": None, "low": 0.0, "high": 1.0}
    }
