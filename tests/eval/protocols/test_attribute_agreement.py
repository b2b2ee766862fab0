"""Full-catalogue ranking against a plain loop with pytrec_eval, and the comparison table."""

import importlib.util
import json

import numpy as np
import pytest
import pytrec_eval

from eval.comparison.comparison_table import compare_rows
from eval.protocols import AttributeRelevance, rank_catalogue
from eval.statistics import paired_bootstrap
from siglip_jax.errors import UserError

needs_scann = pytest.mark.skipif(importlib.util.find_spec("scann") is None, reason="ScaNN is not installed")
METRICS = ("nDCG@5", "precision@1", "precision@3", "hit@5", "recall@10", "MRR")


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
    got = rank_catalogue(vectors, relevance, metrics=METRICS, gain="linear", chunk=chunk)
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
        rank_catalogue(vectors, Generous(), metrics=METRICS),
        rank_catalogue(vectors, relevance, metrics=METRICS),
    )
    for name, values in want.metrics.items():
        np.testing.assert_array_equal(got.metrics[name], values)


def test_exponential_gain_is_named():
    vectors, relevance = catalogue(60)
    assert list(rank_catalogue(vectors, relevance, metrics=("nDCG@5", "MRR")).metrics) == ["nDCG_exp@5", "MRR"]


def test_random_vectors_score_what_chance_gives():
    _, relevance = catalogue(600)
    got = rank_catalogue(np.random.default_rng(1).normal(size=(600, 64)), relevance, metrics=("precision@3",))
    share = relevance.labels(slice(None)).astype(bool).sum() / (600 * 599)
    assert np.nanmean(got.metrics["precision@3"]) == pytest.approx(share, abs=0.02)


def test_a_collapsed_encoder_scores_what_chance_gives_too():
    """All vectors equal: candidate order or an own score of 1 would flatter it."""
    _, relevance = catalogue(300)
    got = rank_catalogue(np.ones((300, 8), np.float32), relevance, metrics=("precision@1", "recall@10"))
    labels = relevance.labels(slice(None)) > 0
    np.testing.assert_allclose(got.metrics["precision@1"], labels.sum(axis=1) / 299, rtol=1e-12)
    np.testing.assert_allclose(got.metrics["recall@10"], 10 / 299, rtol=1e-12)
    assert got.tied.all()


def test_relisted_pictures_tie_exactly():
    vectors, relevance = catalogue(100, d=33)
    vectors[50:] = vectors[:50] * 1.0
    got = rank_catalogue(vectors, relevance, metrics=("precision@3",), chunk=13)
    assert got.tied.all()  # positions 2 and 3 of every query hold a picture and its twin


def test_shown_neighbours():
    vectors, relevance = catalogue()
    got = rank_catalogue(vectors, relevance, show=[149, 3], chunk=50).shown
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    scores = unit @ unit.T
    np.fill_diagonal(scores, -1)
    np.testing.assert_array_equal(got.queries, [149, 3])
    np.testing.assert_array_equal(got.rows, np.argsort(-scores, axis=1)[[149, 3], :5])
    np.testing.assert_allclose(got.scores, -np.sort(-scores, axis=1)[[149, 3], :5], atol=1e-6)
    np.testing.assert_array_equal(
        got.labels, np.take_along_axis(relevance.labels(np.array([149, 3])), got.rows, axis=1)
    )
    small = rank_catalogue(vectors[:3], AttributeRelevance([{"gain": 1, "agree": ["a"]}], {"a": ["x"] * 3}), show=[0])
    assert small.shown.rows.shape == (1, 5)
    assert (small.shown.rows[0, 2:] == -1).all()


@needs_scann
def test_brute_force_scann_equals_exact():
    vectors, relevance = catalogue()
    exact = rank_catalogue(vectors, relevance, metrics=METRICS)
    got = rank_catalogue(vectors, relevance, metrics=METRICS, backend="scann", show=[4], chunk=64)
    for name in exact.metrics:
        if name == "MRR":
            continue
        np.testing.assert_allclose(got.metrics[name], exact.metrics[name], atol=1e-9, err_msg=name)
    assert (got.index_recall == 1).all()
    assert 4 not in got.shown.rows


