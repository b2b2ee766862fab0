"""rank_metrics against pytrec_eval and against brute force over every order of the candidates."""

import dataclasses
import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eval.metrics import has_ties, mean_metrics, parse_metric, rank_metrics, report_name
from eval.metrics.metric_names import known_metrics, max_cutoff, trec_name
from eval.metrics.metric_table import METRICS, Definition, OneQuery
from eval.metrics.topk import select_top
from siglip_jax.errors import UserError


def some_names() -> list[str]:
    """A few of every form of every metric, read from the table, so that a new entry is tested as well."""
    names = []
    for form in known_metrics():
        for p in ("0.8", ".5") if "(p)" in form else ("",):
            for k in ("1", "3", "20") if "@k" in form else ("",):
                names.append(form.replace("(p)", f"({p})").replace("@k", f"@{k}"))
    return names


MAX_GRADE = 4
INF = np.inf


def brute_force(name, scores, labels, mask, ties, gain, relevant_from):
    """The mean of the table's own reference over every order of the equal scores; NaN where the metric is undefined."""
    labels = [label for label, exists in zip(labels, mask, strict=True) if exists]
    scores = [score for score, exists in zip(scores, mask, strict=True) if exists]
    metric = parse_metric(name)
    definition = METRICS[metric.kind]
    if definition.undefined_without_relevant and not any(label >= relevant_from for label in labels):
        return math.nan
    retrieved = [i for i, score in enumerate(scores) if score > -INF]
    values = []
    for order in itertools.permutations(retrieved) if ties == "expected" else [retrieved]:
        ranking = sorted(order, key=lambda i: -scores[i])  # stable: every order of equal ones comes equally often
        query = OneQuery(
            labels=[labels[i] for i in ranking],
            all_labels=labels,
            relevant_from=relevant_from,
            max_grade=MAX_GRADE,
            gain=(lambda label: 2.0**label - 1) if gain == "exponential" else float,
        )
        values.append(definition.reference(query, metric))
    return math.fsum(values) / len(values)


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
        metrics=some_names(),
        ties=ties,
        gain=gain,
        relevant_from=relevant_from,
        max_grade=MAX_GRADE,
    )
    for q in range(len(scores)):
        for name in got:
            want = brute_force(name, scores[q], labels[q], mask[q], ties, gain, relevant_from)
            np.testing.assert_allclose(got[name][q], want, rtol=1e-12, atol=1e-15, err_msg=f"{name} query {q}")


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
    options = {"metrics": some_names(), "max_grade": MAX_GRADE}
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
        ({"metrics": ("ndcg@5",)}, "nDCG@k, nDCG, precision@k, recall@k, hit@k, MRR, MRR@k"),
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


F1 = Definition(
    forms={"@k": None},
    from_ranking=lambda ranking, metric: (
        2 * ranking.total(ranking.relevant, metric.k) / (metric.cutoff + ranking.relevant_count)
    ),
    reference=lambda query, metric: 2 * sum(query.hits[: metric.k]) / (metric.cutoff + query.relevant_count),
)


def test_one_entry_adds_a_metric(monkeypatch):
    monkeypatch.setitem(METRICS, "F1", F1)
    assert {"F1@1", "F1@20"} <= set(some_names())  # so the tests above would cover it
    assert report_name("F1@5", gain="exponential") == "F1@5"
    assert trec_name("F1@5") is None
    assert max_cutoff(("F1@7",)) == 7
    got = rank_metrics([[1.0, 1.0, 0.0], [2.0, 1.0, 0.0]], [[1, 0, 1], [0, 1, 0]], metrics=("F1@2",))
    np.testing.assert_allclose(got["F1@2"], [(2 * 1) / (2 + 2), (2 * 1) / (2 + 1)])
    with pytest.raises(UserError, match=r"unknown metric 'F1': known are .*, F1@k with"):
        rank_metrics([[1.0]], [[1]], metrics=("F1",))


@pytest.mark.parametrize("factor", [1, 2])
def test_the_brute_force_tells_a_wrong_formula_from_a_right_one(monkeypatch, factor):
    wrong = dataclasses.replace(F1, from_ranking=lambda ranking, metric: factor * F1.from_ranking(ranking, metric))
    monkeypatch.setitem(METRICS, "F1", wrong)
    scores, labels = [1.0, 1.0, 0.0, 1.0], [0, 1, 1, 0]
    got = rank_metrics([scores], [labels], metrics=("F1@2",))["F1@2"][0]
    want = brute_force("F1@2", scores, labels, [True] * 4, "expected", "linear", 1)
    assert (got == pytest.approx(want)) == (factor == 1)
