"""The report says what its numbers say, holds everything inside itself and trusts no title."""

from __future__ import annotations

import copy
import io
import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from eval.report import format_table, write_report
from eval.report.report_text import headlines
from siglip_jax.errors import UserError

_EVIL = '<script>alert("x")</script> & http://example.com/"onload="x'


def _estimate(mean: float) -> dict[str, dict[str, float]]:
    names = {"nDCG_exp@5": mean, "MRR": mean / 2, "precision@1": mean / 3}
    return {name: {"mean": value, "low": value - 0.01, "high": value + 0.01} for name, value in names.items()}


def _difference(mean: float, reach: float, **changes: Any) -> dict[str, Any]:
    base = {"a": "trained", "b": "raw pixels", "metric": "nDCG_exp@5"}
    return base | {"mean": mean, "low": mean - reach, "high": mean + reach} | changes


def _report(**changes: Any) -> dict[str, Any]:
    rows: list[dict[str, Any]] = [
        {"name": "random", "exact": _estimate(0.1), "scann": None, "scann_recall": None, "tie_rate": 0.0},
        {"name": "raw pixels", "exact": _estimate(0.431), "scann": _estimate(0.42), "tie_rate": 0.01},
        {"name": "trained", "exact": _estimate(0.512), "scann": _estimate(0.51), "tie_rate": 0.02},
    ]
    rows[1]["scann_recall"], rows[2]["scann_recall"] = {"recall@10": 0.91}, {"recall@10": 0.998}
    results = [{"id": f"i{n}", "title": f"item {n}", "gain": n % 4} for n in range(5)]
    report = {
        "title": "Ranking report",
        "protocol": "full-catalogue retrieval, attribute agreement",
        "gain": "exponential",
        "relevance": [{"gain": 3, "agree": ["type", "colour"]}, {"gain": 1, "agree": ["type"]}],
        "relevant_from": 1,
        "queries": 1234,
        "items": 1300,
        "left_out": 7,
        "primary_metric": "nDCG_exp@5",
        "rows": rows,
        "differences": [_difference(0.081, 0.007), _difference(0.02, 0.03, metric="MRR", b="random")],
        "loss_curve": [{"step": s, "loss": 5 * 0.99**s} for s in range(1, 101)],
        "grid": [{"query": "i0", "title": _EVIL, "systems": [{"name": "trained", "results": results}]}],
        "provenance": {"dataset": "sha256 abc", "commands": ["one", "two"], "config": {"lr": 1e-3, "items": 3}},
    }
    return report | changes


def _jpeg(_: str) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (20, 10), (200, 30, 30)).save(buffer, "JPEG")
    return buffer.getvalue()


def _page(tmp_path: Path, report: dict[str, Any], images=_jpeg) -> str:
    write_report(tmp_path / "out" / "report.html", report, images=images)
    return (tmp_path / "out" / "report.html").read_text(encoding="utf-8")


class _Loads(HTMLParser):
    """Tags in order, and every attribute by which a page can load or run something."""

    def __init__(self, page: str):
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.handlers: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.addresses += [value for name, value in attrs if name in ("src", "href", "srcset", "data", "xlink:href")]
        self.handlers += [name for name, _ in attrs if name.startswith("on")]


def test_the_page_loads_nothing_and_runs_nothing(tmp_path: Path):
    page = _page(tmp_path, _report())
    loads = _Loads(page)
    assert loads.addresses
    assert all(address.startswith("data:image/jpeg;base64,") for address in loads.addresses)
    assert not {"script", "link", "iframe", "object", "embed", "base"} & set(loads.tags)
    assert not loads.handlers
    style = page[page.index("<style>") : page.index("</style>")]
    assert "url(" not in style
    assert "@import" not in style


def test_titles_are_escaped(tmp_path: Path):
    page = _page(tmp_path, _report(title=_EVIL, provenance={_EVIL: {_EVIL: [_EVIL]}}))
    assert "<script" not in page
    assert page.count("&lt;script&gt;") >= 5


def test_all_rows_and_differences_are_there(tmp_path: Path):
    report = _report()
    page = _page(tmp_path, report)
    text = re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", page))
    for row in report["rows"]:
        for metric, estimate in row["exact"].items():
            assert metric in text
            assert f"{estimate['mean']:.3f} {estimate['low']:.3f}–{estimate['high']:.3f}" in text
    for phrase in ("trained − raw pixels", "trained − random", "+0.081", "+0.074 to +0.088", "−0.010 to +0.050"):
        assert phrase in text
    for phrase in (
        "1,234 queries",
        "1,300 items",
        "7 queries without",
        "Exponential gain",
        "0.998",
        "2.0 %",
        "sha256 abc",
    ):
        assert phrase in text
    assert "under 0.98 for raw pixels:" in text
    assert "<path" in page
    assert all(f"item {n}" in page for n in range(5))


def test_without_scann_there_are_no_scann_columns(tmp_path: Path):
    report = _report()
    for row in report["rows"]:
        row["scann"] = row["scann_recall"] = None
    page = _page(tmp_path, report)
    assert "recall@10</th>" not in page
    assert "ScaNN" not in format_table(report)


def test_json_beside_the_page(tmp_path: Path):
    report = _report()
    untouched = copy.deepcopy(report)
    _page(tmp_path, report)
    assert report == untouched
    assert json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8")) == report


