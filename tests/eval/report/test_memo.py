"""The memo: what the report says, on one page, and no name of its data becomes Markdown."""

import re

import pytest

from eval.report import write_report
from eval.report.memo import format_memo
from eval.report.report_text import meaning

EVIL = "a | b <script> `x` *y* _z_"


def estimate(mean, queries=900):
    return {"mean": mean, "low": mean - 0.01, "high": mean + 0.01, "queries": queries}


def report(rows=3, **changes):
    names = [f"row {n}" for n in range(rows - 2)] + ["old", "new"]
    slices = [
        {"slicing": "colour", "label": EVIL, "queries": 60, "difference": estimate(-0.2), "verdict": "worse"},
        {"slicing": "colour", "label": "blue", "queries": 60, "difference": estimate(0.2), "verdict": "better"},
    ]
    whole = {
        "title": EVIL,
        "protocol": "logged-list re-ranking",
        "gain": "linear",
        "queries": 900,
        "users": 321,
        "items": 1300,
        "left_out": 7,
        "primary_metric": "nDCG@5",
        "rows": [{"name": name, "exact": {"nDCG@5": estimate(0.5), "hit@5": estimate(0.7)}} for name in names],
        "differences": [
            {"a": "new", "b": "old", "metric": "nDCG@5", **estimate(0.1), "relative": 0.25, "p_holm": 1e-4}
        ],
        "conclusion": f"New is better {EVIL}.",
        "warnings": ["3 items leak"],
        "row_notes": {"old": "profits from its own positions"},
        "notes": [f"note {n}" for n in range(20)],
        "slices": {"slices": slices, "measured": 2, "new": "new"},
        "new": "new",
        "against": "old",
        "provenance": {"versions": {"siglip-jax": "0.1.0"}},
    }
    return whole | changes


def test_what_it_says(tmp_path):
    text = format_memo(report())
    for said in (
        "**New is better",
        "nDCG@5 is 1 where the first 5 places",
        "900 queries of 321 users, 1,300 items; 7 queries without a relevant item left out; linear gain",
        "> 3 items leak",
        "| new | 0.500 [0.490, 0.510] | 0.700 [0.690, 0.710] |",
        "| queries | 900 | 900 |",
        "old: profits from its own positions",
        "| new − old | +0.100 [+0.090, +0.110] | +25.0 % | better |",
        "Worse in 1 of 2 slices:",
    ):
        assert said in text
    assert "blue" not in text
    assert "<script" not in text.replace("\\<", "")
    tables = [line for line in text.splitlines() if line.startswith("|")]
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in tables} <= {4, 5}
    write_report(tmp_path / "memo.md", report(), images=lambda item: b"")
    assert (tmp_path / "memo.md").read_text() == text
    assert (tmp_path / "memo.json").exists()


def test_it_stays_one_page():
    text = format_memo(report(rows=60))
    assert len(text.splitlines()) < 60
    assert "| old |" in text
    assert "| new |" in text


@pytest.mark.parametrize(
    "metric", ["nDCG_exp@5", "precision@1", "recall@10", "hit@5", "MRR", "MAP", "ERR@4", "RBP(0.8)"]
)
def test_metrics_are_explained(metric):
    assert meaning(metric).startswith(f"{metric} is ")
    assert ("first" in meaning(metric)) or "RBP" in metric or "ERR" in metric
    assert meaning("F1@5") == ""
