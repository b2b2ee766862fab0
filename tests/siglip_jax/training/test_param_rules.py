"""Regex tables over parameter paths."""

import pytest

from siglip_jax.training.param_rules import match_rules


def test_first_match_wins_over_the_whole_path():
    tree = {"a": {"kernel": 0, "bias": 0}, "b": {"kernel": 0}, "t": 0}
    rules = [("a/kernel", 1), (".*/kernel", 2), ("kernel|t", 3), (".*", 4)]
    assert match_rules(rules, tree) == {"a": {"kernel": 1, "bias": 4}, "b": {"kernel": 2}, "t": 3}


def test_uncovered_parameters_are_an_error_that_lists_them():
    with pytest.raises(ValueError, match=r"no rule covers a/bias, t;"):
        match_rules([(".*/kernel", None)], {"a": {"kernel": 0, "bias": 0}, "t": 0})


def test_a_rule_may_give_none():
    assert match_rules([("a", None), (".*", 1)], {"a": 0, "b": 0}) == {"a": None, "b": 1}
