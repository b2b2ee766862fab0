"""The order of rows: Grain's own, a permutation in each epoch."""

import grain
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from input_pipeline.loader.row_order import RowOrder, first_rows
from siglip_jax.errors import UserError


@settings(max_examples=60, deadline=None)
@given(count=st.integers(1, 5000), seed=st.integers(0, 2**32 - 1), epoch=st.integers(0, 2**20))
def test_is_that_of_grain(count, seed, epoch):
    theirs = grain.MapDataset.range(count).seed(seed).shuffle()
    positions = np.random.default_rng(seed).integers(0, 3 * count, 20) + epoch * count
    assert RowOrder(count, seed).at(positions).tolist() == [theirs[position] for position in positions.tolist()]


@pytest.mark.parametrize("count", [65_536, 65_538, 1_000_003])
def test_is_that_of_grain_for_many_rows(count):
    theirs = grain.MapDataset.range(count).seed(5).shuffle()
    positions = np.random.default_rng(0).integers(0, 2 * count, 200)
    assert RowOrder(count, 5).at(positions).tolist() == [theirs[position] for position in positions.tolist()]


@pytest.mark.parametrize("count", [1, 2, 17, 65_535, 65_536, 65_537, 262_145])  # of 2**16 + 1, Grain repeats some
def test_each_epoch_is_a_permutation(count):
    epochs = RowOrder(count, 3).at(np.arange(2 * count)).reshape(2, count)
    for rows in epochs:
        assert np.array_equal(np.sort(rows), np.arange(count))
    assert count < 17 or not np.array_equal(*epochs)


def test_without_shuffling():
    assert RowOrder(3, 0, shuffle=False).at(np.arange(7)).tolist() == [0, 1, 2, 0, 1, 2, 0]


@settings(max_examples=60, deadline=None)
@given(count=st.integers(1, 6000), seed=st.integers(0, 2**32 - 1), data=st.data())
def test_the_first_rows_are_nested(count, seed, data):
    few, many = sorted(data.draw(st.tuples(*2 * [st.integers(1, count)])))
    some, more = (first_rows(count, most=most, seed=seed).tolist() for most in (few, many))
    assert (len(some), len(more)) == (few, many)
    assert set(some) <= set(more) <= set(range(count))
    assert more == sorted(set(more))
    assert first_rows(count, most=0, seed=seed).tolist() == list(range(count))


def test_the_first_rows_are_of_all_parts():
    """Each row has the same chance: over 400 seeds, 10 of 40 rows are drawn 100 times, give or take 4 deviations."""
    drawn = np.concatenate([first_rows(40, most=10, seed=seed) for seed in range(400)])
    assert np.abs(np.bincount(drawn, minlength=40) - 100).max() < 4 * np.sqrt(400 * 0.25 * 0.75)


@pytest.mark.parametrize(("most", "said"), [(8, "most=8; expected 1 to 7"), (-1, "most=-1; expected")])
def test_more_rows_than_there_are(most, said):
    with pytest.raises(UserError, match=said):
        first_rows(7, most=most, seed=0)
