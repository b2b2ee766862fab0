"""Intervals and tests against textbook ones and each other: what they say never differs."""

import math

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from eval.statistics import difference_columns, mean_columns, mean_interval, paired_difference, verdict_of
from siglip_jax.errors import UserError


def test_without_clusters_it_is_students_t():
    rng = np.random.default_rng(0)
    a, b = rng.normal(0.3, 1, 30), rng.normal(size=30)
    found, want = paired_difference(a, b), scipy.stats.ttest_rel(a, b)
    assert found.p == pytest.approx(want.pvalue)
    low, high = want.confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((low, high))
    assert (found.low_all, found.high_all, found.p_all) == (found.low, found.high, found.p)
    narrow = mean_interval(a - b, confidence=0.8)
    assert (narrow.low, narrow.high) == pytest.approx(want.confidence_interval(0.8))


def test_equal_clusters_are_students_t_of_their_means():
    rng = np.random.default_rng(1)
    values = rng.normal(size=(20, 6)) + rng.normal(0.4, 1, (20, 1))
    found = paired_difference(values.ravel(), np.zeros(120), clusters=np.repeat(np.arange(20), 6))
    want = scipy.stats.ttest_1samp(values.mean(axis=1), 0)
    assert found.p == pytest.approx(want.pvalue)
    assert (found.low, found.high) == pytest.approx(want.confidence_interval(0.95))
    assert (found.clusters, found.effective_clusters) == (20, pytest.approx(20))


def test_clusters_of_copies_carry_no_more_evidence_than_one_query_each():
    d = np.random.default_rng(4).normal(0.3, 1, 40)
    alone, zeros = paired_difference(d, 0 * d), np.zeros(1000)
    copies = paired_difference(np.repeat(d, 25), zeros, clusters=np.repeat(np.arange(40), 25))
    assert (copies.mean, copies.low, copies.high, copies.p) == pytest.approx(
        (alone.mean, alone.low, alone.high, alone.p)
    )
    assert paired_difference(np.repeat(d, 25), zeros).p < copies.p


@settings(max_examples=60, deadline=None)
@given(st.integers(4, 60), st.integers(1, 12), st.floats(0, 1.5), st.booleans(), st.integers(0, 10**6))
def test_interval_p_and_verdict_never_contradict_each_other(n, columns, effect, many, seed):
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(n, columns)) + rng.normal(size=(n, 1)) + effect * rng.random(columns)
    clusters = {"user": rng.integers(0, n, n), "item": rng.integers(0, max(2, n // 2), n)} if many else None
    for found in difference_columns(values, clusters=clusters, together=True, samples=400, seed=seed):
        if np.isnan(found.p):
            continue
        assert (found.p <= 0.05) == (not found.low <= 0 <= found.high)
        assert (found.p_all <= 0.05) == (not found.low_all <= 0 <= found.high_all)
        assert (found.p <= found.level) == (found.p_all <= 0.05)
        assert found.p <= found.p_all
        if found.standard_error > 0:
            assert found.low_all <= found.low
        if verdict_of(found) in ("better", "worse", "undecided"):
            assert (verdict_of(found) == "undecided") == (found.p_all > 0.05)


def test_a_hundred_rows_can_be_decided():
    rng = np.random.default_rng(3)
    values = rng.normal(size=(400, 100)) + np.where(np.arange(100) < 3, 0.4, 0.0)
    found = difference_columns(values, together=True, samples=500)
    assert [verdict_of(each) for each in found[:3]] == ["better"] * 3
    assert sum(verdict_of(each) != "undecided" for each in found[3:]) <= 1
    assert found[0].comparisons == 100
    assert found[0].p_all <= 100 * found[0].p


def test_columns_together_equal_columns_alone():
    rng = np.random.default_rng(6)
    values = rng.normal(size=(30, 4))
    values[rng.random((30, 4)) < 0.2] = np.nan
    values[:, 3] = np.nan
    group = rng.integers(0, 8, 30)
    for column, interval in enumerate(mean_columns(values, clusters=group)):
        alone = mean_interval(values[:, column], clusters=group)
        np.testing.assert_allclose(list(vars(interval).values()), list(vars(alone).values()), rtol=1e-12)


def test_nan_pairs_are_left_out_together_and_counted():
    a, b = np.array([1.0, np.nan, 3.0, 4.0, 7.0]), np.array([0.0, 1.0, np.nan, 1.0, 1.0])
    found, alone = paired_difference(a, b), paired_difference(a[[0, 3, 4]], b[[0, 3, 4]])
    assert (found.mean, found.queries, found.left_out) == (pytest.approx((1 + 3 + 6) / 3), 3, 2)
    assert (found.low, found.high, found.p) == (alone.low, alone.high, alone.p)


def test_undefined_intervals_are_nan_not_certain():
    one = paired_difference([1.0, 2.0], [0.0, 0.0], clusters=[7, 7])
    assert one.mean == 1.5
    assert np.isnan([one.low, one.high, one.p]).all()
    none = mean_interval([np.nan, np.nan])
    assert np.isnan([none.mean, none.low, none.high]).all()
    assert (none.queries, none.left_out) == (0, 2)


def test_a_difference_that_never_varies():
    same = paired_difference(np.ones(50), np.ones(50))
    assert (same.low, same.high, same.p) == (0, 0, 1)
    above = paired_difference(np.ones(50), np.full(50, 0.75))
    assert (above.low, above.high, above.p) == (0.25, 0.25, 0)
    assert math.isfinite(above.level)


def test_equal_seeds_equal_results():
    rng = np.random.default_rng(5)
    d = rng.normal(size=(60, 5)) + rng.normal(size=(60, 1))
    first = difference_columns(d, together=True, samples=300, seed=9)
    assert first == difference_columns(d, together=True, samples=300, seed=9)
    other = difference_columns(d, together=True, samples=300, seed=10)
    assert first[0].level != other[0].level
    assert (first[0].low, first[0].p) == (other[0].low, other[0].p)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: paired_difference([1.0, 2.0], [1.0]), "one length"),
        (lambda: mean_interval([1.0, np.inf]), "query 1 is infinite"),
        (lambda: mean_interval([1.0], clusters=[1, 2]), "one per query"),
        (lambda: difference_columns(np.ones((3, 2)), samples=0), "samples=0"),
        (lambda: mean_interval([1.0], confidence=95), "confidence=95"),
    ],
)
def test_errors(call, message):
    with pytest.raises(UserError, match=message):
        call()
