"""Every protocol through the one builder: one shape of report, whatever was asked and of whom."""

import json
import runpy

import numpy as np
import pyarrow.parquet as pq
import pytest

from eval.comparison.build_report import build_report
from eval.comparison.by_attributes import rank_by_attributes, relevance_of
from eval.comparison.choose_rankers import RankersToCompare
from eval.comparison.comparison_table import Certainty
from eval.comparison.dimension_ladder import Ladder, ladder_reductions
from eval.comparison.index_columns import SearchOptions
from eval.comparison.items import read_split
from eval.comparison.log_task import LogSource, read_log_task
from eval.comparison.over_logs import rank_over_logs
from eval.comparison.per_query import write_per_query
from eval.comparison.training_items import LeakedItems
from eval.protocols.prepare_queries import PROTOCOLS, Window, log_format
from eval.rankers import VectorRanker
from eval.rankers.baselines import RandomRanker
from eval.report import format_table, write_report
from eval.simulate import Sessions, simulate_log, write_simulated_log
from eval.statistics import paired_difference
from eval.statistics.slices import by_value

ATTRIBUTES = "attribute_agreement"
SHARED = {
    *("title", "protocol", "gain", "relevance", "relevant_from", "max_grade", "queries", "items", "left_out"),
    *("list_length", "primary_metric", "conclusion", "minimum_detectable", "new", "against", "rows"),
    *("weights", "memo", "decision", "confidence"),
    *("differences", "ladders", "slices", "beyond", "loss_curve", "gains", "losses", "grid", "warnings", "missing"),
    *("provenance", "similarity", "notes", "off_policy", "trend"),
}
OF_LOGS = {"actions", "users", "log", "exposure", "row_notes"}
COLUMNS = {"query_id", "query_item", "query_item_row", "candidates"}


@pytest.fixture(scope="module")
def log(shop_dataset, config_file, tmp_path_factory):
    """Simulated sessions over the test split."""
    config = runpy.run_path(str(config_file))["get_config"]()
    items = read_split(shop_dataset, "test")
    path = str(tmp_path_factory.mktemp("log") / "log.parquet")
    sessions = Sessions(queries=200, users=30, length=8)
    write_simulated_log(path, simulate_log(relevance_of(config, shop_dataset), items.ids, sessions))
    return path


@pytest.fixture
def made(shop_dataset, tiny_config, log):
    """made(protocol key, scann=...) -> (result, compared)."""
    items = read_split(shop_dataset, "test")
    kinds = np.unique(items.columns["type"], return_inverse=True)[1]
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(kinds.max() + 1, 40))[kinds] + rng.normal(size=(len(kinds), 40))
    vectors = vectors.astype(np.float32)
    compared = RankersToCompare(
        rankers={"random": RandomRanker(len(items.ids)), "new": VectorRanker("new", vectors)},
        items=items,
        new="new",
        against="random",
        bytes_per_item={"new": 160},
        ladders={"new": Ladder(vectors, ladder_reductions(vectors, fitted_on="themselves"))},
        of_log=["popularity", "item-to-item"],
    )
    slicings = [by_value("type", items.columns["type"])]

    def make(key, *, scann=None):
        search = SearchOptions(scann)
        if key == ATTRIBUTES:
            rankers = compared.rankers.values()
            result = rank_by_attributes(
                rankers, config=tiny_config, dataset=shop_dataset, items=items, search=search, slicings=slicings
            )
            return result, compared
        form = log_format(tiny_config, columns={}, on_error="skip")
        source = LogSource(paths=[log], form=form, window=Window())
        task = read_log_task(source, key, config=tiny_config, items=items, leaked=LeakedItems({}))
        whole = compared.with_rankers_of_log(task.rankers(compared.of_log))
        return rank_over_logs(task, whole, config=tiny_config, search=search, slicings=slicings), whole

    return make


