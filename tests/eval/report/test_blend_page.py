"""The page of a blend: where the curves lie, and that it stands alone."""

import re

import pytest

from eval.report import charts, render_blend


def point(x, mean, half=0.01):
    return {"x": x, "mean": mean, "low": mean - half, "high": mean + half}


def test_points_lie_where_their_numbers_say():
    found = charts.curves({"new": [point(0, 0), point(0.5, 0.1), point(1, 0.2)]}, marked=0.5)
    (line,) = found["lines"]
    xs, ys = ([p[axis] for p in line["points"]] for axis in "xy")
    assert xs[1] - xs[0] == pytest.approx(xs[2] - xs[1])
    assert ys[0] - ys[1] == pytest.approx(ys[1] - ys[2], abs=0.2)  # up is less
    assert found["zero"] == ys[0]
    assert found["marked"] == xs[1]
    for p in line["points"]:
        assert found["top"] < p["high"] < p["y"] < p["low"] < found["bottom"]
    assert [tick["label"] for tick in found["ticks_x"]] == ["0", "0.5", "1"]


def test_what_was_not_measured_is_left_out():
    nothing = {"x": 0.5, "mean": None, "low": None, "high": None}
    found = charts.curves({"new": [point(0, 0), nothing], "learned": [nothing]}, marked=0)
    assert [(line["label"], len(line["points"])) for line in found["lines"]] == [("new", 1)]
    assert charts.curves({}, marked=0)["lines"] == []


def report(**changes):
    def catalogue(name, slope):
        def row(alpha):
            return {
                "alpha": alpha,
                "metrics": {metric: point(0, 0.5 + slope * alpha) for metric in ("nDCG@5", "text_to_image/MRR")},
                "differences": {metric: point(0, slope * alpha) for metric in ("nDCG@5", "text_to_image/MRR")},
            }

        return {
            "dataset": f"data/<{name}>",
            "queries": 1234,
            "clusters": 1000,
            "warnings": ["7 items are missing"] if name == "old" else [],
            "metrics": ["nDCG@5", "text_to_image/MRR"],
            "rows": [row(alpha) for alpha in (0, 0.5, 1)],
        }

    return {
        "title": "Blends",
        "start": "runs/old",
        "models": ["runs/new"],
        "ends": "0 is runs/old, 1 is runs/new",
        "split": "validation",
        "alphas": [0, 0.5, 1],
        "metric": "nDCG@5",
        "rule": "the best nDCG@5",
        "chosen": 0.5,
        "catalogues": {"new": catalogue("new", 0.1), "learned": catalogue("old", -0.2)},
        **changes,
    }


def test_the_page_stands_alone_and_escapes_names():
    page = render_blend(report())
    assert page.count("<svg") == 2
    assert "data/&lt;new&gt;, 1,234 items" in page
    assert "Alpha 0.5 is chosen" in page
    assert page.count("7 items are missing") == 1
    assert "0.5, chosen" in page
    assert not re.search(r'(?:src|href)="|url\(|<script', page)


def test_no_change_and_a_soup_are_said():
    page = render_blend(report(chosen=0, models=["a", "b"], ends="0 is the start, 1 is the mean of a, b"))
    assert "Alpha 0 is chosen: no change" in page
    assert "1 is the mean of a, b" in page
