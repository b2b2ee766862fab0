"""The report's optional parts: each absent or there, with the numbers it was given, and of bounded size."""

import html
import io
import pathlib
import re

import numpy as np
import pytest
from PIL import Image

from eval.report import charts, format_table, write_report
from eval.report.thumbnails import thumbnails
from eval.statistics import measure_slices
from eval.statistics.slices import by_value

EVIL = '<script>alert("x")</script>'


def estimate(mean, reach=0.01):
    return {"mean": mean, "low": mean - reach, "high": mean + reach}


def rung(method, width, precision, mean, lost):
    size = width * (1 if precision == "int8" else 4)
    difference = None if lost is None else estimate(lost, 0.002)
    return {"method": method, "width": width, "precision": precision, "bytes": size, **estimate(mean),
            "difference": difference, "kept": mean / 0.5, "explained": None}  # fmt: skip


def whole_report(**changes):
    rng = np.random.default_rng(0)
    kinds = rng.choice(["shoes", "shirts", "few"], 900, p=[0.5, 0.48, 0.02])
    base = rng.uniform(size=900)
    new = base + 0.1 - 0.3 * (kinds == "shoes") + rng.normal(0, 0.1, 900)
    sliced = measure_slices([by_value(EVIL, kinds)], new, base)
    results = [{"id": "a", "title": EVIL, "gain": 3}]
    example = {"query": "q", "title": EVIL, "systems": [{"name": "new", "results": results}]}
    difference = {"a": "new", "b": "old", "metric": "nDCG@5", **estimate(0.1), "relative": 0.25, "p_all": 1e-4}
    column = {"name": "IPS nDCG@5", "note": f"clipped {EVIL}", "values": {"new": estimate(0.523), "old": 0.321}}
    report = {
        "title": "Report",
        "protocol": "logged-list re-ranking",
        "gain": "linear",
        "relevance": [],
        "relevant_from": 1,
        "queries": 900,
        "items": 1300,
        "left_out": 0,
        "primary_metric": "nDCG@5",
        "rows": [
            {"name": name, "exact": {"nDCG@5": estimate(mean)}, "scann": {"nDCG@5": estimate(mean - 0.0125)},
             "scann_recall": {"recall@10": 0.99}, "tie_rate": 0.0, "bytes_per_item": 3072}
            for name, mean in (("old", 0.4), ("new", 0.5), ("new, PCA 128", 0.49))
        ],
        "differences": [difference],
        "loss_curve": [],
        "grid": [],
        "provenance": {},
        "conclusion": f"New is better {EVIL} (p 0.01). A true difference of 0.02 would be found.",
        "minimum_detectable": 0.0234,
        "notes": [f"nobody {EVIL} was left out"],
        "warnings": [f"3 items leak {EVIL}"],
        "users": 4321,
        "list_length": {"min": 2, "median": 12, "mean": 12.5, "max": 30},
        "new": "new",
        "against": "old",
        "columns": [column],
        "beyond": {"metrics": ["coverage"], "rows": {"new": {"coverage": 0.777}}, "notes": {"coverage": "of items"}},
        "ladders": [
            {"row": "new", "metric": "nDCG@5", "dimension": 768, "fitted_on": f"train {EVIL}", "rungs": [
                rung("full width", 768, "float32", 0.5, None), rung("full width", 768, "int8", 0.499, -0.001),
                rung("truncation", 128, "float32", 0.45, -0.05), rung("PCA", 128, "float32", 0.49, -0.012),
                rung("PCA", 128, "int8", 0.488, -0.0123)]}
        ],
        "slices": sliced | {"new": "new", "base": "old", "metric": "nDCG@5"},
        "gains": [example | {"values": {"new": 0.987}}],
        "losses": [],
    }  # fmt: skip
    return report | changes


def jpeg(_):
    buffer = io.BytesIO()
    Image.new("RGB", (20, 10), (200, 30, 30)).save(buffer, "JPEG")
    return buffer.getvalue()


