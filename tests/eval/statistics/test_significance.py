"""Verdicts, power and what is said: against scipy's own power, by hand, and of a heavy user."""

import dataclasses

import numpy as np
import pytest
import scipy.stats

from eval.statistics import conclusion, difference_columns, minimum_detectable_effect, paired_difference, verdict_of
from eval.statistics.intervals import Difference
from eval.statistics.significance import chance_of_finding, signed, weight_in_words
from siglip_jax.errors import UserError

CLEAR = Difference(
    mean=0.041, low=0.03, high=0.052, queries=9000, left_out=100, clusters=500, effective_clusters=312.5,
    standard_error=0.0056, degrees=311.5, p=0.0005, low_all=0.03, high_all=0.052, p_all=0.0005, level=0.05,
    comparisons=1,
)  # fmt: skip


def with_interval(low, high, **changes):
    return dataclasses.replace(CLEAR, mean=(low + high) / 2, low_all=low, high_all=high, **changes)


@pytest.mark.parametrize(("degrees", "level"), [(19.0, 0.05), (49.0, 0.005), (np.inf, 0.05), (6.5, 0.01)])
def test_power_is_the_share_of_simulated_t_that_the_rule_finds(degrees, level):
    rng = np.random.default_rng(0)
    effect = minimum_detectable_effect(2.0, degrees=degrees, level=level, power=0.8)
    z = rng.normal(size=200_000) + effect / 2
    spread = 1.0 if np.isinf(degrees) else np.sqrt(rng.chisquare(degrees, 200_000) / degrees)
    t = np.abs(z) / spread
    found = scipy.stats.norm.sf(t) * 2 <= level if np.isinf(degrees) else scipy.stats.t.sf(t, degrees) * 2 <= level
    assert found.mean() == pytest.approx(0.8, abs=0.005)
    assert chance_of_finding(effect, 2.0, degrees=degrees, level=level) == pytest.approx(0.8, abs=1e-4)
    assert chance_of_finding(0, 2.0, degrees=degrees, level=level) == pytest.approx(level, rel=0.02)


def test_minimum_detectable_effect_by_the_textbook():
    assert minimum_detectable_effect(1) == pytest.approx(1.959964 + 0.841621, abs=1e-4)
    assert minimum_detectable_effect(1, degrees=20) > minimum_detectable_effect(1, degrees=200)
    assert minimum_detectable_effect(1, level=0.005) > minimum_detectable_effect(1)
    assert np.isnan(minimum_detectable_effect(np.nan))
    assert minimum_detectable_effect(0.0) == 0


def test_power_is_that_of_the_comparison_that_was_corrected():
    rng = np.random.default_rng(1)
    several = difference_columns(rng.normal(size=(300, 10)), together=True, samples=2000)[0]
    one = paired_difference(rng.normal(size=300), np.zeros(300))
    said = [(conclusion("a", "b", each, metric="MRR"), each.standard_error) for each in (several, one)]
    found = [each.minimum_detectable / error for each, error in said]
    assert found[0] > 1.25 * found[1]
    assert found[0] == pytest.approx(minimum_detectable_effect(1, degrees=299, level=several.level))


@pytest.mark.parametrize(
    ("found", "margin", "verdict"),
    [
        (with_interval(0.01, 0.03), None, "better"),
        (with_interval(-0.03, -0.01), None, "worse"),
        (with_interval(-0.01, 0.03), None, "undecided"),
        (with_interval(-0.01, 0.03), 0.02, "no worse"),
        (with_interval(-0.01, 0.03), 0.005, "undecided"),
        (with_interval(0.01, 0.03), 0.02, "better"),
        (with_interval(-0.004, -0.001), 0.02, "worse"),
        (with_interval(0.01, 0.03, degrees=8.9), None, "too few"),
        (with_interval(0.01, 0.03, degrees=9.0), None, "better"),
        (with_interval(np.nan, np.nan), None, "not measured"),
    ],
)
def test_verdicts(found, margin, verdict):
    assert verdict_of(found, margin=margin) == verdict


