"""rank_metrics against pytrec_eval and against brute force over every order of the candidates."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eval.metrics import has_ties, mean_metrics, rank_metrics, report_name
from eval.metrics.metric_names import max_cutoff
from eval.metrics.topk import select_top
from siglip_jax.errors import UserError

METRICS = (
    *("nDCG@1", "nDCG@3", "nDCG@5", "nDCG", "precision@1", "precision@3", "recall@2", "recall@5", "hit@2", "hit@5"),
    *("MRR", "MRR@1", "MRR@3", "MAP", "MAP@2", "MAP@4", "ERR@1", "ERR@3", "ERR@20", "RBP(0.8)", "RBP(.5)@3", "Rprec"),
)
MAX_GRADE = 4
INF = np.inf


def reference(ranking, labels, gain, relevant_from):
    """Metrics of one definite ranking (list of candidate indices), straight from the definitions."""
    g = (lambda rel: 2.0**rel - 1) if gain == "exponential" else float
    hits = [labels[i] >= relevant_from for i in ranking]
    total = sum(rel >= relevant_from for rel in labels)
    out = {}
    for name in METRICS:
        kind, _, k = name.partition("@")
        k = int(k or 99)
        precision = [sum(hits[: p + 1]) / (p + 1) for p in range(len(hits))]
        if kind == "nDCG":
            dcg = sum(g(labels[i]) / math.log2(p + 2) for p, i in enumerate(ranking[:k]))
            ideal = sum(g(rel) / math.log2(p + 2) for p, rel in enumerate(sorted(labels, reverse=True)[:k]))
            out[name] = dcg / ideal if ideal else math.nan
        elif not total:
            out[name] = math.nan
        elif kind == "precision":
            out[name] = sum(hits[:k]) / k
        elif kind == "recall":
            out[name] = sum(hits[:k]) / total
        elif kind == "hit":
            out[name] = float(any(hits[:k]))
        elif kind == "MAP":
            out[name] = sum(p for p, hit in zip(precision[:k], hits, strict=False) if hit) / total
        elif kind == "ERR":  # Chapelle et al. 2009, algorithm 1
            out[name], going_on = 0.0, 1.0
            for p, i in enumerate(ranking[:k]):
                stop = (2 ** labels[i] - 1) / 2**MAX_GRADE
                out[name] += going_on * stop / (p + 1)
                going_on *= 1 - stop
        elif kind.startswith("RBP"):
            persistence = float(kind[4:-1])
            out[name] = (1 - persistence) * sum(persistence**p for p, hit in enumerate(hits[:k]) if hit)
        elif kind == "Rprec":
            out[name] = sum(hits[:total]) / total
        else:
            out[name] = next((1 / (p + 1) for p, hit in enumerate(hits[:k]) if hit), 0.0)
    return out


def brute_force(scores, labels, mask, ties, gain, relevant_from):
    labels = [rel for rel, there in zip(labels, mask, strict=True) if there]
    scores = [s for s, there in zip(scores, mask, strict=True) if there]
    found = [i for i, s in enumerate(scores) if s > -INF]
    orders = itertools.permutations(found) if ties == "expected" else [found]
    values = [
        reference(sorted(order, key=lambda i: -scores[i]), labels, gain, relevant_from) for order in orders
    ]  # sorted is stable: every order of the equal ones is met equally often
    return {name: math.fsum(v[name] for v in values) / len(values) for name in METRICS}


@st.composite
def queries(draw):
    n, q = draw(st.integers(1, 6)), draw(st.integers(1, 3))
    rows = st.lists(
        st.lists(st.sampled_from([0.0, -0.0, 0.5, 0.5, 2.0, -INF]), min_size=n, max_size=n), min_size=q, max_size=q
    )
    grades = st.lists(st.lists(st.sampled_from([0, 0, 1, 2, 3]), min_size=n, max_size=n), min_size=q, max_size=q)
    masks = st.lists(st.lists(st.sampled_from([True, True, False]), min_size=n, max_size=n), min_size=q, max_size=q)
    return draw(rows), draw(grades), draw(masks)


@settings(max_examples=150, deadline=None)
@given(
    queries(),
    st.sampled_from(["expected", "stable"]),
    st.sampled_from(["linear", "exponential"]),
    st.sampled_from([1, 2]),
    st.sampled_from([np.float32, np.float64]),
    st.sampled_from([np.uint8, np.int64, np.float32]),
    st.sampled_from([1.0, 0.1]),  # tenths are no float32: another sort
)
def test_equals_the_mean_over_all_tie_orders(data, ties, gain, relevant_from, score_type, label_type, unit):
    scores, labels, mask = data
    scores = [[unit * s for s in row] for row in scores]
    got = rank_metrics(
        np.array(scores, score_type),
        np.array(labels, label_type),
        np.array(mask),
        metrics=METRICS,
        ties=ties,
        gain=gain,
        relevant_from=relevant_from,
        max_grade=MAX_GRADE,
    )
    for q in range(len(scores)):
        want = brute_force(scores[q], labels[q], mask[q], ties, gain, relevant_from)
        for name in METRICS:
            np.testing.assert_allclose(got[name][q], want[name], rtol=1e-12, atol=1e-15, err_msg=f"{name} query {q}")


def test_expected_ties_of_large_groups_equal_the_mean_over_random_orders():
    rng = np.random.default_rng(5)
    scores = np.repeat(rng.integers(0, 4, (1, 300)).astype(np.float32), 1, axis=0)
    labels = rng.choice(3, scores.shape, p=[0.9, 0.07, 0.03])
    names = (
        "nDCG@5",
        "hit@5",
        "recall@5",
        "precision@3",
        "MRR",
        "MRR@9",
        "MAP",
        "MAP@70",
        "ERR@90",
        "RBP(0.9)",
        "Rprec",
    )
    expected = rank_metrics(scores, labels, metrics=names, max_grade=2)
    orders = np.array([rng.permutation(300) for _ in range(20_000)])
    drawn = rank_metrics(scores[0][orders], labels[0][orders], metrics=names, ties="stable", max_grade=2)
    for name in names:
        error = drawn[name].std() / math.sqrt(len(orders))
        assert abs(drawn[name].mean() - expected[name][0]) < 4 * error, name


def test_a_constant_scorer_earns_what_chance_earns():
    labels = np.zeros((1, 9000), np.uint8)
    labels[0, 0] = 1
    got = rank_metrics(np.zeros((1, 9000)), labels, metrics=("MRR", "hit@5", "precision@5", "recall@5"))
    assert got["MRR"][0] == pytest.approx(sum(1 / r for r in range(1, 9001)) / 9000, rel=1e-12)
    assert got["hit@5"][0] == pytest.approx(5 / 9000, rel=1e-12)
    assert got["precision@5"][0] == pytest.approx(1 / 9000, rel=1e-12)


def test_blocks_do_not_show(monkeypatch):
    rng = np.random.default_rng(2)
    scores, labels = rng.integers(0, 9, (37, 50)).astype(float), rng.integers(0, 3, (37, 50))
    options = {"metrics": METRICS, "max_grade": MAX_GRADE}
    whole, ties = rank_metrics(scores, labels, **options), has_ties(scores, k=3)
    monkeypatch.setattr("eval.metrics.ranking._BLOCK", 64)
    for name, values in rank_metrics(scores, labels, **options).items():
        np.testing.assert_array_equal(values, whole[name])
    np.testing.assert_array_equal(has_ties(scores, k=3), ties)


def test_missed_items_count_in_the_ground_truth_only():
    scores, labels = np.array([[3.0, 2.0, -INF]]), np.array([[1, 0, 1]])
    got = rank_metrics(scores, labels, metrics=("nDCG@2", "recall@3", "precision@3", "hit@3", "MRR"))
    assert got["recall@3"][0] == 0.5
    assert got["precision@3"][0] == pytest.approx(1 / 3)
    assert got["nDCG@2"][0] == pytest.approx(1 / (1 + 1 / math.log2(3)))
    lost = rank_metrics(np.array([[1.0, -INF]]), np.array([[0, 2]]))
    assert {name: values[0] for name, values in lost.items()} == dict.fromkeys(lost, 0.0)
    hidden = rank_metrics(scores, labels, np.array([[True, True, False]]), metrics=("recall@3", "nDCG@2"))
    assert hidden["recall@3"][0] == hidden["nDCG@2"][0] == 1.0


def test_linear_and_exponential_gain_differ_as_published():
    got = {
        g: rank_metrics([[2.0, 1.0]], [[1, 3]], metrics=("nDCG@5",), gain=g)["nDCG@5"][0]
        for g in ("linear", "exponential")
    }
    assert got["linear"] == pytest.approx(0.797, abs=1e-3)
    assert got["exponential"] == pytest.approx(0.710, abs=1e-3)
    assert report_name("nDCG@5", gain="exponential") == "nDCG_exp@5"
    assert report_name("hit@5", gain="exponential") == "hit@5"
    assert report_name("nDCG@5", gain="linear") == "nDCG@5"


def test_float_labels_are_graded_and_queries_without_relevant_are_nan():
    got = rank_metrics([[2.0, 1.0], [2.0, 1.0]], [[0.0, 0.7], [0.0, 0.0]], metrics=("nDCG@2", "hit@2"))
    assert got["nDCG@2"][0] == pytest.approx(1 / math.log2(3))
    assert np.isnan(got["hit@2"]).all()  # 0.7 is below relevant_from=1
    assert np.isnan(got["nDCG@2"][1])
    assert mean_metrics(got)["nDCG@2"] == {"mean": pytest.approx(1 / math.log2(3)), "queries": 1, "left_out": 1}
    assert mean_metrics(got)["hit@2"]["queries"] == 0


def test_no_candidates_and_no_queries():
    assert np.isnan(rank_metrics(np.zeros((2, 0)), np.zeros((2, 0)))["MRR"]).all()
    assert rank_metrics(np.zeros((0, 3)), np.zeros((0, 3)))["nDCG@5"].shape == (0,)


def test_padding_may_hold_anything():
    scores, labels = np.array([[1.0, np.nan]]), np.array([[1, -9]])
    assert rank_metrics(scores, labels, np.array([[True, False]]))["MRR"][0] == 1.0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"scores": [[np.nan, 1.0]]}, "query 0, candidate 0 is NaN"),
        ({"metrics": ("ndcg@5",)}, "nDCG@k, precision@k, recall@k, hit@k, MRR"),
        ({"metrics": ("hit@0",)}, "unknown metric"),
        ({"labels": [[-1, 1]]}, "label -1 of query 0, candidate 0"),
        ({"labels": [[0.0, np.nan]]}, "label nan"),
        ({"labels": [[0, 1, 2]]}, "one shape"),
        ({"mask": np.ones((1, 2))}, "expected bool"),
        ({"ties": "random"}, "ties="),
        ({"gain": "log"}, "gain="),
        ({"labels": [[0, 2000]], "gain": "exponential"}, "label 2000"),
        ({"relevant_from": 0}, "relevant_from=0"),
    ],
)
def test_errors_say_what_is_wrong(arguments, message):
    call = {"scores": [[1.0, 2.0]], "labels": [[0, 1]], **arguments}
    with pytest.raises(UserError, match=message) as error:
        rank_metrics(call.pop("scores"), call.pop("labels"), **call)
    assert "\n" not in str(error.value)


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 8), st.integers(0, 2**32 - 1))
def test_select_top_is_a_stable_sort_cut_off(n, k, levels, seed):
    k = min(k, n)
    scores = np.random.default_rng(seed).integers(0, levels, (5, n)).astype(np.float32)
    scores[scores == 3] = -INF
    top = select_top(scores, k)
    want = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    np.testing.assert_array_equal(top.columns, want)
    np.testing.assert_array_equal(top.values, np.take_along_axis(scores, want, axis=1))
    np.testing.assert_array_equal(
        top.at_least_cut, [(row >= row[w[-1]]).sum() for row, w in zip(scores, want, strict=True)]
    )


def test_tie_flag_sees_ties_inside_and_across_the_cut_only():
    scores = np.array([[4.0, 3, 2, 1], [4, 4, 2, 1], [4, 3, 3, 1], [4, 3, 1, 1], [4, -INF, -INF, -INF]])
    assert has_ties(scores, k=2).tolist() == [False, True, True, False, False]
    assert has_ties(scores[1:2], np.array([[True, False, True, True]]), k=2).tolist() == [False]


def test_max_cutoff():
    assert max_cutoff(("MRR",)) == 0
    assert max_cutoff(("nDCG@5", "recall@10", "MRR")) == 10