@needs_scann
def test_a_lean_index_loses_recall_and_metric_and_both_show():
    vectors, relevance = catalogue(2000, noise=1.0)
    exact = rank_catalogue(vectors, relevance)
    lean = {"mode": "tree", "leaves": 200, "leaves_to_search": 1, "reorder": 5}
    got = rank_catalogue(vectors, relevance, backend="scann", index_options=lean)
    assert got.index_recall.mean() < 0.8
    for name, values in exact.metrics.items():
        assert np.nanmean(got.metrics[name]) < np.nanmean(values), name
    recall_of_relevant = np.nanmean(got.metrics["recall@10"]) / np.nanmean(exact.metrics["recall@10"])
    assert 0.1 < recall_of_relevant < 0.95


def test_progress_reaches_the_end():
    vectors, relevance = catalogue(50)
    seen = []
    rank_catalogue(vectors, relevance, chunk=20, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(20, 50), (40, 50), (50, 50)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"vectors": np.ones((3, 2))}, r"vectors \[3, 2\] for 50 items"),
        ({"vectors": np.zeros((50, 2))}, "row 0 is zero"),
        ({"backend": "faiss"}, "expected one of exact, scann"),
        ({"index_options": {"leaves": 3}}, "the exact backend takes none"),
        ({"metrics": ("ndcg",)}, "unknown metric"),
        ({"metrics": ()}, "no metric to rank by"),
        ({"show": [50]}, "rows from 0 to 49"),
        ({"chunk": 0}, "chunk=0"),
    ],
)
def test_errors(options, message):
    vectors, relevance = catalogue(50)
    with pytest.raises(UserError, match=message):
        rank_catalogue(options.pop("vectors", vectors), relevance, **options)


def test_comparison_table():
    rng = np.random.default_rng(0)
    old = {"nDCG@5": rng.random(80), "hit@5": rng.random(80)}
    old["hit@5"][:5] = np.nan
    new = {name: values + 0.1 + 0.02 * rng.normal(size=80) for name, values in old.items()}
    clusters = rng.integers(0, 30, 80)
    got = compare_rows(
        {"start": old, "tuned": new},
        pairs=[("tuned", "start")],
        clusters=clusters,
        tied={"start": np.arange(80) < 20},
        samples=500,
    )
    assert json.loads(json.dumps(got, allow_nan=False)) == got
    start, tuned = got["rows"]
    assert (start["name"], start["tie_rate"], tuned["tie_rate"]) == ("start", 0.25, None)
    assert start["metrics"]["hit@5"]["left_out"] == 5
    assert start["metrics"]["nDCG@5"]["mean"] == pytest.approx(old["nDCG@5"].mean())
    assert (got["queries"], got["clusters"]) == (80, len(np.unique(clusters)))
    assert [(d["a"], d["b"], d["metric"]) for d in got["differences"]] == [("tuned", "start", name) for name in old]
    for name, cell in zip(old, got["differences"], strict=True):
        alone = paired_bootstrap(new[name], old[name], clusters=clusters, samples=500)
        for key in ("mean", "low", "high", "p", "queries", "left_out"):
            assert cell[key] == pytest.approx(getattr(alone, key), rel=1e-9), key
        assert cell["relative"] == pytest.approx(alone.mean / np.nanmean(old[name]))


def test_undefined_cells_are_null():
    nothing = {"MRR": np.full(4, np.nan)}
    got = compare_rows({"a": nothing, "b": nothing}, pairs=[("a", "b")], samples=10)
    assert got["rows"][0]["metrics"]["MRR"]["mean"] is None
    assert got["differences"][0]["p"] is None
    json.dumps(got, allow_nan=False)


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        ({}, {}, "nothing to compare"),
        ({"a": {}, "b": {}}, {}, "row 'a' has no metric"),
        ({"a": {"MRR": np.ones(3)}, "b": {"MRR": np.ones(4)}}, {}, "'a' and 'b' differ"),
        ({"a": {"MRR": np.ones(3)}, "b": {"hit@1": np.ones(3)}}, {}, "differ"),
        ({"a": {"MRR": np.ones(3)}}, {"pairs": [("a", "c")]}, "unknown row 'c': rows are a"),
    ],
)
def test_comparison_errors(rows, options, message):
    with pytest.raises(UserError, match=message):
        compare_rows(rows, **options)
