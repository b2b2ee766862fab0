"""Retrieval among live items against a plain loop with pytrec_eval; indexes that forget and that make things up."""

import importlib.util

import numpy as np
import pytest

from eval.logs import Live
from eval.protocols import FullCatalogue, Measures
from eval.protocols.full_catalogue import reachable
from eval.rankers import VectorRanker
from eval.search.exact_index import ExactIndex
from eval.search.recall import check_found
from siglip_jax.errors import UserError

needs_scann = pytest.mark.skipif(importlib.util.find_spec("scann") is None, reason="ScaNN is not installed")
METRICS = {
    "nDCG@5": "ndcg_cut_5",
    "precision@1": "P_1",
    "hit@5": "success_5",
    "recall@10": "recall_10",
    "MRR": "recip_rank",
}
MEASURES = Measures(tuple(METRICS), gain="linear")
N = 60


def test_retrieval_is_ranked_among_live_items_alone(monkeypatch, some_queries, vectors, unit, oracle, agrees, live_for):
    monkeypatch.setattr("eval.protocols.full_catalogue.BLOCK", 5 * N)
    live, v = live_for(), vectors()
    given = some_queries(2)
    queries = reachable(given, live)
    assert (
        queries.dropped["not live at query time"]["candidates"] == len(given.candidates) - len(queries.candidates) > 0
    )
    found = FullCatalogue(queries=queries, live=live, measures=MEASURES).rank([VectorRanker("v", v)])["v"]
    score = unit(v) @ unit(v).T
    expected = []
    for i in range(len(given)):
        t, asked = given.times[i], given.items[i]
        there = [j for j in range(N) if live.since[j] <= t < live.until[j] and j != asked]
        gains = dict(
            zip(
                *(getattr(given, f)[given.starts[i] : given.starts[i + 1]] for f in ("candidates", "gains")),
                strict=True,
            )
        )
        expected.append(oracle({j: gains.get(j, 0) for j in there}, {j: score[asked, j] for j in there}))
    agrees(found, expected)


@needs_scann
def test_scann_beside_exact(some_queries, vectors, live_for):
    live, v = live_for(), vectors()
    queries = reachable(some_queries(2), live)
    row = VectorRanker("v", v)
    exact = FullCatalogue(queries=queries, live=live, measures=MEASURES).rank([row])["v"]
    by_index = FullCatalogue(queries=queries, live=live, measures=MEASURES).rank_indexed(row, {"mode": "brute_force"})
    np.testing.assert_allclose(by_index.index_recall, 1)
    for name in METRICS:
        np.testing.assert_allclose(by_index.metrics[name], exact.metrics[name], atol=1e-9)


class Lossy(ExactIndex):
    """Forgets every third item."""

    def _search(self, queries, k):
        scores = queries @ self.vectors_at(np.arange(len(self))).T
        scores[:, ::3] = -np.inf
        order = np.argsort(-scores, axis=1)[:, :k]
        values = np.take_along_axis(scores, order, axis=1)
        return np.where(values > -np.inf, order, -1), values


class Phantom(ExactIndex):
    """Pads its results as ScaNN does: row 0 and NaN."""

    def _search(self, queries, k):
        rows, scores = super()._search(queries, k)
        rows[:, -2:], scores[:, -2:] = 0, np.nan
        return rows, scores


def test_recall_of_an_index_that_forgets(some_queries, vectors, unit, oracle, agrees, live_for):
    live, row = live_for(), VectorRanker("v", vectors())
    queries = reachable(some_queries(2), live)
    index = Lossy(row.vectors(), [str(i) for i in range(N)], {})
    found = FullCatalogue(queries=queries, live=live, measures=MEASURES).rank_indexed(row, {}, index=index)
    score = unit(row.vectors()) @ unit(row.vectors()).T
    expected = []
    for i in range(len(queries)):
        t = queries.times[i]
        there = [j for j in range(N) if live.since[j] <= t < live.until[j] and j != queries.items[i]]
        best = sorted(there, key=lambda j: -score[queries.items[i], j])[:10]
        if best:
            assert found.index_recall[i] == pytest.approx(np.mean([j % 3 > 0 for j in best]))
        part = slice(queries.starts[i], queries.starts[i + 1])
        gains = dict(zip(queries.candidates[part], queries.gains[part], strict=True))
        run = {j: score[queries.items[i], j] for j in there if j % 3 > 0}
        expected.append(oracle({j: gains.get(j, 0) for j in there}, run) if run else dict.fromkeys(METRICS, 0.0))
        if not any(gains.values()):
            expected[-1] = dict.fromkeys(METRICS, np.nan)
    agrees(found, expected)  # what was not returned counts as not retrieved


def test_phantom_items_of_an_index_are_found(some_queries, vectors, unit):
    live, row = Live(np.zeros(N), np.full(N, 2000), "all"), VectorRanker("v", vectors())
    index = Phantom(row.vectors(), [str(i) for i in range(N)], {})
    with pytest.raises(UserError, match=r"phantom items.*score that is not theirs"):
        FullCatalogue(queries=some_queries(), live=live, measures=MEASURES).rank_indexed(row, {}, index=index)
    exact = unit(vectors()) @ unit(vectors()).T
    rows = np.argsort(-exact, axis=1)[:, :4]
    scores = np.take_along_axis(exact, rows, axis=1)
    check_found(rows, scores, exact)
    check_found(np.where(rows == rows[:, -1:], -1, rows), scores, exact)  # padding is no item
    for place, row, said in (((0, 1), rows[0, 0], "1 twice"), ((0, 1), N, "1 that do not exist")):
        wrong = rows.copy()
        wrong[place] = row
        with pytest.raises(UserError, match=said):
            check_found(wrong, scores, exact)
