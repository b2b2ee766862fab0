"""Clustered variance against statsmodels' two-way one (golden) and a jackknife in plain loops; what clusters weigh."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eval.statistics import clustered_moments
from siglip_jax.errors import UserError

# Six users, five query items, two queries of each pair. statsmodels 0.15.0, OLS(y, 1) with cov_type="cluster" and
# groups of users, of items, and of both. In a balanced design jackknife and sandwich are one.
GOLDEN = np.array([
    0.42, 0.17, 0.41, 1.31, 0.2, -1.84, -1.08, -2.52, -0.8, -1.35, 0.12, -0.91, 1.91, 1.8, -0.38, -2.71, -0.86, -0.37,
    0.9, -0.74, -0.69, -1.19, 0.26, 2.13, -1.57, -0.8, -0.01, -1.48, 0.1, 0.33, -0.77, -2.06, 0.53, 1.81, -2.93, -0.52,
    -1.39, -2.15, 1.6, 0.36, -1.59, -0.32, 1.46, 0.7, -0.26, -1.01, -0.41, 0.36, -0.64, 0.24, -1.39, -0.8, -0.84, -0.23,
    -1.68, -0.59, -0.47, -2.94, -1.3, 0.15,
])  # fmt: skip
USERS, ITEMS = np.repeat(np.arange(6), 10), np.tile(np.repeat(np.arange(5), 2), 6)


@pytest.mark.parametrize(
    ("clusters", "error"),
    [
        ({"user": USERS, "item": ITEMS}, 0.3729295669122989),
        (USERS, 0.13521924583595513),
        (ITEMS, 0.39372999067324777),
    ],
)
def test_standard_errors_of_statsmodels(clusters, error):
    found = clustered_moments(GOLDEN[:, None], clusters)
    assert found.mean[0] == pytest.approx(-0.4386666666666668, rel=1e-12)
    assert found.error[0] == pytest.approx(error, rel=1e-12)


def jackknife(values, groups):
    """Leave one group out after the other, one query after the other: covariance of the means [c, c]."""
    values, names = np.asarray(values, np.float64), sorted(set(groups))
    whole = [np.nanmean(column) for column in values.T]
    total = np.zeros((len(whole), len(whole)))
    for name in names:
        kept = [q for q in range(len(values)) if groups[q] != name]
        change = np.array([np.nanmean(values[kept, c]) - whole[c] for c in range(len(whole))])
        total += np.outer(change, change)
    return total * (len(names) - 1) / len(names)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6))
def test_covariance_is_the_jackknife_of_each_way_less_that_of_both(seed):
    rng = np.random.default_rng(seed)
    users, items = rng.integers(0, 5, 40), np.minimum(rng.geometric(0.4, 40), 6)
    values = rng.normal(size=(40, 3)) + rng.normal(size=(7, 3))[items]
    found = clustered_moments(values, {"user": users, "item": items})
    both = [f"{u} {i}" for u, i in zip(users, items, strict=True)]
    parts = [jackknife(values, list(users)), jackknife(values, list(items)), jackknife(values, both)]
    want = parts[0] + parts[1] - parts[2]
    least = np.diagonal(parts[2]) / 2
    np.testing.assert_allclose(found.error**2, np.maximum(np.diagonal(want), least), rtol=1e-9)
    off = ~np.eye(3, dtype=bool)
    np.testing.assert_allclose(found.covariance[off], want[off], rtol=1e-9, atol=1e-15)


def test_each_column_leaves_out_its_own_missing_queries():
    rng = np.random.default_rng(1)
    users, values = rng.integers(0, 8, 60), rng.normal(size=(60, 3))
    values[rng.random((60, 3)) < 0.2] = np.nan
    found = clustered_moments(values, users)
    for column in range(3):
        known = ~np.isnan(values[:, column])
        alone = clustered_moments(values[known][:, [column]], users[known])
        for name in ("mean", "error", "degrees", "queries", "clusters", "effective"):
            assert getattr(found, name)[column] == pytest.approx(getattr(alone, name)[0], rel=1e-12), name


def test_ways_that_are_one_or_nested_add_nothing():
    rng = np.random.default_rng(2)
    users, values = rng.integers(0, 9, 80), rng.normal(size=(80, 1))
    sessions = users * 3 + rng.integers(0, 3, 80)
    plain = clustered_moments(values, users).error
    assert clustered_moments(values, {"user": users, "again": users}).error == pytest.approx(plain)
    assert clustered_moments(values, {"user": users, "session": sessions}).error == pytest.approx(plain)
    assert clustered_moments(values, {"user": users, "query": np.arange(80)}).error == pytest.approx(plain)


def test_queries_that_are_zero_say_nothing_of_the_spread():
    values = np.zeros((500, 2))
    values[:7, 0], values[:, 1] = 1, np.random.default_rng(0).normal(size=500)
    assert clustered_moments(values).degrees == pytest.approx([6, 499])


def test_undefined_is_nan():
    found = clustered_moments(np.array([[1.0, np.nan], [2.0, np.nan]]), np.array([7, 7]))
    assert found.mean[0] == 1.5
    assert np.isnan([found.mean[1], *found.error]).all()
    assert found.clusters.tolist() == [1, 0]


def test_large_offsets_do_not_cost_precision():
    values = np.random.default_rng(5).normal(size=(20_000, 1))
    assert clustered_moments(1e6 + values).error == pytest.approx(clustered_moments(values).error, rel=1e-6)


def test_errors():
    with pytest.raises(UserError, match="one number per query"):
        clustered_moments(np.zeros(3))
    with pytest.raises(UserError, match="query 1 is infinite"):
        clustered_moments(np.array([[1.0], [np.inf]]))
