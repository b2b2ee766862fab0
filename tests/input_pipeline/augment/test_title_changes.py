"""Changes to titles: parts, rates, orders and choices, each drawn for its row alone."""

import collections

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from input_pipeline.augment.title_changes import change_title, title_parts

SHIRT = {"title": "Nike Men Navy Blue Shirt", "attributes": {"colour": "navy blue", "use": "Sports", "for": "Men"}}
NOTHING = {"dropout": 0.0, "shuffle": 0.0, "attributes": (), "choose": False, "seed": 0, "epoch": 0}
words = st.text(alphabet="abAB ", max_size=12)


def change(record, row=0, **options):
    return change_title(record, row, **(NOTHING | options))


@pytest.mark.parametrize(
    ("title", "values", "expected"),
    [
        ("Nike Men Navy Blue Shirt", [], ["Nike", "Men", "Navy", "Blue", "Shirt"]),
        ("Nike Men Navy Blue Shirt", ["navy blue", "Sports", "Men"], ["Nike", "Men", "Navy Blue", "Shirt", "Sports"]),
        ("Nike Men Navy Blue Shirt", ["Blue", "Navy Blue"], ["Nike", "Men", "Navy Blue", "Shirt"]),
        ("a b a b", ["A B"], ["a b", "a", "b"]),
        ("Bluebell", ["Blue", "", "  ", "Blue"], ["Bluebell", "Blue"]),
        (" two  spaces ", ["x  y"], ["two", "spaces", "x y"]),
        ("", ["red"], ["red"]),
        ("", [], []),
    ],
)
def test_parts(title, values, expected):
    assert title_parts(title, values) == expected


@settings(max_examples=200, deadline=None)
@given(words, st.lists(words, max_size=4))
def test_parts_lose_no_word_and_say_each_value(title, values):
    parts = title_parts(title, values)
    joined = " ".join(parts)
    assert joined.split()[: len(title.split())] == title.split()
    assert all(part and part == part.strip() for part in parts)
    said = f" {joined.casefold()} "
    assert all(f" {' '.join(value.casefold().split())} " in said for value in values if value.split())


def test_nothing_asked_changes_nothing():
    assert change({"title": " two  spaces ", "attributes": {}}) == " two  spaces "


def test_attributes_are_added_where_they_are_missing():
    assert change(SHIRT, attributes=("use", "for")) == "Nike Men Navy Blue Shirt Sports"


def test_parts_are_left_out_at_the_rate_asked_for():
    titles = [change(SHIRT, row, dropout=0.3, attributes=("colour", "use")).split() for row in range(4000)]
    counts = collections.Counter(word for title in titles for word in title)
    for word in ("Nike", "Men", "Navy", "Shirt", "Sports"):
        assert counts[word] / 4000 == pytest.approx(0.7, abs=0.03)
    whole = ["Nike", "Men", "Navy", "Blue", "Shirt", "Sports"]
    for title in titles:
        assert ("Navy" in title) == ("Blue" in title)  # one part
        assert title == [word for word in whole if word in title]  # in order


def test_one_part_stays():
    titles = collections.Counter(change({"title": "a b", "attributes": {}}, row, dropout=0.999) for row in range(300))
    assert set(titles) <= {"a", "b", "a b"}
    assert min(titles["a"], titles["b"]) > 100


def test_a_share_is_shuffled_and_every_order_is_as_likely():
    record = {"title": "a b c", "attributes": {}}
    titles = collections.Counter(change(record, row, shuffle=0.6) for row in range(6000))
    assert len(titles) == 6
    assert titles.pop("a b c") / 6000 == pytest.approx(0.4 + 0.1, abs=0.03)
    assert all(count / 6000 == pytest.approx(0.1, abs=0.02) for count in titles.values())


def test_one_of_several_titles():
    record = {"title": "a", "more_titles": ["b", "c"], "attributes": {}}
    assert {change(record, row) for row in range(50)} == {"a"}
    titles = collections.Counter(change(record, row, choose=True) for row in range(3000))
    assert set(titles) == {"a", "b", "c"}
    assert all(count / 3000 == pytest.approx(1 / 3, abs=0.03) for count in titles.values())
    assert change({"title": "a", "attributes": {}}, choose=True) == "a"


def test_draws_are_of_the_row_the_epoch_and_the_seed():
    record = {"title": " ".join("abcdefghijkl"), "attributes": {}}
    options = {"dropout": 0.5, "shuffle": 1.0}
    keys = [(row, epoch, seed) for row in range(3) for epoch in range(3) for seed in range(3)]
    titles = [change(record, row, epoch=epoch, seed=seed, **options) for row, epoch, seed in keys]
    assert len(set(titles)) == len(titles)
    assert titles == [change(record, row, epoch=epoch, seed=seed, **options) for row, epoch, seed in keys]
