"""Figures of maps that have nothing, or not everywhere something, to show: zero is the middle of
the colours, no value is left out.
"""

from __future__ import annotations

import inspect
import math
import warnings

import numpy as np
from PIL import Image
import pytest

from braingen.data.volumes import VoxelPlaces
from braingen.interpret import figures
from braingen.report.figures import curve_panels, difference_chart, ticks, times_chart
from braingen.report.inside import _overlay

pytestmark = pytest.mark.slow  # left out of `make quick`

SIDE = 12
grid = np.stack(np.meshgrid(*[np.arange(SIDE)] * 3, indexing="ij"), axis=-1)
PLACES = VoxelPlaces(
    ((grid - SIDE / 2 + 0.5) ** 2).sum(-1) < 30, "C", np.diag([2.0, 2, 2, 1]), "a ball"
)
V = PLACES.voxels
NOISE = np.random.default_rng(0).standard_normal(V)
ODD = {
    "zero": np.zeros(V),
    "constant": np.full(V, 3.0),
    "tiny": NOISE * 1e-30,
    "all NaN": np.full(V, np.nan),
    "half NaN": np.where(np.arange(V) % 2, NOISE, np.nan),
    "one infinite": np.where(np.arange(V) == 0, np.inf, NOISE),
    "one voxel": np.where(np.arange(V) == V // 2, 1.0, 0.0),
    "booleans": np.arange(V) % 2 == 0,
}


def draw(name: str, path, value_V, title=""):
    if name == "draw_flat_cortex":
        place_V2 = PLACES.millimetres_V3[:, :2]
        figures.draw_flat_cortex(path, place_V2, np.arange(V) % 2, np.full(V, "V1"), value_V, title)
    elif name == "draw_surface":
        pytest.skip("needs meshes: see test_surface")
    else:
        getattr(figures, name)(path, PLACES, value_V, title)


def coloured(path) -> float:
    """Share of the picture in colours of values far from zero."""
    pixels = np.asarray(Image.open(path).convert("RGB")).astype(int)
    return float((pixels.max(2) - pixels.min(2) > 60).mean())


DRAWERS = [
    name for name, _ in inspect.getmembers(figures, inspect.isfunction) if name.startswith("draw_")
]


def test_every_drawing_function_is_here():
    assert set(DRAWERS) == {
        "draw_columns",
        "draw_projections",
        "draw_flat_cortex",
        "draw_slices",
        "draw_surface",
    }


@pytest.mark.parametrize("name", [name for name in DRAWERS if name != "draw_surface"])
def test_odd_maps_are_drawn(tmp_path, name):
    for odd, value_V in ODD.items():
        path = tmp_path / f"{odd}.png"
        with warnings.catch_warnings():
            warnings.simplefilter("error", RuntimeWarning)
            draw(name, path, value_V)
        with Image.open(path) as picture:
            assert picture.size[0] > 100, odd
    # the bar of a slice figure has every colour: what it takes is subtracted
    zero, whole = coloured(tmp_path / "zero.png"), coloured(tmp_path / "constant.png")
    assert coloured(tmp_path / "all NaN.png") == pytest.approx(zero, abs=0.01)
    assert whole > zero + 0.05
    draw(name, tmp_path / "noise.png", NOISE)
    assert coloured(tmp_path / "half NaN.png") - zero > 0.3 * (
        coloured(tmp_path / "noise.png") - zero
    )
    assert coloured(tmp_path / "one infinite.png") - zero > 0.8 * (
        coloured(tmp_path / "noise.png") - zero
    )
    assert coloured(tmp_path / "tiny.png") - zero > 0.8 * (coloured(tmp_path / "noise.png") - zero)
    assert (tmp_path / "one voxel.png").read_bytes() != (tmp_path / "zero.png").read_bytes()


@pytest.mark.parametrize(
    ("value_V", "told"),
    [(ODD["zero"], "zero everywhere"), (ODD["all NaN"], "no finite value"), (NOISE, "")],
)
def test_a_title_says_that_there_is_nothing_to_see(value_V, told):
    assert figures._titled("a map", value_V) == (f"a map ({told})" if told else "a map")


def test_colours_are_symmetric_and_end_where_values_do():
    assert [figures._limit(ODD[name]) for name in ("zero", "all NaN", "constant", "one voxel")] == [
        1,
        1,
        3,
        1,
    ]
    assert figures._limit(np.array([])) == 1 and figures._limit(np.full(V, -3)) == 3


@pytest.mark.parametrize(
    "map_PP",
    [
        np.zeros((4, 4)),
        np.full((4, 4), np.nan),
        np.full((4, 4), np.inf),
        np.ones((4, 4)),
        -np.ones((4, 4)),
    ],
)
def test_odd_maps_over_pictures(map_PP):
    shown = np.asarray(_overlay(Image.new("RGB", (8, 8), "white"), map_PP))
    assert shown.shape == (8, 8, 3) and (shown == shown[0, 0]).all()


ODD_LINES = {
    "constant": [1.0, 1.0],
    "zero": [0.0, 0.0],
    "tiny": [1e-14, 2e-14],
    "huge": [1e300, 2e300],
    "one": [0.5],
    "near": [1e16, 1e16 + 2],
    "NaN": [math.nan, 1.0],
    "infinite": [math.inf, 1.0, 2.0],
    "all NaN": [math.nan, math.nan],
}


@pytest.mark.parametrize("name", ODD_LINES)
def test_odd_curves_are_drawn(name):
    panels = curve_panels(
        {"image": [{"epoch": x, "validation/loss": y} for x, y in enumerate(ODD_LINES[name])]}
    )
    text = "".join(panel.chart for panel in panels)
    assert len(panels) == (0 if name == "all NaN" else 1) and not any(
        word in text for word in ('"nan', '"inf', " nan", " inf")
    )


def test_ticks_differ_and_cover_the_interval():
    for low, high in ((1e-14, 2e-14), (0, 1), (-3e-200, 5e-200), (1e300, 2e300)):
        marks = ticks(low, high)
        assert (
            marks[0] <= low * (1 - 1e-9) + 1e-9 * abs(high)
            and marks[-1] >= high * (1 - 1e-9)
            and len(set(marks)) == len(marks) > 1
        )


def test_bars_and_differences_of_nothing():
    assert times_chart({}) == [] and len(times_chart({"train": 0.0})) == 1
    assert "<svg" in difference_chart({"difference": 0.0, "low": math.nan, "high": None}, 1.0)
