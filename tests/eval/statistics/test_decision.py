"""Rules set before looking: margins, guardrails, and the memo's line."""

import dataclasses

import numpy as np
import pytest

from eval.statistics import DecisionRules, decide, paired_difference
from eval.statistics.decision import holds
from siglip_jax.errors import UserError

BASE = paired_difference(np.random.default_rng(0).normal(size=400), np.zeros(400))


def of(low, high, **changes):
    return dataclasses.replace(BASE, mean=(low + high) / 2, low_all=low, high_all=high, **changes)


def decided(first, *others, **rules):
    names = ["nDCG@5", *(f"guard{k}" for k in range(len(others)))]
    found = dict(zip(names, (first, *others), strict=True))
    return decide(found, new="tuned", against="start", rules=DecisionRules(**rules), confidence=0.95)


@pytest.mark.parametrize(
    ("found", "held"),
    [
        (of(-0.004, 0.01), "sure"),
        (of(-0.006, 0.01), "not sure"),
        (of(-0.02, -0.006), "broken"),
        (of(-0.02, -0.004), "not sure"),
        (of(-0.004, 0.01, degrees=3), "not sure"),
        (of(np.nan, np.nan), "not sure"),
    ],
)
def test_a_margin(found, held):
    assert holds(found, 0.005) == held
    choice = {"sure": "take", "not sure": "open", "broken": "keep"}[held]
    assert decided(found, margin=0.005)["decision"]["choice"] == choice
    assert decided(of(0.01, 0.03), found, guardrails={"guard0": 0.005})["decision"]["choice"] == choice


def test_without_rules_there_is_a_line_and_no_decision():
    found = decided(of(0.01, 0.03))
    assert found == {
        "memo": "tuned against start, nDCG@5: +0.020 (95 % +0.010 to +0.030), better.",
        "decision": None,
    }


def test_guardrails_all_have_to_hold():
    rules = {"margin": 0.005, "guardrails": {"guard0": 0.01, "guard1": 0.002}}
    found = decided(of(-0.002, 0.012), of(-0.004, 0.006), of(-0.004, 0.006), **rules)
    assert found["decision"]["choice"] == "open"
    assert [line["held"] for line in found["decision"]["guardrails"]] == ["sure", "not sure"]
    assert found["memo"] == (
        "tuned against start, nDCG@5: +0.005 (95 % −0.002 to +0.012), no worse (no worse than −0.005: sure); "
        "guardrail guard0: +0.001 (−0.004 to +0.006), no worse than −0.010: sure; "
        "guardrail guard1: +0.001 (−0.004 to +0.006), no worse than −0.002: not sure. By the rules: still open."
    )
    assert "take tuned" in decided(of(0.01, 0.02), of(-0.004, 0.006), guardrails={"guard0": 0.01})["memo"]
    assert "keep start" in decided(of(0.01, 0.02), of(-0.4, -0.1), guardrails={"guard0": 0.01})["memo"]


def test_without_a_margin_the_first_metric_has_to_rise():
    assert decided(of(-0.001, 0.02), of(0, 0.1), guardrails={"guard0": 0.1})["decision"]["choice"] == "open"
    assert decided(of(-0.02, -0.01), of(0, 0.1), guardrails={"guard0": 0.1})["decision"]["choice"] == "keep"


@pytest.mark.parametrize("rules", [{"margin": 0.0}, {"margin": np.nan}, {"guardrails": {"MRR": -0.1}}])
def test_margins_are_above_zero(rules):
    with pytest.raises(UserError, match="expected a number above 0"):
        DecisionRules(**rules)


def test_a_guardrail_that_was_not_measured():
    with pytest.raises(UserError, match="guardrail 'MRR': no such metric was measured; there are nDCG@5"):
        decided(of(0, 1), guardrails={"MRR": 0.1})
