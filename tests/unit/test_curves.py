"""A score along a setting: the table says what was given, and the same curve is the same file."""

from __future__ import annotations

import xml.etree.ElementTree as ET

from braingen.evaluation.curves import Curve, Point, markdown, plot
from braingen.evaluation.uncertainty import Summary


def curve() -> Curve:
    points = [
        Point(
            way,
            x,
            "two_way_clip",
            Summary(value, value - 0.05, value + 0.05, 0.01, None, 1, 3),
            0.5,
        )
        for way, start in (("routers", 0.6), ("scratch", 0.5))
        for x, value in ((1, start), (4, start + 0.2))
    ]
    ways = {"routers": "routers only", "scratch": "from scratch"}
    return Curve("Adapting", "sessions", ways, points, {"oracle": {"two_way_clip": 0.99}})


def test_the_table_has_a_row_per_point_and_the_levels():
    told = markdown(curve())
    assert "| routers only | 4 | 3 | 0.800 [0.750, 0.850] ± 0.010 |" in told
    assert "| from scratch | 1 | 3 | 0.500 [0.450, 0.550] ± 0.010 |" in told
    assert "| oracle | | | 0.990 |" in told and "Chance" in told


def test_a_curve_drawn_again_is_the_same_file(tmp_path):
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        plot(curve(), tmp_path / name, "curve", ["two_way_clip", "not_there"])
    for kind in ("png", "svg"):
        first, second = (tmp_path / name / f"curve.{kind}" for name in ("one", "other"))
        assert first.read_bytes() == second.read_bytes()
    labels = ET.parse(tmp_path / "one" / "curve.svg").getroot()
    assert len(list(labels.iter("{http://www.w3.org/2000/svg}path"))) > 5
