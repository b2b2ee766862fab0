"""What an index changes, with its interval, against the paired difference of the two rankings."""

import numpy as np
import pytest

from eval.comparison.comparison_table import Certainty
from eval.comparison.index_columns import index_columns
from eval.protocols import Ranked
from eval.statistics import mean_interval, paired_difference

CLUSTERS = np.arange(200) // 4


def ranked(seed, *, recall=None):
    rng = np.random.default_rng(seed)
    metrics = {name: rng.uniform(size=200) for name in ("nDCG@5", "MRR")}
    for values in metrics.values():
        values[:3] = np.nan
    return Ranked(metrics, np.zeros(200, bool), index_recall=recall)


@pytest.mark.parametrize("allowed", [False, True])
def test_change_and_refusal(allowed):
    exact = {"a": ranked(0), "b": ranked(1), "titles": ranked(2)}
    found = {"a": ranked(3, recall=np.full(200, 0.99)), "b": ranked(4, recall=np.array([0.9, np.nan] * 100))}
    columns = index_columns(exact, found, allow_low_recall=allowed, certainty=Certainty(CLUSTERS, seed=5))
    assert columns.recall == pytest.approx({"a": 0.99, "b": 0.9})
    assert columns.refused == ({} if allowed else pytest.approx({"b": 0.9}))
    assert list(columns.change) == list(columns.metrics) == (["a", "b"] if allowed else ["a"])
    for row in columns.change:
        for metric, cell in columns.change[row].items():
            expected = paired_difference(found[row].metrics[metric], exact[row].metrics[metric], clusters=CLUSTERS)
            got = [cell[key] for key in ("mean", "low", "high", "p")]
            assert got == pytest.approx([expected.mean, expected.low, expected.high, expected.p])
            mean = mean_interval(found[row].metrics[metric], clusters=CLUSTERS)
            assert columns.metrics[row][metric]["low"] == pytest.approx(mean.low)
    assert columns.of("a", k=10)["scann_recall"] == {"recall@10": pytest.approx(0.99)}
    assert columns.of("b", k=10)["scann_refused"] is not allowed
    assert columns.of("titles", k=10) == {
        "scann": None, "scann_change": None, "scann_recall": None, "scann_refused": False}  # fmt: skip


def test_nothing_was_searched():
    columns = index_columns({"a": ranked(0)}, {}, allow_low_recall=False, certainty=Certainty(CLUSTERS, seed=5))
    assert (columns.metrics, columns.change, columns.refused) == ({}, {}, {})
