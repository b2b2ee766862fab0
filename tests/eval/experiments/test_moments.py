"""Moments against numpy, ratios against the bootstrap of users, CUPED against its theory and tea-tasting."""

import numpy as np
import pytest

from eval.experiments.moments import adjusted, joined, moments, sample
from siglip_jax.errors import UserError


def test_moments_of_two_groups_are_those_of_all():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(50, 3)), rng.normal(2, 3, size=(20, 3))
    both = joined(moments(a), moments(b))
    every = np.concatenate([a, b])
    assert both.n == 70
    np.testing.assert_allclose(both.mean, every.mean(axis=0))
    np.testing.assert_allclose(both.cov, np.cov(every.T))


def test_a_ratio_has_the_variance_that_resampled_users_show():
    rng = np.random.default_rng(1)
    shown = 1 + rng.poisson(5, 400)
    taps = rng.binomial(shown, rng.beta(1, 6, 400))
    found = sample(moments(np.stack([taps, shown], axis=1)))
    assert found.value == pytest.approx(taps.sum() / shown.sum())
    drawn = rng.integers(0, 400, (4000, 400))
    ratios = taps[drawn].sum(axis=1) / shown[drawn].sum(axis=1)
    assert np.sqrt(found.variance / found.n) == pytest.approx(ratios.std(), rel=0.05)
    assert found.effective == pytest.approx(taps.sum() ** 2 / (taps**2).sum())


@pytest.mark.parametrize("rho", [0.3, 0.8])
def test_cuped_takes_rho_squared_of_the_variance(rho):
    rng = np.random.default_rng(2)
    before = rng.normal(size=200_000)
    after = 5 + rho * before + np.sqrt(1 - rho**2) * rng.normal(size=200_000)
    ones = np.ones(200_000)
    table = np.stack([after, ones, before, ones], axis=1)
    control, treatment, how = adjusted(moments(table[::2]), moments(table[1::2]))
    assert how.correlation == pytest.approx(rho, abs=0.005)
    assert how.reduction == pytest.approx(rho**2, abs=0.005)
    assert control.value == pytest.approx(5, abs=0.01)
    assert treatment.variance == pytest.approx(1 - rho**2, rel=0.01)


@pytest.mark.parametrize(
    ("name", "columns"),
    [
        ("ctr_cuped", ("taps", "shown", "taps_before", "shown_before")),
        ("taps_cuped", ("taps", None, "taps_before", None)),
    ],
)
def test_cuped_is_that_of_tea_tasting(golden_experiment, arms_of, name, columns):
    control, treatment, how = adjusted(*map(moments, arms_of(*columns)))
    said = golden_experiment["tea_tasting"][name]
    assert (control.value, treatment.value) == pytest.approx((said["control"], said["treatment"]), rel=1e-12)
    assert 0 < how.reduction < 1


def test_a_covariate_without_spread_changes_nothing():
    table = np.array([[1.0, 1, 0, 0], [0, 1, 0, 0], [1, 1, 0, 0], [1, 1, 0, 0]])
    control, treatment, how = adjusted(moments(table[:2]), moments(table[2:]))
    assert (control.value, treatment.value, how.theta, how.reduction) == (0.5, 1, 0, 0)


@pytest.mark.parametrize("wrong", [np.zeros(3), np.zeros((1, 2)), np.array([[1.0, np.nan], [1, 1]])])
def test_impossible_columns(wrong):
    with pytest.raises(UserError):
        moments(wrong)
