"""Rows of a comparison: one contract, and each against its definition in float64."""

import collections
import math
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eval.protocols import AttributeAgreement, AttributeRelevance, Measures, rank_catalogue
from eval.rankers import VectorRanker
from eval.rankers import ranker as rows_module
from eval.rankers.baselines import PopularityRanker, RandomRanker, TitleRanker
from siglip_jax.errors import UserError

N = 60
WORDS = ["red", "blue", "shirt", "dress", "Nike", "men", "women", "2012", "t-shirt"]


def titles(n=N, seed=0):
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, size=rng.integers(1, 6))) for _ in range(n)]


def vectors(n=N, d=24, seed=0):
    x = np.random.default_rng(seed).standard_normal((n, d)).astype(np.float32)
    x[[5, n - 1]] = 3 * x[2]  # one direction, three lengths alike
    x[7] = x[5]
    return x


def all_rows():
    counts = np.random.default_rng(1).integers(0, 9, N)
    dot = VectorRanker("inner product", vectors(), similarity="dot")
    return [VectorRanker("vectors", vectors()), dot, RandomRanker(N), PopularityRanker(counts), TitleRanker(titles())]


@pytest.mark.parametrize("row", all_rows(), ids=lambda row: row.name)
@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(0, 9), st.integers(0, 12))
def test_lists_and_the_whole_catalogue_tell_the_same(row, seed, count, k):
    rng = np.random.default_rng(seed)
    queries = rng.integers(0, N, count)
    candidates = rng.integers(-1, N, (count, k))
    listed, whole = row.scores(queries, candidates), row.scores(queries)
    assert listed.dtype == whole.dtype == np.float32
    assert listed.shape == (count, k)
    assert whole.shape == (count, N)
    expected = np.where(candidates < 0, -np.inf, np.take_along_axis(whole, np.maximum(candidates, 0), axis=1))
    np.testing.assert_allclose(listed, expected, atol=1e-6, rtol=1e-5)
    for query in range(count):  # a block of one
        np.testing.assert_array_equal(
            row.scores(queries[query : query + 1], candidates[query : query + 1])[0], listed[query]
        )


def test_inner_products_keep_lengths():
    x = vectors()
    row = VectorRanker("a", x, similarity="dot")
    np.testing.assert_allclose(row.scores(np.arange(N)), x.astype(np.float64) @ x.astype(np.float64).T, atol=1e-4)
    scores = row.scores(np.arange(N))
    np.testing.assert_array_equal(scores[:, 5], scores[:, 7])  # equal vectors tie to the last bit
    assert (scores[5, 5] > scores[2, 5] * 2).all()
    with pytest.raises(UserError, match="similarity='euclid'; expected"):
        VectorRanker("a", x, similarity="euclid")


def test_cosine_and_exact_ties(monkeypatch):
    monkeypatch.setattr(rows_module, "_BLOCK", 24 * 5 * 3)
    x = vectors()
    unit = x.astype(np.float64) / np.linalg.norm(x.astype(np.float64), axis=1, keepdims=True)
    row = VectorRanker("a", x)
    queries = np.arange(N)
    candidates = np.random.default_rng(2).integers(0, N, (N, 5))
    candidates[:, 1], candidates[:, 4] = 5, 7
    got = row.scores(queries, candidates)
    np.testing.assert_allclose(got, np.einsum("qd,qkd->qk", unit, unit[candidates]), atol=1e-6)
    np.testing.assert_array_equal(got[:, 1], got[:, 4])


