"""The level of many comparisons against closed forms, and the bounds it never leaves."""

import numpy as np
import pytest
import scipy.stats

from eval.statistics.simultaneous import correct


def corrected(p, correlation, **options):
    return correct(np.asarray(p, float), np.asarray(correlation, float), **{"confidence": 0.95, "seed": 0} | options)


def test_independent_comparisons_are_sidaks():
    level, p_all, count = corrected([0.01, 0.2, 0.5, 0.9], np.eye(4), samples=200_000)
    assert count == 4
    assert level == pytest.approx(1 - 0.95**0.25, rel=0.02)
    assert p_all[0] == pytest.approx(1 - 0.99**4, rel=0.03)


def test_comparisons_that_move_together_are_one():
    level, p_all, _ = corrected([0.03, 0.03, 0.03], np.full((3, 3), 2.0), samples=100_000)
    assert level == pytest.approx(0.05, rel=0.03)
    assert p_all == pytest.approx(0.03, rel=0.05)


def test_correlation_lies_between():
    correlation = np.full((3, 3), 0.7) + 0.3 * np.eye(3)
    level, _, _ = corrected(np.full(3, 0.5), correlation, samples=100_000)
    normal = scipy.stats.multivariate_normal(np.zeros(3), correlation, seed=1)
    reach = scipy.stats.norm.isf(level / 2)
    inside = normal.cdf(np.full(3, reach), lower_limit=np.full(3, -reach))
    assert inside == pytest.approx(0.95, abs=0.003)


def test_a_small_p_stays_small_however_few_the_draws():
    level, p_all, _ = corrected([1e-12, 0.5], np.eye(2), samples=10)
    assert p_all[0] == pytest.approx(2e-12)
    assert 0.025 <= level <= 0.05


def test_what_was_not_measured_or_never_varies_does_not_count():
    covariance = np.diag([1.0, np.nan, 0.0])
    level, p_all, count = corrected([0.04, np.nan, 1.0], covariance, samples=100)
    assert (level, count) == (pytest.approx(0.05), 1)
    np.testing.assert_array_equal(p_all, [0.04, np.nan, 1.0])


def test_a_covariance_with_a_negative_eigenvalue_is_taken():
    covariance = np.array([[1, 0.9, -0.9], [0.9, 1, 0.9], [-0.9, 0.9, 1]])
    assert np.linalg.eigvalsh(covariance).min() < 0
    level, p_all, _ = corrected([0.01, 0.02, 0.03], covariance, samples=1000)
    assert 0.05 / 3 <= level <= 0.05
    assert np.isfinite(p_all).all()
