"""No title and no picture in two splits, whatever the order of the rows."""

import collections

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from input_pipeline.building.split import connected_groups, split_groups
from input_pipeline.duplicates.normalised_titles import normalise_title, title_groups
from siglip_jax.errors import UserError

FRACTIONS = {"train": 0.6, "validation": 0.1, "test": 0.3}
rows = st.lists(
    st.tuples(st.sampled_from(["Red  Dress", "red dress", "RED\tDRESS ", "hat", "Straße", "STRASSE", "", "bag", "é"]),
              st.sampled_from("abcdefgh")),
    max_size=30,
)  # fmt: skip


@settings(deadline=None)
@given(rows, st.integers(0, 5), st.randoms(use_true_random=False))
def test_nothing_crosses_and_order_does_not_matter(rows, seed, random):
    def split(pairs):
        titles, hashes = [title for title, _ in pairs], [image for _, image in pairs]
        return split_groups(titles, hashes, fractions=FRACTIONS, seed=seed)

    names = split(rows)
    assert len(names) == len(rows)
    assert set(names) <= set(FRACTIONS)
    splits_of = collections.defaultdict(set)
    for (title, image), name in zip(rows, names, strict=True):
        splits_of["title", normalise_title(title)].add(name)
        splits_of["image", image].add(name)
    assert all(len(found) == 1 for found in splits_of.values())

    order = list(range(len(rows)))
    random.shuffle(order)
    assert split([rows[k] for k in order]) == [names[k] for k in order]


def test_links_are_followed():
    groups = connected_groups(["a", "A ", "b", "c", "d"], ["1", "2", "2", "3", "3"])
    np.testing.assert_array_equal(groups, [0, 0, 0, 3, 3])


def test_a_title_is_no_picture():
    np.testing.assert_array_equal(connected_groups(["a", "b"], ["b", "a"]), [0, 1])


def test_fractions_and_seeds():
    titles = [f"title {k}" for k in range(20_000)]
    names = split_groups(titles, titles, fractions=FRACTIONS, seed=0)
    for name, fraction in FRACTIONS.items():
        assert names.count(name) / len(names) == pytest.approx(fraction, abs=0.015)
    other = split_groups(titles, titles, fractions=FRACTIONS, seed=1)
    assert 0.4 < np.mean([a == b for a, b in zip(names, other, strict=True)]) < 0.52  # 0.6² + 0.1² + 0.3²


def test_added_rows_move_no_others():
    titles = [f"title {k}" for k in range(100)]
    before = split_groups(titles, titles, fractions=FRACTIONS, seed=3)
    after = split_groups(["a", *titles], ["new", *titles], fractions=FRACTIONS, seed=3)
    assert after[1:] == before


def test_assignment_is_the_same_for_ever():
    """A change of the hash would move items between splits of datasets that people compare."""
    names = split_groups(list("abcdefgh"), list("abcdefgh"), fractions=FRACTIONS, seed=0)
    assert " ".join(names) == "train validation train train train train validation train"


def test_title_groups():
    groups = title_groups(["Red Dress", "hat", "red  DRESS", "", "hat"])
    assert groups.dtype == np.int64
    np.testing.assert_array_equal(groups, [0, 1, 0, 2, 1])
    assert title_groups([]).shape == (0,)


@pytest.mark.parametrize(
    ("fractions", "message"),
    [
        ({}, "sum to 1"),
        ({"train": 0.5, "test": 0.4}, "train=0.5, test=0.4; expected fractions that sum to 1"),
        ({"train": 1.5, "test": -0.5}, "train=1.5"),
        ({"train": 1.0, "test": 0.0}, "test=0.0"),
        ({"all": 1.0}, "split name 'all'"),
        ({"a/b": 1.0}, "split name 'a/b'"),
        ({"a" * 65: 1.0}, "of 65 letters; expected 64 or fewer"),
    ],
)
def test_bad_fractions(fractions, message):
    with pytest.raises(UserError, match=message):
        split_groups(["a"], ["b"], fractions=fractions, seed=0)
