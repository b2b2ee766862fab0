"""Queries of a log, vectors, and pytrec_eval as the judge: what the tests of several folders rank."""

import numpy as np
import pytest
import pytrec_eval

from eval.logs import Live, Queries

METRICS = {
    "nDCG@5": "ndcg_cut_5",
    "precision@1": "P_1",
    "hit@5": "success_5",
    "recall@10": "recall_10",
    "MRR": "recip_rank",
}
N = 60


def _some_queries(seed=0, q=40, *, n=N, longest=12, placed=True):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(2, longest, q)
    items = rng.integers(0, n, q)
    lists = [
        rng.permutation(np.delete(np.arange(n), item))[:length] for item, length in zip(items, lengths, strict=True)
    ]
    m = int(lengths.sum())
    return Queries(
        ids=np.array([f"q {i}" for i in range(q)], object),
        list_ids=np.array(["", "list/1"] * (q // 2), object),
        users=rng.integers(0, 7, q),
        times=np.sort(rng.integers(0, 1000, q)),
        items=items,
        starts=np.concatenate([[0], np.cumsum(lengths)]),
        candidates=np.concatenate(lists),
        gains=rng.choice([0, 0, 0, 1, 3], m).astype(np.float32),
        positions=np.concatenate([np.arange(length) for length in lengths]) if placed else np.full(m, -1),
    )


def _vectors(seed=0, n=N, d=8):
    return np.random.default_rng(seed).normal(size=(n, d)).astype(np.float32)


def _unit(v):
    v = v.astype(np.float64)
    return v / np.linalg.norm(v, axis=1, keepdims=True)


def _oracle(qrels: dict, run: dict) -> dict[str, float]:
    """One query through pytrec_eval; NaN where nothing is relevant."""
    if not any(qrels.values()):
        return dict.fromkeys(METRICS, np.nan)
    named = {"q": {str(item): int(gain) for item, gain in qrels.items()}}
    scored = {"q": {str(item): float(score) for item, score in run.items()}}
    keys = {key.replace("_5", ".5").replace("_10", ".10").replace("P_1", "P.1") for key in METRICS.values()}
    found = pytrec_eval.RelevanceEvaluator(named, keys).evaluate(scored)["q"]
    return {name: found[key] for name, key in METRICS.items()}


def _agrees(ranked, expected):
    for name in METRICS:
        np.testing.assert_allclose(ranked.metrics[name], [e[name] for e in expected], atol=1e-6, err_msg=name)


def _live_for(seed=0, n=N):
    rng = np.random.default_rng(seed)
    since = rng.integers(0, 800, n)
    return Live(since, since + rng.integers(100, 900, n), "drawn")


@pytest.fixture
def some_queries():
    """some_queries(seed, q, placed=...): queries of a log with their lists."""
    return _some_queries


@pytest.fixture
def vectors():
    """vectors(seed): float32 [N, 8]."""
    return _vectors


@pytest.fixture
def unit():
    """unit(vectors): float64, of norm 1."""
    return _unit


@pytest.fixture
def oracle():
    """oracle({item: gain}, {item: score}): the metrics of one query, by pytrec_eval."""
    return _oracle


@pytest.fixture
def agrees():
    """agrees(ranked, [oracle(...) of each query]): asserts that they do."""
    return _agrees


@pytest.fixture
def live_for():
    """live_for(seed): items that come and go."""
    return _live_for
