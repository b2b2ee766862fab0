"""Wide rankings against narrow ones, the rules for queries that have nothing, and a scorer that knows nothing."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eval.metrics import has_ties, mean_metrics, rank_metrics, report_name
from eval.metrics.metric_names import has_uncut, known_metrics, trec_name
from siglip_jax.errors import UserError

CUT = ("nDCG@3", "precision@4", "recall@4", "hit@2", "hit@4", "MRR", "MRR@2", "MAP@4", "ERR@2", "ERR@4", "RBP(0.5)@4")
ALL = (*CUT, "nDCG", "MAP", "RBP(0.8)", "Rprec")
INF = np.inf


@settings(max_examples=100, deadline=None)
@given(
    st.integers(32, 60),
    st.integers(1, 9),
    st.floats(0, 1),
    st.sampled_from(["expected", "stable"]),
    st.sampled_from([np.uint8, np.float64]),
    st.integers(0, 2**32 - 1),
)
def test_selecting_the_best_equals_sorting_all(n, levels, retrieved, ties, label_type, seed):
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, levels, (8, n)).astype(np.float32)
    scores[rng.random(scores.shape) > retrieved] = -INF
    labels = rng.choice(4, scores.shape, p=[0.7, 0.1, 0.1, 0.1]).astype(label_type)
    options = {"metrics": CUT, "ties": ties, "max_grade": 3}
    sorted_whole = rank_metrics(scores, labels, **options)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("eval.metrics.sorting._NARROW", 0)
        selected = rank_metrics(scores, labels, **options)
    for name in CUT:
        np.testing.assert_allclose(selected[name], sorted_whole[name], rtol=1e-12, atol=1e-15, err_msg=name)


@pytest.mark.parametrize("ties", ["expected", "docid", "stable"])
def test_a_constant_scorer_earns_no_more_than_a_random_one(ties):
    rng = np.random.default_rng(1)
    labels = rng.choice(4, (20_000, 30), p=[0.85, 0.05, 0.05, 0.05])
    docids = {"docids": rng.permuted(np.tile(np.arange(30), (20_000, 1)), axis=1)} if ties == "docid" else {}
    constant = rank_metrics(np.zeros(labels.shape), labels, metrics=ALL, ties=ties, max_grade=3, **docids)
    random = rank_metrics(rng.random(labels.shape), labels, metrics=ALL, max_grade=3)
    for name in ALL:
        difference = constant[name] - random[name]
        error = np.nanstd(difference) / np.sqrt(len(labels))
        assert abs(np.nanmean(difference)) < 4 * error, name
    assert has_ties(np.zeros(labels.shape), k=1).all()


def test_only_rules_that_read_the_candidates_order_can_be_fooled_by_it():
    """What the documentation says of them: here the relevant candidate is always listed first, and has the last id."""
    labels, scores = np.eye(1, 30, dtype=int).repeat(50, axis=0), np.zeros((50, 30))
    ids = np.arange(30)[::-1]
    means = {
        ties: mean_metrics(rank_metrics(scores, labels, metrics=("MRR",), ties=ties, **more))["MRR"]["mean"]
        for ties, more in {"expected": {}, "stable": {}, "docid": {"docids": ids}}.items()
    }
    assert means["stable"] == means["docid"] == 1.0
    assert means["expected"] == pytest.approx(np.mean(1 / np.arange(1, 31)))


SCORES = np.array([[2.0, 1.0], [2.0, 1.0], [-INF, -INF], [-INF, -INF]])
LABELS = np.array([[1, 0], [0, 0], [0, 1], [0, 0]])


@pytest.mark.parametrize(
    ("rules", "want"),
    [
        ({}, [1, np.nan, 0, np.nan]),
        ({"without_relevant": "zero"}, [1, 0, 0, 0]),
        ({"missing": "skip"}, [1, np.nan, np.nan, np.nan]),
        ({"missing": "skip", "without_relevant": "zero"}, [1, 0, np.nan, 0]),
    ],
)
def test_rules_for_queries_that_have_nothing(rules, want):
    got = rank_metrics(SCORES, LABELS, metrics=ALL, max_grade=1, **rules)
    for name in ("MRR", "nDCG", "MAP@4", "Rprec"):
        np.testing.assert_array_equal(got[name], want, err_msg=name)
    assert got.counts == {"queries": 4, "without_relevant": 2, "missing": 1}


def test_a_query_all_hidden_has_nothing_relevant():
    got = rank_metrics(np.ones((2, 2)), np.ones((2, 2)), np.array([[True, True], [False, False]]), metrics=("MRR",))
    assert got.counts == {"queries": 2, "without_relevant": 1, "missing": 0}
    empty = rank_metrics(np.ones((2, 0)), np.ones((2, 0)), metrics=("MAP",))
    assert empty.counts == {"queries": 2, "without_relevant": 2, "missing": 0}
    assert np.isnan(empty["MAP"]).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"without_relevant": "error"}, "MRR of query 1 is undefined, as of 2 of 4"),
        ({"missing": "error"}, "query 2 has nothing retrieved, as 1 of 4"),
        ({"missing": "drop"}, "missing='drop'"),
        ({"metrics": ("ERR@5",)}, "declare the highest grade"),
        ({"metrics": ("ERR@5",), "max_grade": 0.5}, "label 1 is above max_grade=0.5"),
        ({"metrics": ("ERR",)}, "unknown metric"),
        ({"metrics": ("RBP(1.0)",)}, "unknown metric"),
        ({"metrics": ("RBP(0.0)",)}, "unknown metric"),
        ({"metrics": ("MAP@0",)}, "unknown metric"),
    ],
)
def test_errors(arguments, message):
    with pytest.raises(UserError, match=message) as error:
        rank_metrics(SCORES, LABELS, **{"metrics": ("MRR",), **arguments})
    assert "\n" not in str(error.value)


def test_the_error_of_the_first_block_is_raised(monkeypatch):
    monkeypatch.setattr("eval.metrics.ranking._BLOCK", 2)
    scores = np.zeros((50, 2))
    scores[[31, 47], 1] = np.nan
    with pytest.raises(UserError, match="score of query 31, candidate 1 is NaN"):
        rank_metrics(scores, np.ones((50, 2)))


def test_names():
    assert report_name("nDCG", gain="exponential") == "nDCG_exp"
    assert trec_name("MAP@5") == "map_cut_5"
    assert trec_name("nDCG") == "ndcg"
    assert trec_name("RBP(0.8)") is trec_name("MRR@5") is trec_name("ERR@5") is None
    assert has_uncut(("hit@5", "RBP(0.8)"))
    assert not has_uncut(("hit@5", "RBP(0.8)@3"))
    named = [name.replace("(p)", "(0.8)").replace("@k", "@3") for name in known_metrics()]
    assert set(rank_metrics([[1.0]], [[1]], metrics=named, max_grade=1)) == set(named)
