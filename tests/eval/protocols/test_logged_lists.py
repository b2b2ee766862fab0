"""Re-ranked lists against a plain loop that hands one query after the other to pytrec_eval, and planted faults."""

import numpy as np
import pytest

from eval.logs import Queries
from eval.protocols import LoggedLists, Measures
from eval.protocols.exposure import Propensity
from eval.protocols.logged_lists import LOGGED_ORDER
from eval.rankers import VectorRanker
from eval.rankers.baselines import PopularityRanker, RandomRanker
from siglip_jax.errors import UserError

METRICS = ("nDCG@5", "precision@1", "hit@5", "recall@10", "MRR")
MEASURES = Measures(METRICS, gain="linear")
N = 60


def test_lists_are_ranked_as_by_pytrec_eval(monkeypatch, some_queries, vectors, unit, oracle, agrees):
    queries, v = some_queries(), vectors()
    monkeypatch.setattr("eval.protocols.logged_lists.BLOCK", 50)  # several blocks
    found = LoggedLists(queries=queries, measures=MEASURES).rank([VectorRanker("v", v)])
    assert list(found) == [LOGGED_ORDER, "v"]
    score = unit(v) @ unit(v).T
    by_vector, by_order = [], []
    for i in range(len(queries)):
        part = slice(queries.starts[i], queries.starts[i + 1])
        items, gains = queries.candidates[part], queries.gains[part]
        qrels = dict(zip(items, gains, strict=True))
        by_vector.append(oracle(qrels, {item: score[queries.items[i], item] for item in items}))
        by_order.append(oracle(qrels, dict(zip(items, -queries.positions[part].astype(float), strict=True))))
    agrees(found["v"], by_vector)
    agrees(found[LOGGED_ORDER], by_order)


def test_a_list_without_all_positions_has_no_logged_order(some_queries, vectors):
    queries = some_queries()
    chosen = int(queries.owner[queries.gains > 0][0])
    positions = queries.positions.copy()
    positions[queries.starts[chosen]] = -1
    partly = Queries(**{**vars(queries), "positions": positions})
    row = VectorRanker("v", vectors())
    found = LoggedLists(queries=partly, measures=MEASURES).rank([row])
    whole = LoggedLists(queries=queries, measures=MEASURES).rank([row])
    undefined = np.isnan(found[LOGGED_ORDER].metrics["MRR"]) & ~np.isnan(whole[LOGGED_ORDER].metrics["MRR"])
    assert np.flatnonzero(undefined).tolist() == [chosen]
    np.testing.assert_array_equal(found["v"].metrics["MRR"], whole["v"].metrics["MRR"])
    assert LOGGED_ORDER not in LoggedLists(queries=some_queries(placed=False), measures=MEASURES).rank([row])


def test_position_weights_against_a_loop(some_queries, vectors, unit):
    queries, v = some_queries(3), vectors(3)
    propensity = Propensity(power=1.5, clip=6)
    ranker = VectorRanker("v", v)

    def exposure(asked, weights):
        return LoggedLists(queries=asked, measures=MEASURES, propensity=weights).rank([ranker])["v"].exposure

    found = exposure(queries, propensity)
    score = unit(v) @ unit(v).T
    weights, gains, values = [], [], []
    for i in range(len(queries)):
        part = range(queries.starts[i], queries.starts[i + 1])
        mine = [score[queries.items[i], queries.candidates[k]] for k in part]
        for place, k in enumerate(part):
            if queries.gains[k] > 0:
                rank = 1 + sum(s > mine[place] for s in mine)
                values.append((1 / np.log2(1 + rank) if rank <= 5 else 0, 1 / rank))
                gains.append(queries.gains[k])
                weights.append(queries.gains[k] * min(6, (1 + queries.positions[k]) ** 1.5))
    w, g = np.array(weights, float), np.array(gains, float)
    assert found["samples"] == len(w)
    assert found["effective_samples"] == pytest.approx(w.sum() ** 2 / (w**2).sum())
    assert found["clipped"] == sum((1 + queries.positions[queries.gains > 0]) ** 1.5 > 6)
    for column, name in enumerate(("nDCG@5", "MRR")):
        value = np.array([v[column] for v in values])
        assert found["metrics"][name]["weighted"] == pytest.approx((w @ value) / w.sum())
        assert found["metrics"][name]["plain"] == pytest.approx((g @ value) / g.sum())
    flat = exposure(queries, Propensity(power=0))
    assert flat["metrics"]["MRR"]["weighted"] == pytest.approx(found["metrics"]["MRR"]["plain"])
    assert exposure(some_queries(placed=False), propensity) is None
    assert exposure(queries, None) is None
    with pytest.raises(UserError, match=r"clip=0\.5"):
        Propensity(clip=0.5)


def test_position_weights_undo_position_bias():
    """Taps thinned by position: weighted by the true propensity, the mean is that of all the taps there would be."""
    rng = np.random.default_rng(0)
    q, k = 6000, 10
    lists = np.tile(np.arange(1, k + 1), (q, 1))
    lists = rng.permuted(lists, axis=1)  # item j at a random place
    would = rng.random((q, k)) < np.where(lists <= 3, 0.6, 0.1)  # whom it suits depends on the item alone
    taps = would & (rng.random((q, k)) < 1 / (1 + np.arange(k)))
    order = rng.random(N).astype(np.float32)
    row = PopularityRanker(order)

    def evaluate(gains):
        queries = Queries(
            *(np.arange(q).astype(object), np.full(q, "", object), np.arange(q), np.arange(q), np.zeros(q, np.int64)),
            starts=np.arange(q + 1) * k,
            candidates=lists.ravel(),
            gains=gains.ravel().astype(np.float32),
            positions=np.tile(np.arange(k), q),
        )
        return LoggedLists(queries=queries, measures=MEASURES, propensity=Propensity(1, 100)).rank([row])

    truth = evaluate(would)["popularity"].exposure["metrics"]["MRR"]["plain"]
    biased = evaluate(taps)
    assert biased["popularity"].exposure["metrics"]["MRR"]["weighted"] == pytest.approx(truth, abs=0.02)
    logged = biased[LOGGED_ORDER].exposure["metrics"]["MRR"]
    assert logged["plain"] > logged["weighted"] + 0.1  # what the old ranker put first looks better than it is


def test_a_constant_scorer_is_no_better_than_chance(some_queries):
    """The planted fault: the logged order is kept among equals by many libraries, and looks like a good ranker."""
    queries = some_queries(1, q=3000)
    gains = (np.random.default_rng(1).random(len(queries.gains)) < 1 / (1 + queries.positions)).astype(np.float32)
    queries = Queries(**{**vars(queries), "gains": gains})
    constant = VectorRanker("constant", np.ones((N, 4), np.float32))
    found = LoggedLists(queries=queries, measures=MEASURES).rank([constant, RandomRanker(N)])
    means = {row: np.nanmean(found[row].metrics["nDCG@5"]) for row in found}
    assert means[LOGGED_ORDER] > means["random"] + 0.1
    assert means["constant"] == pytest.approx(means["random"], abs=0.02)
    assert found["constant"].tied.all()