@pytest.mark.parametrize("key", [ATTRIBUTES, *PROTOCOLS])
def test_one_shape_of_report(made, key, tmp_path):
    result, compared = made(key)
    report = build_report(result, compared, title="t", grid=3, seed=4)
    over_logs, lists = key != ATTRIBUTES, key == "logged_lists"
    assert set(report) == SHARED | (OF_LOGS if over_logs else set())
    assert (report["title"], report["new"], report["against"]) == ("t", "new", "random")
    asked = {"logged_lists": {"query_item"}, "retrieval": {"query_item"}}.get(key, set())
    assert set(report["weights"]) == ({"user"} | asked if over_logs else {"title"})

    names = [row["name"] for row in report["rows"]]
    assert names == list(result.metrics) == ["logged order"] * lists + list(compared.rankers)
    assert len({tuple(row) for row in report["rows"]}) == 1
    assert ("mean_over_users" in report["rows"][0]) == over_logs
    assert report["rows"][-1]["bytes_per_item"] == 160
    assert {cell["b"] for cell in report["differences"]} == set(names) - {"new"}
    assert report["differences"][0]["b"] == "random"

    # The headline is the paired difference of what was measured, dependent queries taken together.
    certainty = Certainty(result.queries.clusters)
    expected = paired_difference(result.values["new"], result.values["random"], **certainty.of_means())
    got = report["differences"][0]
    assert [got[end] for end in ("mean", "low", "high")] == pytest.approx([expected.mean, expected.low, expected.high])
    (ladder,) = report["ladders"]
    assert ladder["rungs"][0]["mean"] == pytest.approx(np.nanmean(result.values["new"]))
    assert ladder["rungs"][0]["width"] == 40

    profiles = key in ("leave_one_out", "time_split")
    assert (report["slices"] is None) == profiles
    assert (report["beyond"] is None) == lists
    assert bool(report["gains"]) == bool(report["grid"]) == (not profiles)
    for example in report["grid"]:
        assert [system["name"] for system in example["systems"]] == list(compared.rankers)
    for example in report["gains"]:
        assert example["values"]["new"] > example["values"]["random"]

    write_report(tmp_path / "report.html", report, images=lambda item: b"")
    assert json.loads((tmp_path / "report.json").read_text())["protocol"] == result.protocol.name
    assert result.protocol.name in format_table(report)


@pytest.mark.parametrize("key", [ATTRIBUTES, *PROTOCOLS])
def test_every_query_of_a_protocol_can_be_written(made, key, tmp_path):
    result, _ = made(key)
    write_per_query(tmp_path / "q.parquet", result)
    table = pq.read_table(tmp_path / "q.parquet")
    assert {*COLUMNS, "protocol", "row", "tied", *next(iter(result.metrics.values()))} <= set(table.column_names)
    assert table.num_rows == len(result.protocol) * len(result.metrics)
    for name, metrics in result.metrics.items():
        written = table.filter(np.array(table["row"].to_pylist()) == name)
        for metric, values in metrics.items():
            np.testing.assert_array_equal(np.array(written[metric].to_pylist(), float), values)


@pytest.mark.parametrize("key", [ATTRIBUTES, *PROTOCOLS])
def test_an_index_is_asked_where_there_is_something_to_search(made, key):
    pytest.importorskip("scann")
    result, compared = made(key, scann={"mode": "brute_force"})
    report = build_report(result, compared, title="t")
    new = next(row for row in report["rows"] if row["name"] == "new")
    if key == "logged_lists":
        assert new["scann"] is None
        assert report["provenance"]["ScaNN"] == "not run"
        return
    assert report["provenance"]["ScaNN"] == {"mode": "brute_force"}
    assert list(result.indexed) == ["new"]
    primary = report["primary_metric"]
    assert new["scann"][primary]["mean"] == pytest.approx(new["exact"][primary]["mean"], abs=1e-6)


def test_rankers_that_a_log_cannot_tell_of_are_left_out(made):
    """No window to learn from: "random" stays what the new one is compared with, and a note says so."""
    result, compared = made("retrieval")
    assert list(compared.rankers) == ["random", "new"]
    report = build_report(result, compared, title="t")
    assert any("No row popularity or item-to-item" in note for note in report["notes"])
    assert compared.with_rankers_of_log({"popularity": RandomRanker(3)}).against == "random"
