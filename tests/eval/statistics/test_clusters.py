"""Clusters in several ways against sets in plain Python."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eval.statistics import Clusters
from eval.statistics.clusters import effective_number
from siglip_jax.errors import UserError


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 25), st.integers(1, 3), st.integers(0, 10**6))
def test_parts_are_the_groups_that_share_every_way_of_a_set(n, ways, seed):
    rng = np.random.default_rng(seed)
    given_ways = {f"w{k}": rng.integers(0, 4, n) for k in range(ways)}
    found = Clusters.of(given_ways, n)
    sets = [s for size in range(1, ways + 1) for s in itertools.combinations(given_ways, size)]
    assert len(found.parts) == len(sets)
    values = rng.normal(size=n)
    for part, names in zip(found.parts, sets, strict=True):
        assert part.sign == (-1) ** (len(names) + 1)
        groups: dict[tuple, float] = {}
        for q in range(n):
            key = tuple(int(given_ways[name][q]) for name in names)
            groups[key] = groups.get(key, 0) + values[q]
        assert part.groups == len(groups)
        assert sorted(part.sums(values)) == pytest.approx(sorted(groups.values()))


def test_text_and_single_queries():
    assert Clusters.of(np.array(["a", "b", "a"]), 3).ways[0].groups == 2
    alone = Clusters.of(None, 4)
    assert (alone.names, alone.ways[0].groups, alone.ways[0].codes) == (("query",), 4, None)


def test_a_part_of_the_queries():
    users, items = np.array([0, 0, 1, 2, 2]), np.array([5, 6, 5, 7, 7])
    taken = Clusters.of({"user": users, "item": items}, 5).take(np.array([True, True, True, False, False]))
    assert [part.groups for part in taken.parts] == [2, 2, 3]
    assert taken.queries == 3


def test_effective_number_falls_with_heavy_clusters():
    assert effective_number(np.ones(12)) == pytest.approx(12)
    assert effective_number(np.array([10_000, *[2] * 2000])) == pytest.approx(14_000**2 / (1e8 + 8000))
    assert effective_number(np.zeros(3)) == 0
    found = Clusters.of({"user": np.arange(6) // 2, "item": np.zeros(6)}, 6)
    assert found.effective() == {"user": 3, "item": 1}
    assert found.effective(np.array([1, 1, 1, 1, 0, 0], bool)) == {"user": 2, "item": 1}


@pytest.mark.parametrize(
    ("clusters", "message"),
    [
        (np.array([1, 2]), "'query' of shape .2,. for 3 queries"),
        ({"user": np.array([1])}, "'user' of shape"),
        ({}, "in 0 ways"),
        ({name: np.zeros(3) for name in "abcd"}, r"in 4 ways \(a, b, c, d\)"),
    ],
)
def test_errors(clusters, message):
    with pytest.raises(UserError, match=message):
        Clusters.of(clusters, 3)
    with pytest.raises(UserError, match="clusters of 2 queries for 3"):
        Clusters.of(Clusters.of(None, 2), 3)