def page_of(tmp_path, report):
    write_report(tmp_path / "report.html", report, images=jpeg)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    return page, html.unescape(re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", page)))


def test_logs_have_a_legend_of_their_actions(tmp_path):
    actions = {"impression": 0.0, "tap": 1.0, "like": 2.0, "wish": 0.5, "cart": 2.0, "purchase": 3.0}
    page, text = page_of(tmp_path, whole_report(actions=actions))
    for said in ("3: purchase", "2: like, cart", "1: tap", "0.5: wish", "0: none of these"):
        assert said in text
    assert 'class="gain1">0.5: wish' in page
    assert "nDCG@5 is 1 where the first 5 places" in text


def test_it_prints_whole():
    style = (pathlib.Path(charts.__file__).parent / "report.css").read_text()
    printed = style[style.index("@media print") :]
    assert "details::details-content { content-visibility: visible" in printed  # what is folded
    assert ".scroll { overflow: visible; }" in printed
    assert "@media screen and (prefers-color-scheme: dark)" in style  # paper is white


def test_what_each_would_have_earned_and_the_trend(tmp_path):
    cells = {"independent": {**estimate(1.25), "effective": 123.4, "enough": True}}
    few = {"independent": {**estimate(9.75), "effective": 3.2, "enough": False}}
    earned = {"estimators": ["independent"], "depth": 5, "lists": 1234, "rows": {"old": cells, "new": cells, EVIL: few}}
    earned["difference"] = {"independent": estimate(0.125, 0.05)}
    report = whole_report(off_policy=earned, row_notes={"old": f"profits {EVIL}"}, similarity="dot")
    report["trend"] = report["slices"]
    page, text = page_of(tmp_path, report)
    for said in (
        "1,234 lists",
        "1.250 1.240–1.260 123 effective lists",
        "too few 3 effective lists",
        "+0.125 +0.075 to",
    ):
        assert said in text
    assert "9.750" not in text
    assert "Over time" in text
    assert "similarity: inner product" in text
    assert "<script" not in page
    table = format_table(report)
    assert "earned in the first 5 places" in table
    assert "too few (3)" in table
    assert "old: profits" in table


def test_intervals_of_the_index_and_of_all_comparisons_at_once(tmp_path):
    report = whole_report()
    for row in report["rows"]:
        row["scann_change"] = {"nDCG@5": estimate(-0.0125, 0.0041) | {"p": 0.001}}
    first = report["differences"][0]
    report["differences"] = [
        first | {"low_all": 0.0512, "high_all": 0.1488},
        first | {"b": "new, PCA 128", "low_all": 0.0421, "high_all": 0.1579},
        first | {"b": "random"},  # of other queries
    ]
    page, text = page_of(tmp_path, report)
    for phrase in (
        "−0.013 to 0.388 [−0.017, −0.008]",
        "all at once +0.051 to +0.149",
        "it holds for all 2 comparisons together",
    ):
        assert phrase in text, phrase
    assert page.count('class="all"') >= 2  # the thin lines
    printed = format_table(report)
    assert max(map(len, printed.splitlines())) <= 110
    for phrase in ("change [95 %]", "−0.013 [−0.017, −0.008]", "all at once [+0.051, +0.149]"):
        assert phrase in printed
    assert printed.count("all at once") == 2
    report["differences"][1]["b"] = "a row with a name that is far too long for a column more in a terminal"
    assert "all at once" not in format_table(report)


def test_every_part_says_its_numbers(tmp_path):
    page, text = page_of(tmp_path, whole_report())
    assert "<script" not in page
    assert page.index("New is better") < page.index("How well each ranks") < page.index("What smaller vectors cost")
    for phrase in (
        "A true difference of 0.02 would be found.", "0.023", "nobody",
        "3 items leak", "4,321 users", "lists of 2 to 30 , mean 12.5",
        "−0.013 to 0.388", "3,072",  # the index's loss, bytes
        "IPS nDCG@5 : clipped", "0.523", "0.321", "+25.0 %", "p, corrected", "< 0.001",
        "PCA 128, int8", "−0.012 [−0.014, −0.010]", "fitted on train", "97.6 %",
        "Slices, the worst first", "all 2 slices at once", "1 left out",
        "coverage", "0.777", "of items", "Largest gains", "0.987", "None.",
    ):  # fmt: skip
        assert phrase in text, phrase
    assert "all at once" not in text
    order = [row["label"] for row in whole_report()["slices"]["slices"]]
    assert order == ["shoes", "shirts"]
    assert text.index("shoes") < text.index("shirts")
    assert text.count("worse") >= 1


def test_a_difference_that_many_comparisons_explain_is_undecided(tmp_path):
    report = whole_report(conclusion=None)
    report["differences"][0] |= {"low_all": -0.01, "high_all": 0.21, "p_all": 0.06}
    _, text = page_of(tmp_path, report)
    assert "Undecided whether new ranks better than old" in text
    assert "95 % interval −0.010 to +0.210" in text


def test_what_was_concluded_is_what_is_said(tmp_path):
    """Verdicts, confidence, what the queries weigh, and the memo's line."""
    weights = {"user": 93.2, "query_item": 8.24}
    report = whole_report(conclusion=None, confidence=0.9, weights=weights, memo=f"take new {EVIL}.")
    report["differences"][0]["verdict"] = "too few"
    page, text = page_of(tmp_path, report)
    said = "Queries of one user or one query item are taken as dependent: 900 queries weigh as 93.2 users and 8.2 query"
    printed = " ".join(format_table(report).split())
    for phrase in ("Too few to say whether new ranks better than old", "90 % interval", "For the memo: take new", said):
        assert phrase in text, phrase
        assert phrase in printed, phrase
    assert "95 %" not in text + printed
    assert 'class="tile too-few"' in page


def test_parts_that_are_absent_leave_nothing(tmp_path):
    report = whole_report()
    for key in ("conclusion", "minimum_detectable", "notes",
                "warnings", "users", "list_length", "columns", "beyond", "ladders", "slices", "gains",
                "losses", "new", "against"):  # fmt: skip
        del report[key]
    _, text = page_of(tmp_path, report)
    for phrase in ("users", "lists of", "IPS", "coverage", "smaller vectors", "Slices", "Largest", "Undefined"):
        assert phrase not in text
    assert text.strip().startswith("Report")
    assert "New ranks better than old" in text


def test_the_terminal_has_the_conclusion_the_ladder_and_the_worst_slices():
    text = format_table(whole_report())
    flat = " ".join(text.split())
    assert flat.startswith("New is better")
    assert "PCA 128, int8 128 0.488 [0.478, 0.498] −0.012 [−0.014, −0.010]" in flat
    assert "shoes" in flat
    assert flat.index("shoes") < flat.index("shirts")


def test_slices_that_are_all_small_are_said_so(tmp_path):
    sliced = measure_slices([by_value("kind", ["a", "b"] * 9)], np.linspace(0, 1, 18))
    _, text = page_of(tmp_path, whole_report(slices=sliced | {"new": "new", "base": None, "metric": "nDCG@5"}))
    assert "2 left out" in text
    assert "No slice is large enough." in text


def test_level_slices_without_another_row(tmp_path):
    rng = np.random.default_rng(0)
    sliced = measure_slices([by_value("kind", rng.choice(["a", "b"], 400))], rng.uniform(size=400))
    _, text = page_of(tmp_path, whole_report(slices=sliced | {"new": "new", "base": None, "metric": "nDCG@5"}))
    assert "nDCG@5 of new within groups" in text


def test_ladder_chart_keeps_order_and_proportion():
    found = charts.ladder(whole_report()["ladders"][0])
    lines = {line["label"]: line for line in found["lines"]}
    assert set(lines) == {"full width, float32", "full width, int8", "truncation, float32", "PCA, float32", "PCA, int8"}
    points = {label: line["points"][0] for label, line in lines.items()}
    assert points["full width, float32"]["y"] == found["full"]
    drop = {label: p["y"] - found["full"] for label, p in points.items()}  # down is worse
    assert drop["truncation, float32"] / drop["PCA, float32"] == pytest.approx(0.05 / 0.012, rel=0.05)
    assert points["PCA, int8"]["x"] < points["PCA, float32"]["x"] < points["full width, float32"]["x"]
    for p in points.values():
        assert p["high"] <= p["y"] <= p["low"]
    assert charts.ladder({"rungs": [rung("full width", 8, "float32", 0.5, None)]}) is None


@pytest.mark.parametrize(("low", "high"), [(0, 1), (-0.013, 0.0021), (3, 3000), (0.41, 0.43)])
def test_ticks_are_round_and_inside(low, high):
    ticks = charts.nice_ticks(low, high)
    assert 2 <= len(ticks) <= 12
    assert all(low - 1e-9 <= tick <= high + 1e-9 for tick in ticks)
    steps = np.diff(ticks)
    np.testing.assert_allclose(steps, steps[0])
    assert f"{steps[0]:e}"[0] in "125"
    assert charts.nice_ticks(2, 2) == [2]


def test_bars_lie_on_one_axis():
    values = [estimate(0.1), None, {**estimate(-0.3), "low_all": -0.4, "high_all": -0.2}, estimate(0.0)]
    places, _ = charts.bars(values)
    assert places[1] is None
    assert places[2]["low_all"] < places[2]["low"] < places[2]["mean"] < places[2]["high"] < places[2]["high_all"]
    assert places[0]["mean"] - places[3]["mean"] == pytest.approx((places[3]["mean"] - places[2]["mean"]) / 3, abs=0.02)
    assert places[3]["mean"] == places[0]["zero"] == places[2]["zero"]


def test_pictures_are_bounded():
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)

    def picture(_):
        buffer = io.BytesIO()
        Image.fromarray(noise).save(buffer, "PNG")
        return buffer.getvalue()

    one = len(thumbnails(["a"], picture)["a"])
    found = thumbnails([*"aabbccdd"], picture, most=5 * one)
    assert [found[item] is not None for item in "abcd"] == [True, True, False, False]
    huge = io.BytesIO()
    Image.new("1", (20000, 20000)).save(huge, "PNG")  # small on disk, 400 million pixels
    assert thumbnails(["a"], lambda _: huge.getvalue()) == {"a": None}
