"""AttributeRelevance against the rule spelled out over every pair."""

import types

import ml_collections
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eval.protocols import AttributeRelevance
from eval.protocols.relevance import RelevanceRule
from siglip_jax.errors import UserError

RULES = [
    {"gain": 3, "agree": ["type", "gender", "colour"]},
    {"gain": 2, "agree": ["type", "gender"]},
    {"gain": 1, "agree": ["category"]},
]


def pair_label(a, b, rules):
    gains = [r["gain"] for r in rules if all(a[x] and a[x] == b[x] for x in r["agree"])]
    return max(gains, default=0)


value = st.sampled_from(["", "a", "b", "NA", None])
item = st.fixed_dictionaries(dict.fromkeys(("type", "gender", "colour", "category"), value))


@settings(max_examples=100, deadline=None)
@given(st.lists(item, min_size=1, max_size=12), st.permutations(RULES))
def test_labels_equal_the_rule_pair_by_pair(items, rules):
    relevance = AttributeRelevance(rules, {name: [i[name] for i in items] for name in items[0]})
    want = [[0 if i == j else pair_label(a, b, rules) for j, b in enumerate(items)] for i, a in enumerate(items)]
    got = relevance.labels(slice(0, len(items)))
    assert got.dtype == np.uint8
    np.testing.assert_array_equal(got, want)
    some = np.arange(len(items))[::-2]
    np.testing.assert_array_equal(relevance.labels(some), np.array(want)[some])
    assert len(relevance) == len(items)


def test_values_do_not_run_together():
    relevance = AttributeRelevance([{"gain": 1, "agree": ["a", "b"]}], {"a": ["x", "xy"], "b": ["yz", "z"]})
    assert relevance.labels(slice(None)).sum() == 0


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ([{"gain": 1, "agree": ["brand"]}], "'brand': the catalogue's attributes are type, gender"),
        ([{"gain": 0, "agree": ["type"]}], "whole number from 1 to 10"),
        ([{"gain": True, "agree": ["type"]}], "whole number"),
        ([{"gain": 1.5, "agree": ["type"]}], "whole number"),
        ([{"gain": 11, "agree": ["type"]}], "whole number"),
        ([{"gain": 1, "agree": "type"}], "must list"),
        ([{"gain": 1, "agree": []}], "must list"),
        ([{"gain": 1, "agree": ["type", "type"]}], "must list"),
        ([{"gain": 1, "agree": ["type"]}, {"gain": 1, "agree": ["gender"]}], "must differ"),
        ([{"gain": 1, "agree": ["type", "gender"]}, RelevanceRule(2, ("gender", "type"))], "must differ"),
        ([{"gain": 1}], "expected"),
        ([], "no relevance rule"),
        ((3,), "relevance rule 3: expected"),
        (("ab",), "relevance rule 'ab': expected"),
        ([("gain", "agree")], "expected"),
        ("ab", "relevance rules 'ab': expected a list"),
        (3, "relevance rules 3: expected a list"),
        ({"gain": 1, "agree": ["type"]}, "expected a list"),
        ([{"gain": 1, "agree": 3}], "must list"),
        ([{"gain": 1, "agree": (["type"],)}], "must list"),
        ([{"gain": [1], "agree": ["type"]}], "whole number"),
    ],
)
def test_bad_rules(rules, message):
    with pytest.raises(UserError, match=message) as error:
        AttributeRelevance(rules, {"type": ["a"], "gender": ["b"]})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", [dict, types.MappingProxyType, ml_collections.ConfigDict])
def test_rules_are_mappings_of_any_kind(kind):
    rules = tuple(kind({"gain": gain, "agree": (name,)}) for gain, name in ((2, "type"), (1, "gender")))
    assert AttributeRelevance(rules, {"type": ["a"], "gender": ["b"]}).rules == (
        RelevanceRule(2, ("type",)),
        RelevanceRule(1, ("gender",)),
    )


def test_columns_of_differing_lengths():
    with pytest.raises(UserError, match="differing lengths"):
        AttributeRelevance([{"gain": 1, "agree": ["a"]}], {"a": ["x"], "b": ["x", "y"]})
