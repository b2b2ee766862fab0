"""Differences, intervals and p against tea-tasting, statsmodels and ville; what holds of them for all numbers."""

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eval.experiments.effects import (
    LOOKS,
    Looks,
    compare,
    holm_levels,
    no_worse,
    sequence_p,
    sequence_radius,
)
from eval.experiments.moments import Measured, adjusted, moments, sample
from siglip_jax.errors import UserError

ONE, MANY = Looks(looks="one"), Looks(looks="many")
METRICS = {
    "ctr": ("taps", "shown"),
    "taps": ("taps", None),
    "money": ("money", None),
    "ctr_cuped": ("taps", "shown", "taps_before", "shown_before"),
    "taps_cuped": ("taps", None, "taps_before", None),
}


def samples(arms_of, name):
    arms = [moments(arm) for arm in arms_of(*METRICS[name])]
    return adjusted(*arms)[:2] if len(METRICS[name]) == 4 else tuple(map(sample, arms))


@pytest.mark.parametrize("name", METRICS)
def test_one_look_is_that_of_tea_tasting(golden_experiment, arms_of, name):
    found, said = compare(*samples(arms_of, name), ONE), golden_experiment["tea_tasting"][name]
    ours = (found.mean, found.low, found.high, found.p, found.mean / found.error, found.relative)
    theirs = ("effect_size", "effect_size_ci_lower", "effect_size_ci_upper", "pvalue", "statistic", "rel_effect_size")
    assert ours == pytest.approx([said[key] for key in theirs], rel=1e-9)


def test_relative_intervals_are_near_those_of_tea_tasting_where_data_are_many(arms_of):
    """Theirs are of the log of the ratio; ours exclude 0 where the test does."""
    control, treatment = (Measured(s.value, s.variance, 100 * s.n) for s in samples(arms_of, "ctr"))
    found = compare(control, treatment, ONE)
    spread = sum(s.variance / s.n / s.value**2 for s in (control, treatment))
    for end, sign in ((found.relative_low, -1), (found.relative_high, 1)):
        log_end = treatment.value / control.value * math.exp(sign * 1.96 * math.sqrt(spread)) - 1
        assert end == pytest.approx(log_end, abs=0.001)


def test_welch_and_non_inferiority_are_those_of_statsmodels(golden_experiment, arms_of):
    control, treatment = samples(arms_of, "taps")
    said, found = golden_experiment["statsmodels"], compare(control, treatment, ONE)
    assert (found.mean / found.error, found.p) == pytest.approx(said["welch"][:2], rel=1e-9)
    assert (found.low, found.high) == pytest.approx(said["interval"], rel=1e-9)
    for margin, p in said["non_inferior"].items():
        assert no_worse(control, treatment, ONE, margin=float(margin), relative=False)[0] == pytest.approx(p, rel=1e-8)


def test_holm_is_that_of_statsmodels_and_tea_tasting(golden_experiment):
    p, corrected = golden_experiment["statsmodels"]["holm"]
    np.testing.assert_allclose(holm_levels(np.array(p))[0], corrected)
    said = golden_experiment["tea_tasting_holm"]
    ours = holm_levels(np.array([golden_experiment["tea_tasting"][name]["pvalue"] for name in said]))
    np.testing.assert_allclose(ours, [[each[k] for each in said.values()] for k in ("pvalue_adj", "alpha_adj")])


def test_the_sequence_is_that_of_ville(golden_experiment):
    said = golden_experiment["ville"]
    for place, low, high in zip(said["looks"], said["low"], said["high"], strict=True):
        seen = np.array(said["stream"][: place + 1])
        deviation = seen.std(ddof=1)
        error, scale = deviation / math.sqrt(len(seen)), deviation / math.sqrt(said["rho"])
        reach = sequence_radius(error, scale=scale, alpha=0.05)
        assert (seen.mean() - reach, seen.mean() + reach) == pytest.approx((low, high), rel=1e-9)


