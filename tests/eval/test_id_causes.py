"""Ids that do not join: the cause is found where a rewriting of one side joins them, and nothing is made up."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eval.id_causes import describe_mismatch, likely_cause

OURS = [str(700 + n) for n in range(50)]


@pytest.mark.parametrize(
    ("write", "words"),
    [
        (lambda item: f"000{item}", "leading zeros"),
        (lambda item: f"{item}.0", '".0" behind it'),
        (lambda item: f"{item}-XL", "a suffix"),
        (lambda item: f"gid://shopify/Product/{item}", "a prefix"),
        (lambda item: f"m{item}v", "letters round the number"),
        (lambda item: f'"{item}"', "quotation marks"),
    ],
)
def test_the_cause_is_named_with_a_pair_that_it_joins(write, words):
    for theirs, ours in (([write(item) for item in OURS], OURS), (OURS, [write(item) for item in OURS])):
        cause = likely_cause(theirs, ours)
        assert cause is not None
        assert words in cause.words
        assert OURS.index(cause.theirs if theirs is OURS else cause.ours) == (ours if theirs is OURS else theirs).index(
            cause.ours if theirs is OURS else cause.theirs
        )
        assert f"differ in {cause.words}" in describe_mismatch(theirs, ours, of_theirs="a", of_ours="b")


@given(st.lists(st.integers(1000, 9999).map(str), min_size=1, unique=True))
def test_other_ids_have_no_cause(theirs):
    assert likely_cause(theirs, OURS) is None
    assert describe_mismatch(theirs, OURS, of_theirs="a", of_ours="b").endswith(f"{OURS[0]!r} one of b")
