"""Bootstrap and sign-flip test against closed forms, enumeration, a plain-loop bootstrap and simulated coverage."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eval.statistics import bootstrap_columns, bootstrap_mean, difference_columns, paired_bootstrap
from siglip_jax.errors import UserError


def test_interval_of_many_normal_values_is_the_textbook_one():
    values = np.random.default_rng(0).normal(0.3, 1, 4000)
    got = bootstrap_mean(values, samples=10_000)
    half = 1.96 * values.std() / math.sqrt(len(values))
    assert got.mean == pytest.approx(values.mean())
    assert got.low == pytest.approx(values.mean() - half, abs=0.05 * half)
    assert got.high == pytest.approx(values.mean() + half, abs=0.05 * half)


def test_clustered_interval_equals_a_plain_loop_over_clusters():
    rng = np.random.default_rng(1)
    clusters = np.sort(rng.integers(0, 30, 200))
    values = rng.normal(size=30)[clusters] + 0.1 * rng.normal(size=200)
    got = bootstrap_mean(values, clusters=clusters, samples=20_000)
    members = [np.flatnonzero(clusters == c) for c in np.unique(clusters)]
    means = [
        values[np.concatenate([members[c] for c in rng.integers(0, len(members), len(members))])].mean()
        for _ in range(20_000)
    ]
    width = got.high - got.low
    np.testing.assert_allclose([got.low, got.high], np.percentile(means, [2.5, 97.5]), atol=0.03 * width)
    assert width > 2 * (lambda i: i.high - i.low)(bootstrap_mean(values))  # ignoring clusters would flatter
    assert got.clusters == len(members)


def test_interval_covers_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(2)
    inside = 0
    for trial in range(400):
        user = rng.normal(size=60)
        clusters = rng.integers(0, 60, 240)
        a = 0.5 + user[clusters] + rng.normal(size=240)
        got = paired_bootstrap(a, np.zeros(240), clusters=clusters, samples=400, confidence=0.9, seed=trial)
        inside += got.low <= 0.5 <= got.high
    assert 0.84 <= inside / 400 <= 0.95


def test_p_equals_enumeration_of_all_sign_flips():
    a, b = np.array([0.9, 0.8, 0.4, 0.7, 0.9, 0.1, 0.8]), np.array([0.2, 0.5, 0.5, 0.3, 0.1, 0.0, 0.2])
    d = a - b
    exact = np.mean([abs(np.dot(s, d)) >= abs(d.sum()) - 1e-12 for s in itertools.product([-1, 1], repeat=7)])
    assert paired_bootstrap(a, b, samples=40_000).p == pytest.approx(exact, abs=0.004)


def test_p_is_never_zero():
    a = np.random.default_rng(0).normal(100, 1, 50)
    assert paired_bootstrap(a, 0 * a, samples=99).p == 1 / 100


def test_p_is_uniform_when_nothing_differs():
    rng = np.random.default_rng(3)
    p = np.array([paired_bootstrap(*rng.normal(size=(2, 50)), samples=199, seed=i).p for i in range(400)])
    assert 0.02 <= (p <= 0.05).mean() <= 0.09
    assert 0.4 <= p.mean() <= 0.6


def test_clusters_of_copies_carry_no_more_evidence_than_one_query_each():
    rng = np.random.default_rng(4)
    d = rng.normal(0.3, 1, 40)
    alone = paired_bootstrap(d, 0 * d, samples=4000)
    copies = paired_bootstrap(np.repeat(d, 25), np.zeros(1000), clusters=np.repeat(np.arange(40), 25), samples=4000)
    assert (copies.mean, copies.low, copies.high, copies.p) == pytest.approx(
        (alone.mean, alone.low, alone.high, alone.p)
    )
    assert paired_bootstrap(np.repeat(d, 25), np.zeros(1000), samples=4000).p < copies.p


def test_nan_pairs_are_left_out_together_and_counted():
    a, b = np.array([1.0, np.nan, 3.0, 4.0, 7.0]), np.array([0.0, 1.0, np.nan, 1.0, 1.0])
    got = paired_bootstrap(a, b)
    assert (got.mean, got.queries, got.left_out) == (pytest.approx((1 + 3 + 6) / 3), 3, 2)
    alone = paired_bootstrap(a[[0, 3, 4]], b[[0, 3, 4]])
    assert (got.low, got.high, got.p) == (alone.low, alone.high, alone.p)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 30), st.integers(1, 8), st.integers(0, 10**6))
def test_columns_together_equal_columns_alone(n, clusters, seed):
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(n, 4))
    values[rng.random((n, 4)) < 0.2] = np.nan
    values[:, 3] = np.nan
    group = rng.integers(0, clusters, n)
    for column, interval in enumerate(bootstrap_columns(values, clusters=group, samples=50, seed=seed)):
        alone = bootstrap_mean(values[:, column], clusters=group, samples=50, seed=seed)
        np.testing.assert_allclose(list(vars(interval).values()), list(vars(alone).values()), rtol=1e-12)
        known = values[~np.isnan(values[:, column]), column]
        np.testing.assert_allclose(interval.mean, known.mean() if known.size else np.nan)


def test_undefined_intervals_are_nan_not_certain():
    one = paired_bootstrap([1.0, 2.0], [0.0, 0.0], clusters=[7, 7])
    assert one.mean == 1.5
    assert np.isnan([one.low, one.high, one.p]).all()
    none = bootstrap_mean([np.nan, np.nan])
    assert np.isnan([none.mean, none.low, none.high]).all()
    assert (none.queries, none.left_out) == (0, 2)


def test_equal_seeds_equal_results_and_blocks_do_not_show(monkeypatch):
    d = np.random.default_rng(5).normal(size=(60, 2))
    first = difference_columns(d, samples=300, seed=9)
    assert first == difference_columns(d, samples=300, seed=9)
    assert first != difference_columns(d, samples=300, seed=10)
    monkeypatch.setattr("eval.statistics.resampling._BLOCK", 60 * 7)
    for got, want in zip(difference_columns(d, samples=300, seed=9), first, strict=True):
        assert list(vars(got).values()) == pytest.approx(list(vars(want).values()), abs=1e-12)


def test_text_clusters_work():
    assert bootstrap_mean([1.0, 2.0, 3.0], clusters=["a", "b", "a"]).clusters == 2


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: paired_bootstrap([1.0, 2.0], [1.0]), "one length"),
        (lambda: bootstrap_mean([1.0, np.inf]), "query 1 is infinite"),
        (lambda: bootstrap_mean([1.0], clusters=[1, 2]), "one per query"),
        (lambda: bootstrap_mean([1.0], samples=0), "samples=0"),
        (lambda: bootstrap_mean([1.0], confidence=95), "confidence=95"),
    ],
)
def test_errors(call, message):
    with pytest.raises(UserError, match=message):
        call()
