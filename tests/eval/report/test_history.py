"""Releases side by side, from the JSON that reports leave."""

import json

import pytest

from eval.report import format_table, render, write_report
from eval.report.history import read_history
from siglip_jax.errors import UserError


def estimate(mean):
    return {"mean": mean, "low": mean - 0.01, "high": mean + 0.01}


def report(mean, **changes):
    rows = [
        {"name": name, "exact": {"nDCG@5": estimate(value)}, "tie_rate": 0.0}
        for name, value in (("old", 0.4), ("new", mean))
    ]
    whole = {
        "title": "t",
        "protocol": "logged-list re-ranking",
        "gain": "linear",
        "relevance": [],
        "relevant_from": 1,
        "queries": 900,
        "items": 30,
        "left_out": 0,
        "primary_metric": "nDCG@5",
        "rows": rows,
        "differences": [{"a": "new", "b": "old", "metric": "nDCG@5", **estimate(mean - 0.4)}],
        "loss_curve": [],
        "grid": [],
        "provenance": {},
        "new": "new",
        "against": "old",
    }
    return whole | changes


def test_earlier_reports_and_this_one(tmp_path):
    for name, each in {"may": report(0.45), "june": report(0.5, queries=800)}.items():
        write_report(tmp_path / f"{name}.html", each, images=lambda item: b"")
    now = report(0.55)
    now["history"] = read_history([tmp_path / "may.json", tmp_path / "june.json"], now)
    assert [line["report"] for line in now["history"]] == ["may", "june", "this report"]
    assert [line["mean"] for line in now["history"]] == [0.45, 0.5, 0.55]
    assert [line["same_data"] for line in now["history"]] == [True, False, True]
    assert now["history"][1]["difference"]["mean"] == pytest.approx(0.1)
    table = next(line for line in format_table(now).splitlines() if line.startswith("june"))
    assert table.split()[-1] == "data"
    page = render(now, images=lambda item: b"")
    assert "Releases" in page
    assert "june" in page


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "cannot be read"),
        ("[]", "no report of rank"),
        (json.dumps(report(0.4, protocol="time split")), "protocol 'time split', this report has"),
        (json.dumps(report(0.4, primary_metric="MRR")), "primary metric 'MRR'"),
    ],
)
def test_what_does_not_compare_is_refused(tmp_path, content, said):
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(UserError, match=said):
        read_history([tmp_path / "x.json"], report(0.5))