def numbers(low, high):
    return st.floats(low, high, allow_nan=False)


arms = st.builds(Measured, value=numbers(0.01, 3), variance=numbers(0.01, 9), n=st.integers(20, 10**6))


@settings(deadline=None, max_examples=50)
@given(arms, arms, st.sampled_from(LOOKS), numbers(0.001, 0.2))
def test_p_and_both_intervals_say_the_same(control, treatment, looks, alpha):
    found = compare(control, treatment, Looks(looks=looks), alpha=alpha)
    turned = [dataclasses.replace(each, value=-each.value) for each in (treatment, control)]
    negative = compare(turned[1], turned[0], Looks(looks=looks), alpha=alpha)  # the same, upside down
    assert (negative.relative_low, negative.relative_high) == pytest.approx((-found.relative_high, -found.relative_low))
    outside = found.low > 0 or found.high < 0
    if abs(found.p - alpha) > 1e-9:
        assert (found.p < alpha) == outside
    if math.isfinite(found.relative_low) and min(map(abs, (found.relative_low, found.relative_high, found.low))) > 1e-9:
        assert (found.relative_low > 0 or found.relative_high < 0) == outside
        assert found.relative_low <= found.relative <= found.relative_high


@settings(deadline=None, max_examples=50)
@given(arms, arms, st.sampled_from(LOOKS), numbers(0.01, 0.5), st.booleans())
def test_no_worse_than_a_margin_by_p_and_by_interval(control, treatment, looks, margin, relative):
    p, low = no_worse(control, treatment, Looks(looks=looks), margin=margin, relative=relative)
    limit = 0.025 if looks == "one" else 0.05
    if abs(p - limit) > 1e-9:
        assert (p < limit) == (low > 0)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.one_of(numbers(0, 1), st.just(math.nan)), max_size=8), numbers(0.01, 0.2))
def test_holm_finds_exactly_what_is_under_its_level(p, alpha):
    p = np.array(p)
    adjusted_p, levels = holm_levels(p, alpha=alpha)
    known = ~np.isnan(p) & (abs(adjusted_p - alpha) > 1e-12)
    np.testing.assert_array_equal((adjusted_p <= alpha)[known], (p <= levels)[known])


@settings(deadline=None, max_examples=50)
@given(numbers(-5, 5), numbers(0.01, 2), numbers(0.01, 2), numbers(0.001, 0.5))
def test_p_of_the_sequence_is_the_level_at_its_border(mean, error, scale, alpha):
    assert sequence_p(sequence_radius(error, scale=scale, alpha=alpha), error, scale=scale) == pytest.approx(alpha)
    assert 0 <= sequence_p(mean, error, scale=scale) <= 1


def test_a_sequence_is_half_as_wide_again_as_one_look():
    base = Measured(1.0, 1.0, 100_000)
    ends = [compare(base, Measured(1.05, 1.0, 100_000), Looks(looks=looks, lift=0.0125)) for looks in ("many", "one")]
    assert (ends[0].high - ends[0].mean) / (ends[1].high - ends[1].mean) == pytest.approx(1.55, abs=0.01)


def test_what_cannot_be_measured():
    nothing = Measured(0.0, 0.0, 10)
    for look in (ONE, MANY):
        assert math.isnan(compare(nothing, nothing, look).p)
        assert math.isnan(no_worse(nothing, nothing, look, margin=0.1, relative=True)[0])
    found = compare(Measured(0.0, 0.0, 100), Measured(0.5, 0.3, 100), MANY)
    assert (found.p, found.low) == (1, -math.inf)  # no scale where control is 0
    for wrong in ({"looks": "often"}, {"confidence": 1.0}, {"lift": 0.0}):
        with pytest.raises(UserError):
            Looks(**wrong)
    with pytest.raises(UserError, match="margin"):
        no_worse(nothing, nothing, ONE, margin=1.0, relative=True)
