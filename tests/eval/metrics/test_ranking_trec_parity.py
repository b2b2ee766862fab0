"""rank_metrics under the docid rule against pytrec_eval: every metric trec_eval has, a thousand random runs."""

import numpy as np
import pytest
import pytrec_eval

from eval.metrics import docid_ranks, mean_metrics, rank_metrics
from eval.metrics.metric_names import known_metrics, trec_name
from siglip_jax.errors import UserError

METRICS = tuple(
    name
    for form in known_metrics()
    for name in ([form.replace("@k", f"@{k}") for k in (1, 5, 10, 30)] if "@k" in form else [form])
    if "(p)" not in form and trec_name(name) is not None
)
INF = np.inf


def pytrec(scores, labels, docids, relevant_from=1):
    """{metric: [query]}, NaN for queries that pytrec_eval drops: those without any retrieved candidate."""
    docids = np.broadcast_to(docids, scores.shape)
    qrels = {f"q{q}": dict(zip(docids[q].tolist(), labels[q].tolist(), strict=True)) for q in range(len(scores))}
    run = {
        f"q{q}": {d: s for d, s in zip(docids[q].tolist(), scores[q].tolist(), strict=True) if s > -INF}
        for q in range(len(scores))
    }
    run = {query: found for query, found in run.items() if found}
    names = {name: trec_name(name) for name in METRICS}
    assert None not in names.values()
    result = pytrec_eval.RelevanceEvaluator(qrels, set(names.values()), relevance_level=relevant_from).evaluate(run)
    return {
        name: np.array([result.get(f"q{q}", {}).get(key, np.nan) for q in range(len(scores))])
        for name, key in names.items()
    }


def random_runs(seed, queries, candidates):
    """Runs that differ in everything: ties from none to all, short lists, missing queries, nothing relevant."""
    rng = np.random.default_rng(seed)
    levels = rng.choice([1, 2, 4, 20, 1 << 20], (queries, 1))
    scores = rng.integers(0, levels, (queries, candidates)) * 0.1 - 3  # no float32 holds them: trec_eval rounds
    length = rng.integers(0, candidates + 1, (queries, 1))
    scores[rng.random(scores.shape).argsort(axis=1) >= length] = -INF
    labels = rng.choice(4, scores.shape, p=[0.7, 0.15, 0.1, 0.05])
    labels[rng.random(queries) < 0.1] = 0
    words = np.array([f"{'éz-A0'[i % 5]}{i * 7919 % 1000}" for i in range(candidates)])
    return scores, labels, rng.permuted(np.broadcast_to(words, scores.shape), axis=1)


@pytest.mark.parametrize("relevant_from", [1, 2])
@pytest.mark.parametrize("candidates", [1, 7, 40, 300])
def test_every_metric_equals_trec_eval(candidates, relevant_from):
    scores, labels, docids = random_runs(candidates, 1000, candidates)
    got = rank_metrics(
        *(scores, labels),
        metrics=METRICS,
        ties="docid",
        docids=docids,
        relevant_from=relevant_from,
        without_relevant="zero",  # as trec_eval does
        missing="skip",
    )
    missing = ~(scores > -INF).any(axis=1)
    assert missing.any()
    assert got.counts["missing"] == (missing & (labels >= relevant_from).any(axis=1)).sum()
    assert got.counts["without_relevant"] == (~(labels >= relevant_from).any(axis=1)).sum()
    for name, want in pytrec(scores, labels, docids, relevant_from).items():
        np.testing.assert_array_equal(np.isnan(want), missing)
        np.testing.assert_allclose(got[name][~missing], want[~missing], atol=1e-9, err_msg=name)
        lost = missing & (labels >= (1 if name.startswith("nDCG") else relevant_from)).any(axis=1)
        np.testing.assert_array_equal(got[name][missing], np.where(lost[missing], np.nan, 0))


def test_no_metric_of_trec_eval_is_forgotten():
    assert {"nDCG", "nDCG@5", "precision@30", "recall@10", "hit@1", "MRR", "MAP", "MAP@10", "Rprec"} <= set(METRICS)


def test_missing_queries_count_zero_unless_told_otherwise():
    scores, labels, docids = random_runs(5, 200, 20)
    zero = rank_metrics(scores, labels, metrics=("MAP",), ties="docid", docids=docids)
    skip = rank_metrics(scores, labels, metrics=("MAP",), ties="docid", docids=docids, missing="skip")
    dropped = mean_metrics(skip)["MAP"]
    assert mean_metrics(zero)["MAP"]["queries"] - dropped["queries"] == zero.counts["missing"] > 0
    assert mean_metrics(zero)["MAP"]["mean"] < dropped["mean"]


def test_docids_may_be_shared_strings_or_ranks():
    scores, labels, _ = random_runs(6, 100, 30)
    words = np.array([f"item {i}" for i in range(30)])
    shared = rank_metrics(scores, labels, metrics=METRICS, ties="docid", docids=words)
    for ids in (docid_ranks(words), np.tile(words, (100, 1)), np.tile(docid_ranks(words), (100, 1)), words.tolist()):
        again = rank_metrics(scores, labels, metrics=METRICS, ties="docid", docids=ids)
        for name in METRICS:
            np.testing.assert_array_equal(again[name], shared[name])
    assert docid_ranks(["b9", "b10", "é"]).tolist() == [1, 0, 2]  # by bytes: "1" before "9"


def test_scores_that_no_float32_tells_apart_are_tied_as_in_trec_eval():
    scores, labels = np.array([[1.0, 1.0 + 1e-12], [-1e300, -INF]]), np.array([[1, 0], [1, 1]])
    docids = np.array(["b", "a"])
    want = pytrec(scores, labels, docids)["MRR"]
    assert want.tolist() == [1.0, 1.0]
    assert rank_metrics(scores, labels, metrics=("MRR",), ties="docid", docids=docids)["MRR"].tolist() == want.tolist()
    assert rank_metrics(scores, labels, metrics=("MRR",))["MRR"][0] == 0.5  # compared as given


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"ties": "docid"}, "without docids"),
        ({"docids": ["a", "b"]}, "docids with ties='expected'"),
        ({"ties": "docid", "docids": ["a", "b", "c"]}, "docids of shape"),
        ({"ties": "docid", "docids": ["a", "a"]}, "not unique"),
        ({"ties": "docid", "docids": [1.5, 2.5]}, "expected strings"),
    ],
)
def test_errors(arguments, message):
    with pytest.raises(UserError, match=message):
        rank_metrics([[1.0, 2.0]], [[0, 1]], **arguments)
