"""Full-catalogue ranking by attributes against a plain loop with pytrec_eval."""

import importlib.util

import numpy as np
import pytest
import pytrec_eval

from eval.protocols import AttributeAgreement, AttributeRelevance, Measures, rank_catalogue
from eval.protocols.first_lists import FirstLists
from eval.rankers import VectorRanker
from siglip_jax.errors import UserError

needs_scann = pytest.mark.skipif(importlib.util.find_spec("scann") is None, reason="ScaNN is not installed")
METRICS = ("nDCG@5", "precision@1", "precision@3", "hit@5", "recall@10", "MRR")
MEASURES = Measures(METRICS)


def catalogue(n=150, d=16, seed=0, noise=0.8):
    """Vectors that know something of their type: neither chance nor perfection."""
    rng = np.random.default_rng(seed)
    kind, colour = rng.integers(0, 12, n), rng.integers(0, 3, n)
    vectors = rng.normal(size=(12, d))[kind] + noise * rng.normal(size=(n, d))
    attributes = {"kind": [f"k{k}" for k in kind], "colour": [f"c{c}" for c in colour]}
    rules = [{"gain": 2, "agree": ["kind", "colour"]}, {"gain": 1, "agree": ["kind"]}]
    return vectors.astype(np.float32), AttributeRelevance(rules, attributes)


def pytrec(vectors, relevance):
    unit = vectors.astype(np.float64) / np.linalg.norm(vectors.astype(np.float64), axis=1, keepdims=True)
    scores, labels = unit @ unit.T, relevance.labels(slice(None))
    others = [[j for j in range(len(unit)) if j != i] for i in range(len(unit))]
    qrels = {str(i): {str(j): int(labels[i, j]) for j in others[i]} for i in range(len(unit))}
    run = {str(i): {str(j): float(scores[i, j]) for j in others[i]} for i in range(len(unit))}
    keys = {
        "nDCG@5": "ndcg_cut_5",
        "precision@1": "P_1",
        "precision@3": "P_3",
        "hit@5": "success_5",
        "recall@10": "recall_10",
        "MRR": "recip_rank",
    }
    measures = {"ndcg_cut.5", "P.1,3", "success.5", "recall.10", "recip_rank"}
    result = pytrec_eval.RelevanceEvaluator(qrels, measures).evaluate(run)
    return {name: np.array([result[str(i)][key] for i in range(len(unit))]) for name, key in keys.items()}


@pytest.mark.parametrize("chunk", [7, 512])
def test_exact_ranking_equals_pytrec_eval(chunk):
    vectors, relevance = catalogue()
    protocol = AttributeAgreement(relevance, Measures(METRICS, gain="linear"), chunk=chunk)
    got = protocol.rank([VectorRanker("v", vectors)])["v"]
    for name, want in pytrec(vectors, relevance).items():
        alone = np.isnan(got.metrics[name])
        np.testing.assert_array_equal(alone, relevance.labels(slice(None)).max(axis=1) == 0)
        np.testing.assert_allclose(got.metrics[name][~alone], want[~alone], atol=1e-6, err_msg=name)
    assert got.index_recall is None
    assert not got.tied.any()


def test_an_item_is_no_answer_to_itself_whatever_the_relevance_says():
    vectors, relevance = catalogue(80)

    class Generous:
        def __len__(self):
            return len(relevance)

        def labels(self, rows):
            labels = relevance.labels(rows)
            labels[np.arange(len(labels)), np.arange(80)[rows]] = 2
            return labels

    got, want = (
        rank_catalogue(vectors, Generous(), measures=MEASURES),
        rank_catalogue(vectors, relevance, measures=MEASURES),
    )
    for name, values in want.metrics.items():
        np.testing.assert_array_equal(got.metrics[name], values)


def test_exponential_gain_is_named():
    vectors, relevance = catalogue(60)
    assert list(rank_catalogue(vectors, relevance, measures=Measures(("nDCG@5", "MRR"))).metrics) == [
        "nDCG_exp@5",
        "MRR",
    ]


def test_random_vectors_score_what_chance_gives():
    _, relevance = catalogue(600)
    got = rank_catalogue(np.random.default_rng(1).normal(size=(600, 64)), relevance, Measures(("precision@3",)))
    share = relevance.labels(slice(None)).astype(bool).sum() / (600 * 599)
    assert np.nanmean(got.metrics["precision@3"]) == pytest.approx(share, abs=0.02)


