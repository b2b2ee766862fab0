"""Health says what changed, what the index finds now, and what to do about it."""

import numpy as np
import pytest

from eval.search import build_index, measure_recall
from eval.search.health import measure_health
from eval.search.updates import compacted, deleted, upserted

X = np.random.default_rng(0).normal(size=(200, 8)).astype(np.float32)
IDS = [f"item-{i}" for i in range(200)]


def blind(index):
    """Makes the base forget every other row, so that half of the neighbours are lost."""
    whole = index.search

    def search(queries, *, k):
        found = whole(queries, k=k)
        lost = (found.rows % 2 == 1) & (found.scores < 0.9999)  # the query itself stays
        return type(found)(np.where(lost, -1, found.rows), np.where(lost, -np.inf, found.scores), found.catalogue)

    index.search = search
    return index


def test_counts_recall_and_what_to_do():
    built = build_index(X[:180], IDS[:180])
    measure_recall(built, X[:180], k=5)
    index = deleted(upserted(built, X[175:], IDS[175:]).index, IDS[:10]).index
    health = measure_health(index, compact_at=0.2, sample=100)
    assert (health.items, health.base, health.delta, health.dead) == (190, 180, 20, 10)
    assert health.share == pytest.approx(20 / 190)
    assert (health.k, health.built, health.now, health.queries, health.target) == (5, 1.0, 1.0, 100, None)
    assert health.advice == []
    assert "--compact" in measure_health(index, compact_at=0.1).advice[0]
    assert index.measured == built.measured
    after = measure_health(compacted(index), compact_at=0)
    assert (after.base, after.delta, after.dead, after.share, after.now, after.advice) == (190, 0, 0, 0, 1.0, [])


def test_a_fall_of_recall_is_said():
    index = build_index(X, IDS)
    measure_recall(index, X, k=10)
    health = measure_health(blind(index), compact_at=0.1)
    assert health.now == pytest.approx(0.5, abs=0.1)
    assert health.built == 1
    (advice,) = health.advice
    assert f"recall fell by {1 - health.now:.4f}" in advice
    assert "--store" in advice  # there is nothing to compact
    index.measured["target"] = 0.98
    assert "below its target of 0.98" in measure_health(index, compact_at=0.1).advice[0]
    assert compacted(deleted(index, IDS[:1]).index).measured["target"] == 0.98


def test_an_index_of_one_item_or_of_none_has_no_recall():
    index = build_index(X[:1], IDS[:1])
    assert (measure_health(index, compact_at=0.1).now, measure_health(index, compact_at=0.1).advice) == (None, [])
    health = measure_health(deleted(index, IDS).index, compact_at=0.1)
    assert (health.items, health.now) == (0, None)
    assert "every item is deleted" in health.advice[0]