def test_conclusion_of_a_clear_difference():
    found = conclusion("trained", "start", CLEAR, metric="nDCG@5", means=(0.612, 0.571))
    assert found.verdict == "better"
    assert (found.difference, found.p) == (0.041, 0.0005)
    assert found.text == (
        "Trained ranks better than start: nDCG@5 0.612 against 0.571, difference +0.041 "
        "(95 % interval +0.030 to +0.052, p 0.0005)."
    )


def test_conclusion_of_several_comparisons_gives_the_interval_that_decides():
    found = with_interval(-0.001, 0.083, p_all=0.06, comparisons=160, level=0.0006)
    said = conclusion("a", "b", found, metric="MRR", confidence=0.95)
    assert said.verdict == "undecided"
    assert "+0.083, p 0.060, both corrected for 160 comparisons" in said.text
    assert "would be found with a chance of 80 %" in said.text
    assert (said.low, said.high, said.p) == (-0.001, 0.083, 0.06)


def test_conclusion_with_a_margin():
    said = conclusion("a", "b", with_interval(-0.003, 0.01), metric="MRR", margin=0.005)
    assert said.text.startswith("A ranks no worse than b, up to 0.005: MRR, difference")


def test_conclusion_of_nothing_measured_and_of_nothing_that_differs():
    none = paired_difference([np.nan], [1.0])
    assert "no query has a value in both" in conclusion("a", "b", none, metric="MRR").text
    one = conclusion("a", "b", paired_difference([2.0, 3.0], [1.0, 1.0], clusters=[4, 4]), metric="MRR")
    assert one.verdict == "not measured"
    assert "one cluster" in one.text
    same = conclusion("a", "b", paired_difference(np.ones(50), np.ones(50)), metric="MRR")
    assert (same.verdict, same.text) == ("undecided", "A and b are equal in MRR, query by query.")


def test_a_user_with_ten_thousand_clicks_is_seen():
    rng = np.random.default_rng(3)
    users = np.concatenate([np.zeros(10_000, int), 1 + rng.integers(0, 2000, 4000)])
    gain = np.concatenate([rng.normal(0.3, 1, 10_000), rng.normal(0, 1, 4000)])  # one user alone likes the new ranking
    assert verdict_of(paired_difference(gain, 0 * gain)) == "better"
    honest = paired_difference(gain, 0 * gain, clusters={"user": users})
    found = conclusion("a", "b", honest, metric="MRR", effective={"user": honest.effective_clusters})
    assert found.verdict == "too few"
    assert "The 14,000 queries weigh as 2.0 users; an interval over fewer than 10" in found.text


def test_differences_in_a_handful_of_queries_are_too_few():
    gain = np.zeros(9000)
    gain[:6] = 1
    found = paired_difference(gain, 0 * gain)
    assert found.effective_clusters == 9000
    said = conclusion("a", "b", found, metric="precision@1")
    assert said.verdict == "too few"
    assert "in which the two differ weigh as 6.0" in said.text


def test_weights_in_words():
    assert weight_in_words(9000, {"user": 939.2, "query_item": 23.44}) == (
        "9,000 queries weigh as 939 users and 23.4 query items"
    )


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: minimum_detectable_effect(0.1, power=80), "power=80"),
        (lambda: conclusion("a", "b", CLEAR, metric="MRR", margin=-0.1), "margin=-0.1"),
    ],
)
def test_errors(call, message):
    with pytest.raises(UserError, match=message):
        call()


@pytest.mark.parametrize(
    ("value", "text"), [(0.0123, "+0.012"), (-0.0123, "−0.012"), (-0.0001, "0.000"), (0.0, "0.000")]
)
def test_what_rounds_to_nothing_has_no_sign(value, text):
    assert signed(value) == text
