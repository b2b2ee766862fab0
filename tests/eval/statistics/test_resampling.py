"""The fast resampling of many clusters: moments of the weights, and intervals beside the plain bootstrap's."""

import math

import numpy as np
import pytest

from eval.statistics import bootstrap_columns, bootstrap_mean, difference_columns, paired_bootstrap, resampling


def test_weights_are_those_of_poisson():
    weights = resampling._poisson_weights(np.random.SFC64(0), 500, 4001)
    assert weights.shape == (500, 4001)
    seen = np.bincount(weights.astype(int).ravel(), minlength=10)[:9] / weights.size
    want = [math.exp(-1) / math.factorial(k) for k in range(9)]
    np.testing.assert_allclose(seen, want, atol=5 * np.sqrt(np.array(want) / weights.size).max() / 2)
    assert weights.mean() == pytest.approx(1, abs=0.004)
    assert weights.var() == pytest.approx(1, abs=0.01)


def test_coins_are_fair_and_independent():
    coins = resampling._coins(np.random.SFC64(0), 300, 1003)
    assert set(np.unique(coins)) == {0, 1}
    assert coins.mean() == pytest.approx(0.5, abs=0.004)
    assert np.abs(np.corrcoef(coins[:30])[np.triu_indices(30, 1)]).max() < 0.16


@pytest.mark.parametrize("clustered", [False, True])
def test_poisson_bootstrap_agrees_with_drawing_clusters(monkeypatch, clustered):
    rng = np.random.default_rng(1)
    clusters = rng.integers(0, 700, 4000) if clustered else None
    values = rng.exponential(size=(4000, 2)) + (0 if clusters is None else rng.normal(size=700)[clusters][:, None])
    plain = bootstrap_columns(values, clusters=clusters, samples=8000)
    monkeypatch.setattr(resampling, "MANY", 100)
    for got, want in zip(bootstrap_columns(values, clusters=clusters, samples=8000), plain, strict=True):
        width = want.high - want.low
        assert got.mean == want.mean
        assert got.low == pytest.approx(want.low, abs=0.04 * width)
        assert got.high == pytest.approx(want.high, abs=0.04 * width)
        assert width == pytest.approx(2 * 1.96 * want.standard_error, rel=0.05)


def test_sign_flips_of_many_clusters_agree_with_few(monkeypatch):
    d = np.random.default_rng(2).normal(0, 1, 3000)
    d += 1.4 / np.sqrt(3000) - d.mean()
    plain = paired_bootstrap(d, 0 * d, samples=8000).p
    assert 0.02 < plain < 0.5
    monkeypatch.setattr(resampling, "MANY", 100)
    assert paired_bootstrap(d, 0 * d, samples=8000).p == pytest.approx(plain, abs=0.03)


def test_neither_threads_nor_blocks_nor_columns_show(monkeypatch):
    values = np.random.default_rng(3).normal(size=(20_000, 3))
    assert len(values) > resampling.MANY
    first = difference_columns(values, samples=60, seed=4)
    monkeypatch.setattr("eval.metrics.threads.MAX_THREADS", 1)
    assert difference_columns(values, samples=60, seed=4) == first
    monkeypatch.setattr(resampling, "_PRODUCT", 1)
    alone = bootstrap_mean(values[:, 1], samples=60, seed=4)
    for name in ("mean", "low", "high", "standard_error"):
        assert getattr(alone, name) == pytest.approx(getattr(first[1], name), abs=1e-8)


def test_large_offsets_do_not_cost_precision():
    values = 1e6 + np.random.default_rng(5).normal(size=20_000)
    got, want = (bootstrap_mean(v, samples=200) for v in (values, values - 1e6))
    assert got.high - got.low == pytest.approx(want.high - want.low, rel=1e-4)