def test_numpy_and_not_a_number(tmp_path: Path):
    report = _report(queries=np.int64(3), loss_curve=[{"step": 1, "loss": np.float32("nan")}])
    report["rows"][2]["exact"]["MRR"] = {"mean": np.float64("nan"), "low": math.nan, "high": math.inf}
    report["differences"] = [_difference(math.nan, 0.0)]
    page = _page(tmp_path, report)
    assert "nan" not in re.sub(r"base64,[^\"]+", "", page).lower()
    data = json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))
    assert data["queries"] == 3
    assert data["rows"][2]["exact"]["MRR"] == {"mean": None, "low": None, "high": None}
    assert "not measured" in page


@pytest.mark.parametrize("content", [b"no picture", None])
def test_a_missing_picture_leaves_an_empty_frame(tmp_path: Path, content: bytes | None):
    def images(item: str) -> bytes:
        return content if content is not None else {}[item]

    assert _page(tmp_path, _report(), images).count("no picture</span>") == 6


@pytest.mark.parametrize(
    ("mean", "reach", "claim", "difference"),
    [
        (0.081, 0.007, "Trained ranks better than raw pixels", "+0.081 (95 % interval +0.074 to +0.088)"),
        (-0.081, 0.007, "Trained ranks worse than raw pixels", "−0.081 (95 % interval −0.088 to −0.074)"),
        (
            0.004,
            0.007,
            "Undecided whether trained ranks better than raw pixels",
            "+0.004 (95 % interval −0.003 to +0.011)",
        ),
        (0.0, 0.0, "Undecided whether trained ranks better than raw pixels", "0.000 (95 % interval 0.000 to 0.000)"),
    ],
)
def test_the_headline_says_what_the_interval_allows(
    tmp_path: Path, mean: float, reach: float, claim: str, difference: str
):
    report = _report(differences=[_difference(mean, reach)])
    assert headlines(report)[0] == f"{claim}: nDCG_exp@5 0.512 against 0.431, difference {difference}."
    page = _page(tmp_path, report).replace("\u00a0", " ")
    assert f'<p class="headline">{headlines(report)[0]}</p>' in page


@pytest.mark.parametrize("content", ['{"batch_size": 3}', "[]", "no json", "\udcff"])
def test_a_json_that_is_no_report_is_not_overwritten(tmp_path: Path, content: str):
    config = tmp_path / "config.json"
    config.write_bytes(content.encode("utf-8", "surrogateescape"))
    before = config.read_bytes()
    with pytest.raises(UserError, match=r"config\.json, which is no earlier report"):
        write_report(tmp_path / "config.html", _report(), images=_jpeg)
    assert config.read_bytes() == before
    assert not (tmp_path / "config.html").exists()


def test_a_report_replaces_an_earlier_one_and_needs_a_page_name(tmp_path: Path):
    _page(tmp_path, _report())
    _page(tmp_path, _report(title="Second"))
    assert json.loads((tmp_path / "out" / "report.json").read_text())["title"] == "Second"
    with pytest.raises(UserError, match=r"such as report\.html"):
        write_report(tmp_path / "out" / "report.json", _report(), images=_jpeg)


def test_each_column_says_over_how_many_queries_it_is(tmp_path: Path):
    report = _report(row_notes={"random": _EVIL})
    report["rows"][1]["scann_recall"] = {"MRR": 0.91}  # a name that a metric has
    for row in report["rows"]:
        for name, cell in row["exact"].items():
            cell["queries"] = 16 if (row["name"], name) == ("random", "MRR") else 1234
    lines = format_table(report).splitlines()
    header = next(line for line in lines if "ties" in line)
    names = re.split(r"  +", header.strip())
    assert len(set(names)) == len(names)
    assert "ScaNN MRR" in names
    counted = next(line for line in lines if line.startswith("queries"))
    assert counted.split()[1:5] == ["1,234", "16", "to", "1,234"][: len(counted.split()) - 1]
    assert f"random: {_EVIL}"[:40] in " ".join(lines)
    text = re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", _page(tmp_path, report)))
    assert "nDCG_exp@5 n 1,234 " in text
    assert "MRR n 16 to 1,234 " in text
    assert text.count(" n 16 ") == 2  # in the head of the column, and in the cell
    assert "&lt;script&gt;" in text


@pytest.mark.parametrize("value", [-1e-9, -4.9e-4, 0.0, -0.0])
def test_what_rounds_to_zero_has_no_sign(tmp_path: Path, value: float):
    report = _report(differences=[_difference(value, 0.0, relative=value, low_all=value, high_all=value)])
    report["rows"][0]["exact"]["MRR"] = {"mean": value, "low": value, "high": value}
    for text in (_page(tmp_path, report), format_table(report)):
        assert not re.search(r"[-−+]0(\.0+)?(?![.\d])", re.sub(r"base64,[^\"]+|\d[-−]0|[a-z:\"]-0", "", text))


def test_no_comparison_is_said_so():
    assert headlines(_report(differences=[])) == ["No comparison was made in nDCG_exp@5."]
    assert "could be computed" in headlines(_report(differences=[_difference(0.1, 0.1, low=None)]))[0]


def test_the_terminal_table():
    report = _report()
    text = format_table(report)
    assert max(map(len, text.splitlines())) <= 110
    flat = " ".join(text.split())
    assert flat.startswith(headlines(report)[0])
    for phrase in ("0.512 [0.502, 0.522]", "random", "+0.081 [+0.074, +0.088] better", "undecided", "1234 queries"):
        assert phrase in flat


def test_the_terminal_table_with_many_metrics_stays_narrow():
    report = _report()
    for row in report["rows"]:
        row["exact"] |= {f"a_metric_with_a_name@{k}": {"mean": 0.5, "low": 0.4, "high": 0.6} for k in range(9)}
    assert max(map(len, format_table(report).splitlines())) <= 110
