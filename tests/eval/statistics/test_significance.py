"""Holm by hand, power by simulation, simultaneous coverage, and what is concluded; a heavy user is seen."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eval.statistics import (
    bootstrap_columns,
    conclusion,
    holm,
    minimum_detectable_effect,
    paired_bootstrap,
    simultaneous_intervals,
)
from eval.statistics.bootstrap import Difference
from siglip_jax.errors import UserError

CLEAR = Difference(0.041, 0.03, 0.052, 9000, 100, 500, 312.5, 0.0056, p=0.0005)


def test_holm_by_hand():
    np.testing.assert_allclose(holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02])
    np.testing.assert_allclose(holm([0.9, np.nan, 0.6]), [1, np.nan, 1])
    assert holm([]).size == 0


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_rejects_as_its_definition_says(p):
    adjusted = holm(p)
    assert (adjusted >= p).all()
    rejected = set()
    for step, i in enumerate(sorted(range(len(p)), key=lambda i: p[i])):  # step down until the first that stands
        if p[i] * (len(p) - step) > 0.05:
            break
        rejected.add(i)
    assert rejected == set(np.flatnonzero(adjusted <= 0.05))


def test_minimum_detectable_effect_is_found_as_often_as_promised():
    assert minimum_detectable_effect(1) == pytest.approx(1.959964 + 0.841621, abs=1e-5)
    rng = np.random.default_rng(0)
    user = rng.integers(0, 80, 400)
    draw = lambda effect: effect + rng.normal(size=80)[user] + rng.normal(size=400)  # noqa: E731
    error = np.mean(
        [paired_bootstrap(draw(0), np.zeros(400), clusters=user, samples=1).standard_error for _ in range(50)]
    )
    effect = minimum_detectable_effect(error)
    p = [paired_bootstrap(draw(effect), np.zeros(400), clusters=user, samples=199, seed=i).p for i in range(300)]
    assert np.mean(np.array(p) <= 0.05) == pytest.approx(0.8, abs=0.07)


def test_simultaneous_intervals_hold_all_at_once_and_single_ones_do_not():
    rng = np.random.default_rng(1)
    together, single = 0, 0
    for trial in range(200):
        values = rng.normal(size=(150, 6)) + 0.7 * rng.normal(size=(150, 1))
        held = [
            all(i.low <= 0 <= i.high for i in intervals(values, samples=300, confidence=0.9, seed=trial))
            for intervals in (simultaneous_intervals, bootstrap_columns)
        ]
        together, single = together + held[0], single + held[1]
    assert together / 200 == pytest.approx(0.9, abs=0.06)
    assert single / 200 < 0.8


def test_simultaneous_intervals_leave_a_query_out_of_all_columns():
    values = np.random.default_rng(2).normal(size=(50, 3))
    values[:5, 1] = np.nan
    values[:, 2] = 0.25
    found = simultaneous_intervals(values, samples=200)
    assert [(i.queries, i.left_out) for i in found] == [(45, 5)] * 3
    assert (found[2].low, found[2].high) == pytest.approx((0.25, 0.25))
    alone = bootstrap_columns(values[5:], samples=200)
    assert found[0].high - found[0].low > alone[0].high - alone[0].low
    assert np.isnan([i.low for i in simultaneous_intervals(values, clusters=np.zeros(50), samples=9)]).all()


def test_conclusion_of_a_clear_difference():
    found = conclusion("trained", "start", CLEAR, metric="nDCG@5", means=(0.612, 0.571))
    assert found.verdict == "better"
    assert (found.difference, found.p, found.adjusted_p) == (0.041, 0.0005, 0.0005)
    assert found.minimum_detectable == pytest.approx(2.8016 * 0.0056, rel=1e-4)
    assert found.text == (
        "Trained ranks better than start: nDCG@5 0.612 against 0.571, difference +0.041 "
        "(95 % interval +0.030 to +0.052; p 0.0005)."
    )
    worse = dataclasses.replace(CLEAR, mean=-0.041, low=-0.052, high=-0.03)
    assert conclusion("start", "trained", worse, metric="nDCG@5").verdict == "worse"


def test_conclusion_is_undecided_where_interval_or_corrected_p_says_so():
    crossing = dataclasses.replace(CLEAR, low=-0.001, p=0.06)
    found = conclusion("a", "b", crossing, metric="MRR")
    assert found.verdict == "undecided"
    assert "would be found with a chance of 80 %" in found.text
    corrected = conclusion("a", "b", CLEAR, metric="MRR", adjusted_p=0.08, comparisons=160)
    assert corrected.verdict == "undecided"
    assert "0.080 corrected for 160 comparisons" in corrected.text
    zero = paired_bootstrap(np.ones(50), np.ones(50))
    assert conclusion("a", "b", zero, metric="MRR").verdict == "undecided"


def test_conclusion_of_nothing_measured():
    none = paired_bootstrap([np.nan], [1.0])
    assert "no query has a value in both" in conclusion("a", "b", none, metric="MRR").text
    one = paired_bootstrap([2.0, 3.0], [1.0, 1.0], clusters=[4, 4])
    found = conclusion("a", "b", one, metric="MRR")
    assert found.verdict == "not measured"
    assert "one cluster" in found.text


def test_a_user_with_ten_thousand_clicks_is_seen():
    rng = np.random.default_rng(3)
    clusters = np.concatenate([np.zeros(10_000, int), 1 + rng.integers(0, 2000, 4000)])
    gain = np.concatenate([rng.normal(0.3, 1, 10_000), rng.normal(0, 1, 4000)])  # one user alone likes the new ranking
    naive = conclusion("a", "b", paired_bootstrap(gain, 0 * gain, samples=500), metric="MRR")
    honest = paired_bootstrap(gain, 0 * gain, clusters=clusters, samples=500)
    assert naive.verdict == "better"
    assert honest.effective_clusters == pytest.approx(14_000**2 / np.square(np.bincount(clusters)).sum())
    assert honest.effective_clusters < 2
    found = conclusion("a", "b", honest, metric="MRR")
    assert found.verdict == "undecided"
    assert "weigh as 2.0 independent clusters: too few" in found.text


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: holm([0.5, 1.5]), "numbers from 0 to 1"),
        (lambda: minimum_detectable_effect(0.1, power=80), "power=80"),
        (lambda: conclusion("a", "b", CLEAR, metric="MRR", comparisons=3), "adjusted_p"),
    ],
)
def test_errors(call, message):
    with pytest.raises(UserError, match=message):
        call()
