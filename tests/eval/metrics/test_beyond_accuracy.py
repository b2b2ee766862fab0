"""Coverage, Gini, novelty and diversity against their definitions written as loops."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eval.metrics.beyond_accuracy import beyond_accuracy, exposure, gini
from siglip_jax.errors import UserError


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 12), st.integers(1, 6), st.integers(1, 7), st.integers(0, 2**32 - 1))
def test_equals_the_definitions(items, queries, k, seed):
    rng = np.random.default_rng(seed)
    lists = np.full((queries, 8), -1)
    for row in lists:
        length = rng.integers(0, min(items, 8) + 1)
        row[:length] = rng.permutation(items)[:length]
    popularity, vectors = rng.integers(0, 50, items), rng.normal(size=(items, 3)) * 7
    colours = rng.choice(["red", "blue", "", None], items)
    got = beyond_accuracy(
        lists, items=items, k=k, popularity=popularity, vectors=vectors, attributes={"colour": colours}
    )
    cut = [[i for i in row[:k] if i >= 0] for row in lists.tolist()]
    shown = [sum(i in row for row in cut) for i in range(items)]
    assert got[f"coverage@{k}"] == pytest.approx(sum(n > 0 for n in shown) / items)
    pairs = sum(abs(a - b) for a in shown for b in shown)
    want = pairs / (2 * items * sum(shown)) if sum(shown) else math.nan
    assert got[f"gini@{k}"] == pytest.approx(want, abs=1e-12, nan_ok=True)
    share = (popularity + 1) / (popularity.sum() + items)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    for q, row in enumerate(cut):
        bits = np.mean([-math.log2(share[i]) for i in row]) if row else math.nan
        assert got[f"novelty@{k}"][q] == pytest.approx(bits, nan_ok=True)
        two = list(itertools.combinations(row, 2))
        apart = np.mean([1 - unit[a] @ unit[b] for a, b in two]) if two else math.nan
        assert got[f"diversity@{k}"][q] == pytest.approx(apart, abs=1e-9, nan_ok=True)
        differ = np.mean([not colours[a] or colours[a] != colours[b] for a, b in two]) if two else math.nan
        assert got[f"diversity_colour@{k}"][q] == pytest.approx(differ, nan_ok=True)


def test_extremes():
    one = np.zeros((50, 1), int)
    assert gini(exposure(one, items=100)) == pytest.approx(0.99)
    assert gini(exposure(np.arange(100)[:, None], items=100)) == pytest.approx(0)
    assert beyond_accuracy(one, items=100, k=1)["coverage@1"] == 0.01


@pytest.mark.parametrize(
    ("lists", "options", "message"),
    [
        ([[0, 1]], {"k": 0}, "k >= 1"),
        ([0, 1], {}, "expected .query, k."),
        ([[0, 9]], {}, "list of query 0 holds item 9"),
        ([[0, 1], [1, 1]], {}, "list of query 1 holds item 1 twice"),
        ([[0.0, 1.0]], {}, "whole numbers"),
        ([[0, 1]], {"popularity": [1]}, "expected 3 finite"),
        ([[0, 1]], {"vectors": np.zeros((3, 2))}, "vector of item 0 is zero"),
        ([[0, 1]], {"vectors": np.ones((2, 2))}, "of each of 3 items"),
        ([[0, 1]], {"attributes": {"colour": ["a"]}}, "1 attribute values"),
    ],
)
def test_errors(lists, options, message):
    with pytest.raises(UserError, match=message):
        beyond_accuracy(np.array(lists), **{"items": 3, "k": 2, **options})