def test_a_collapsed_encoder_scores_what_chance_gives_too():
    """All vectors equal: candidate order or an own score of 1 would flatter it."""
    _, relevance = catalogue(300)
    got = rank_catalogue(np.ones((300, 8), np.float32), relevance, Measures(("precision@1", "recall@10")))
    labels = relevance.labels(slice(None)) > 0
    np.testing.assert_allclose(got.metrics["precision@1"], labels.sum(axis=1) / 299, rtol=1e-12)
    np.testing.assert_allclose(got.metrics["recall@10"], 10 / 299, rtol=1e-12)
    assert got.tied.all()


def test_relisted_pictures_tie_exactly():
    vectors, relevance = catalogue(100, d=33)
    vectors[50:] = vectors[:50] * 1.0
    got = AttributeAgreement(relevance, Measures(("precision@3",)), chunk=13).rank([VectorRanker("v", vectors)])["v"]
    assert got.tied.all()  # positions 2 and 3 of every query hold a picture and its twin


def test_first_lists():
    vectors, relevance = catalogue()
    first = FirstLists(150, k=5)
    AttributeAgreement(relevance, chunk=50).rank([VectorRanker("v", vectors)], sink=first, sink_depth=5)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    scores = unit @ unit.T
    np.fill_diagonal(scores, -1)
    np.testing.assert_array_equal(first.lists["v"], np.argsort(-scores, axis=1)[:, :5])
    small = FirstLists(3, k=5)
    alike = AttributeRelevance([{"gain": 1, "agree": ["a"]}], {"a": ["x"] * 3})
    AttributeAgreement(alike).rank([VectorRanker("v", vectors[:3])], sink=small)
    assert (small.lists["v"][:, :2] >= 0).all()
    assert (small.lists["v"][:, 2:] == -1).all()


def test_first_results_are_for_people_to_look_at():
    vectors, relevance = catalogue()
    first, protocol = FirstLists(150, k=5), AttributeAgreement(relevance)
    ranker = VectorRanker("v", vectors)
    protocol.rank([ranker], sink=first, sink_depth=5)
    for query in (149, 3):
        labels = relevance.labels(np.array([query]))[0]
        expected = [(int(item), int(labels[item])) for item in first.lists["v"][query]]
        assert protocol.first_results(query, ranker, depth=5) == expected


@needs_scann
def test_brute_force_scann_equals_exact():
    vectors, relevance = catalogue()
    exact = rank_catalogue(vectors, relevance, MEASURES)
    got = AttributeAgreement(relevance, MEASURES, chunk=64).rank_indexed(VectorRanker("v", vectors), {})
    for name in exact.metrics:
        if name == "MRR":
            continue
        np.testing.assert_allclose(got.metrics[name], exact.metrics[name], atol=1e-9, err_msg=name)
    assert (got.index_recall == 1).all()


@needs_scann
def test_a_lean_index_loses_recall_and_metric_and_both_show():
    vectors, relevance = catalogue(2000, noise=1.0)
    exact = rank_catalogue(vectors, relevance)
    lean = {"mode": "tree", "leaves": 200, "leaves_to_search": 1, "reorder": 5}
    got = AttributeAgreement(relevance).rank_indexed(VectorRanker("v", vectors), lean)
    assert got.index_recall.mean() < 0.8
    for name, values in exact.metrics.items():
        assert np.nanmean(got.metrics[name]) < np.nanmean(values), name
    recall_of_relevant = np.nanmean(got.metrics["recall@10"]) / np.nanmean(exact.metrics["recall@10"])
    assert 0.1 < recall_of_relevant < 0.95


def test_progress_reaches_the_end():
    vectors, relevance = catalogue(50)
    seen = []
    AttributeAgreement(relevance, chunk=20).rank(
        [VectorRanker("v", vectors)], progress=lambda done, total: seen.append((done, total))
    )
    assert seen == [(20, 50), (40, 50), (50, 50)]


@pytest.mark.parametrize(
    ("vectors", "measures", "message"),
    [
        (np.ones((3, 2)), MEASURES, r"vectors \[3, 2\] for 50 items"),
        (np.zeros((50, 2)), MEASURES, "row 0 is zero"),
        (np.ones((50, 2)), Measures(("ndcg",)), "unknown metric"),
        (np.ones((50, 2)), Measures(()), "no metric to rank by"),
    ],
)
def test_errors(vectors, measures, message):
    _, relevance = catalogue(50)
    with pytest.raises(UserError, match=message):
        rank_catalogue(vectors, relevance, measures)


def test_protocol_errors():
    vectors, relevance = catalogue(50)
    with pytest.raises(UserError, match="chunk=0"):
        AttributeAgreement(relevance, chunk=0)
    with pytest.raises(UserError, match="two rows are named 'v'"):
        AttributeAgreement(relevance).rank([VectorRanker("v", vectors), VectorRanker("v", vectors)])
    with pytest.raises(UserError, match="1 items: ranking them for each other needs 2"):
        AttributeAgreement(catalogue(1)[1])