def test_random_is_uniform_seeded_and_of_the_pair():
    row = RandomRanker(2000)
    scores = row.scores(np.arange(50)).astype(np.float64)
    assert (scores > -1).all()
    assert (scores <= 0).all()
    assert abs(scores.mean() + 0.5) < 0.005
    assert abs(np.corrcoef(scores[0], scores[1])[0, 1]) < 0.1
    assert abs(np.corrcoef(scores[:, 0], scores[:, 1])[0, 1]) < 0.5
    assert not np.array_equal(RandomRanker(2000, seed=1).scores(np.arange(50)), row.scores(np.arange(50)))
    first = row.scores(np.array([0]), np.array([[0, 1, 2]]))[0]
    np.testing.assert_allclose(first, [-0.20310281, -0.58056885, -0.51118100], rtol=1e-6)  # the same on every machine


def test_popularity_orders_by_count_even_where_float32_cannot():
    row = PopularityRanker(np.array([2**24 + 1, 2**24, 5, 5]))
    scores = row.scores(np.array([0, 3]))
    assert scores.tolist() == [[2, 1, 0, 0]] * 2
    column = PopularityRanker.of_column(["7", "1e3", "-1"], column="sales", ids=["a", "b", "c"])
    assert column.scores(np.array([0])).tolist() == [[1, 2, 0]]
    with pytest.raises(UserError, match="sales of item 'b' is ''"):
        PopularityRanker.of_column(["7", "", "1"], column="sales", ids=["a", "b", "c"])
    with pytest.raises(UserError, match="a number for each item"):
        PopularityRanker(np.array([1.0, np.nan]))


def test_title_row_is_tf_idf_by_hand():
    texts = [*titles(), "", "!?"]
    counts = [collections.Counter(re.findall(r"\w+", text.casefold())) for text in texts]
    df = {w: sum(w in c for c in counts) for c in counts for w in c}
    weights = [{w: n * (math.log((1 + len(texts)) / (1 + df[w])) + 1) for w, n in c.items()} for c in counts]

    def cosine(a, b):
        norms = math.sqrt(sum(v * v for v in a.values()) * sum(v * v for v in b.values()))
        return sum(v * b.get(w, 0) for w, v in a.items()) / norms if norms else 0

    expected = [[cosine(a, b) for b in weights] for a in weights]
    np.testing.assert_allclose(TitleRanker(texts).scores(np.arange(len(texts))), expected, atol=1e-6)


def test_equal_titles_tie_and_unspaced_scripts_have_parts():
    texts = [*titles(), "Nike ナイキシューズ 黒", "ナイキ の 靴 (黒)", "nike  ナイキシューズ 黒"]
    row = TitleRanker(texts)
    scores = row.scores(np.arange(len(texts)))
    np.testing.assert_array_equal(scores[:, N], scores[:, N + 2])
    assert scores[N, N + 1] > 0.1
    with pytest.raises(UserError, match="no titles"):
        TitleRanker([])


@pytest.mark.parametrize(
    ("given_vectors", "message"),
    [(np.zeros((0, 3)), "not empty"), (np.ones(3), "not empty"), (np.zeros((2, 3)), "id 'a' is zero")],
)
def test_vectors_that_are_none(given_vectors, message):
    with pytest.raises(UserError, match=message):
        VectorRanker("mine", given_vectors, ids=["a", "b"])


def test_any_row_ranks_a_catalogue():
    relevance = AttributeRelevance([{"gain": 1, "agree": ["a"]}], {"a": [str(i % 4) for i in range(N)]})
    queries = np.arange(N)
    same = queries[:, None] % 4 == queries % 4
    np.fill_diagonal(same, False)
    for row in all_rows()[:3]:
        scores = row.scores(queries).astype(np.float64)
        np.fill_diagonal(scores, -np.inf)
        best = scores == scores.max(axis=1, keepdims=True)
        expected = (same & best).sum(axis=1) / best.sum(axis=1)
        got = AttributeAgreement(relevance, Measures(("precision@1",)), chunk=7).rank([row])[row.name]
        np.testing.assert_allclose(got.metrics["precision@1"], expected)
    with pytest.raises(UserError, match="'random' scores 61 items: expected the 60"):
        rank_catalogue(RandomRanker(61), relevance)
